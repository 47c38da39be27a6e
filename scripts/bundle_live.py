"""The rules of a bundle that run its code: targets import, references resolve, weights load.

Run by check_bundle.py in a process of its own, because importing torch and MONAI takes ten seconds, and because the
packages of a bundle must not stay in the process that checks the next one.
"""

from __future__ import annotations

import json
import pydoc
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from bundle_files import REPOSITORY, VENDORED, Bundle, Fault, read_bundle, walk
from bundle_packages import required_packages
from bundle_rules import BASES, bases_of, mask_references, unknown_keys

ANY_SIZE = 16  # stands for "*" when the network is run


class Blocked(MetaPathFinder):
    """Import hook that hides the repository's shared packages: a packed bundle has its own."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Refuse the shared packages by their bare names, leave everything else to the next finder."""
        if fullname.partition(".")[0] in VENDORED:
            raise ModuleNotFoundError(f"No module named {fullname!r}: a packed bundle has its own copy", name=fullname)
        return None


def live_faults(bundle: Bundle) -> list[Fault]:
    """All faults that show when the bundle's code is imported. The bundle's root must be on ``sys.path``."""
    return [
        *targets(bundle),
        *import_statements(bundle),
        *dangling(bundle),
        *weights(bundle),
        *described_shapes(bundle),
        *required_packages(bundle),
    ]


def targets(bundle: Bundle) -> Iterator[Fault]:
    """Every ``_target_`` names something that imports."""
    from monai.bundle import ComponentLocator

    locator = ComponentLocator()
    for name, config in bundle.runnable.items():
        for id, value in walk(config):
            if not id.endswith("_target_") or not isinstance(value, str) or value.startswith(("$", "@")):
                continue
            module = locator.get_component_module_name(value)
            if isinstance(module, list):
                cure = f"write the full name, one of {', '.join(f'{part}.{value}' for part in module)}"
                yield Fault(f"configs/{name}", id, f"{value} means several things", cure)
            elif problem := _import_problem(f"{module}.{value}" if module else value):
                yield Fault(f"configs/{name}", id, problem, "mend the name, or the module it names")


def _import_problem(target: str) -> str | None:
    try:
        # MONAI's own way to find a target. It takes a missing module for a missing attribute and gives None for both.
        found = pydoc.locate(target)
    except pydoc.ErrorDuringImport as error:
        return f"{target} does not import: {getattr(error.exc, '__name__', error.exc)}: {error.value}"
    return f"{target} is not there" if found is None else None


def import_statements(bundle: Bundle) -> Iterator[Fault]:
    """Every ``$import`` and ``$from`` works: MONAI defers a failed one to the first use."""
    from monai.bundle import ConfigExpression

    for name, config in bundle.runnable.items():
        for id, value in walk(config):
            if not _is_import(value):
                continue
            try:
                exec(value[1:].strip(), {})
            except Exception as error:  # whatever a module does when it is imported
                yield Fault(
                    f"configs/{name}", id, f"{value}: {type(error).__name__}: {error}", "mend the import or the module"
                )
        for id, value in walk(config):
            if isinstance(value, str) and ConfigExpression.is_expression(value) and not _is_import(value):
                yield from _syntax(name, id, value)


def _is_import(value: Any) -> bool:
    return isinstance(value, str) and value[:1] == "$" and value[1:].strip().startswith(("import ", "from "))


def _syntax(name: str, id: str, value: str) -> Iterator[Fault]:
    try:
        compile(mask_references(value[1:]).strip(), id, "eval")
    except SyntaxError as error:
        yield Fault(f"configs/{name}", id, f"is not an expression: {error.msg}", "mend the expression after $")


def _parser(bundle: Bundle, names: list[str]) -> Any:
    """MONAI's parser over the configs ``names``, merged in this order."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config([str(bundle.root / "configs" / name) for name in names])
    parser.read_meta(bundle.metadata)
    parser["bundle_root"] = str(bundle.root)
    return parser


def dangling(bundle: Bundle) -> Iterator[Fault]:
    """Every ``@id`` of each config, alone or laid on its base, exists."""
    from monai.bundle.reference_resolver import ReferenceResolver

    seen: set[tuple[str, str]] = set()
    for name in sorted(bundle.runnable, key=lambda name: (name not in BASES, name)):  # a base's faults are its own
        for layers in _stacks(bundle, name):
            try:
                parser = _parser(bundle, layers)
                parser.resolve_macro_and_relative_ids()
            except Exception as error:  # MONAI raises many kinds
                problem = f"{type(error).__name__}: {error}"
                yield Fault(f"configs/{name}", "-", f"cannot be laid on {layers[0]}: {problem}", "mend its keys")
                continue
            for id, value in walk(parser.config):
                if not isinstance(value, str) or id.startswith("_meta_"):
                    continue
                for reference in ReferenceResolver.match_refs_pattern(value):
                    plain = reference.replace("::", "#")
                    if plain and reference not in parser and (id, plain) not in seen:
                        seen.add((id, plain))
                        yield Fault(f"configs/{name}", id, f"refers to @{plain}, which is not there", f"define {plain}")


def _stacks(bundle: Bundle, name: str) -> list[list[str]]:
    """The ways to lay config ``name``: alone, on each base that has all its keys, or on all of them together."""
    bases = [] if name in BASES else [base for base in bases_of(bundle, name) if base in bundle.configs]
    whole = [base for base in bases if not unknown_keys(bundle, name, [base])]
    return [[base, name] for base in whole] or [[*bases, name]]


def weights(bundle: Bundle) -> Iterator[Fault]:
    """Each weight file is a state_dict of tensors and fits, strictly, the network that the configs build."""
    import torch

    provenance = bundle.metadata.get("provenance")
    for file, entry in (provenance if isinstance(provenance, dict) else {}).items():
        path = bundle.root / file
        if not path.is_file() or path.suffix != ".pt" or not isinstance(entry, dict):
            continue
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # pickle, zip and torch each have their own
            problem = f"does not load with weights_only: {type(error).__name__}: {str(error).splitlines()[0]}"
            yield Fault(file, "-", problem, "save the network's state_dict, nothing else")
            continue
        if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
            yield Fault(file, "-", "holds more than tensors", "save the network's state_dict, nothing else")
            continue
        names = [name for name in entry.get("network", []) if name in bundle.configs]
        if names != entry.get("network"):
            found = f"{entry.get('network')} names a config that is not there"
            yield Fault("configs/metadata.json", f"provenance#{file}#network", found, "name the configs, base first")
            continue
        try:
            network = _parser(bundle, names).get_parsed_content("network_def")
        except Exception as error:  # whatever the bundle's code raises
            problem = f"{'+'.join(names)} does not build: {type(error).__name__}: {_last_line(error)}"
            yield Fault(f"configs/{names[-1]}", "network_def", problem, "mend network_def or the module it names")
            continue
        try:
            network.load_state_dict(state, strict=True)
        except Exception as error:  # RuntimeError of torch, QMRIError of a network that checks itself
            problem = f"does not fit network_def of {'+'.join(names)}: {' '.join(str(error).split())[:400]}"
            yield Fault(file, "network_def", problem, "ship the weights of this network, or mend network_def")


def described_shapes(bundle: Bundle) -> Iterator[Fault]:
    """What the network of inference.json gives has the channels and sizes of network_data_format.

    It may be smaller than the input, as that of a network which cuts off the border is.
    """
    import torch

    described = bundle.metadata.get("network_data_format", {})
    image, pred = (described.get(side, {}).get(key, {}) for side, key in (("inputs", "image"), ("outputs", "pred")))
    size = [ANY_SIZE if length == "*" else length for length in image.get("spatial_shape", [])]
    if "inference.json" not in bundle.configs or not size or not all(isinstance(length, int) for length in size):
        return
    try:
        network = _parser(bundle, ["inference.json"]).get_parsed_content("network_def").eval()
        with torch.inference_mode():
            found = list(network(torch.rand(1, image["num_channels"], *size)).shape)[1:]
    except Exception as error:  # whatever the bundle's code raises
        problem = f"network_def of inference.json takes no such image: {type(error).__name__}: {_last_line(error)}"
        yield Fault("configs/metadata.json", "network_data_format#inputs#image", problem, "describe what it takes")
        return
    wanted = [pred.get("num_channels"), *pred.get("spatial_shape", [])]
    if len(found) != len(wanted) or any(w not in ("*", f) for w, f in zip(wanted, found, strict=True)):
        problem = f"is {wanted}, but for {[image['num_channels'], *size]} the network gives {found}"
        yield Fault("configs/metadata.json", "network_data_format#outputs#pred", problem, "describe what it gives")


def _last_line(error: BaseException) -> str:
    while error.__cause__ is not None:  # MONAI wraps the error that matters
        error = error.__cause__
    return (str(error).strip().splitlines() or [""])[-1]


def main() -> None:
    """Check the bundle whose root is the argument; print the faults as one line of JSON.

    A second argument, ``isolated``, hides the repository.
    """
    bundle = read_bundle(Path(sys.argv[1]))
    sys.path.insert(0, str(bundle.root))
    if "isolated" in sys.argv[2:]:
        sys.meta_path.insert(0, Blocked())
    else:
        sys.path.append(str(REPOSITORY))
    with redirect_stdout(sys.stderr):
        faults = live_faults(bundle)
    print(json.dumps([vars(fault) for fault in faults]))


if __name__ == "__main__":
    main()
