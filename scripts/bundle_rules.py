"""The rules of a bundle that need no code of it: ids, overlays, agreement of the configs, metadata, files."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bundle_files import MAX_FILE_BYTES, Bundle, Fault, lookup, walk
from zoo import zoo_faults

SCHEMA = Path(__file__).with_name("metadata_schema.json")
BASES = ("train.json", "inference.json")
TRAINING = re.compile(r"train(_\w+)?\.json")  # further stages of a training are complete too: train_gan.json
STANDARD_OVERLAYS = {
    "evaluate.json": ["train.json"],
    "multi_gpu_train.json": ["train.json"],
    "smoke.json": ["train.json"],
    "experiments.json": [],
}
COMMON_IDS = ["bundle_root", "device", "dataset_dir", "output_dir", "network_def", "network", "imports"]
REQUIRED_IDS = {
    "train.json": [
        *COMMON_IDS,
        *("train#trainer", "train#trainer#max_epochs", "train#dataset", "train#inferer", "train#handlers"),
        *("validate#evaluator", "validate#dataset", "validate#inferer", "validate#handlers", "validate#key_metric"),
        *("initialize", "run", "finalize"),
    ],
    "inference.json": [
        *COMMON_IDS,
        *("dataset", "evaluator", "inferer", "preprocessing", "postprocessing", "handlers"),
        *("initialize", "run", "finalize"),
    ],
}
# Where one of these ids stands, MONAI wants a reference to the other: both names are part of its bundle properties.
REFERENCES = {
    "train.json": {
        "train#trainer#train_handlers": "train#handlers",
        "train#trainer#inferer": "train#inferer",
        "train#trainer#postprocessing": "train#postprocessing",
        "train#trainer#key_train_metric": "train#key_metric",
        "train#dataset#transform": "train#preprocessing",
        "validate#evaluator#val_handlers": "validate#handlers",
        "validate#evaluator#inferer": "validate#inferer",
        "validate#evaluator#postprocessing": "validate#postprocessing",
        "validate#evaluator#key_val_metric": "validate#key_metric",
        "validate#dataloader#dataset": "validate#dataset",
        "validate#dataset#transform": "validate#preprocessing",
    },
    "inference.json": {
        "evaluator#val_handlers": "handlers",
        "evaluator#inferer": "inferer",
        "evaluator#postprocessing": "postprocessing",
        "evaluator#key_val_metric": "key_metric",
        "dataset#transform": "preprocessing",
    },
}
HANDLER_IDS = ("train#trainer#train_handlers", "validate#evaluator#val_handlers", "evaluator#val_handlers")
REQUIRED_FILES = {
    "LICENSE": "copy the repository's LICENSE",
    "docs/README.md": "write the model card",
    "docs/data_license.txt": "say under which licence the data may be used",
    "configs/metadata.json": "write it; CONTRIBUTING.md lists what it holds",
    "configs/train.json": "write it; CONTRIBUTING.md lists what it holds",
    "configs/inference.json": "write it; CONTRIBUTING.md lists what it holds",
    "configs/logging.conf": "copy that of another bundle",
    "models/model.pt": "train the network and save its state_dict there",
}
ACQUISITION = re.compile(
    r"(((inversion|echo|repetition|preparation|acquisition|dwell)_)?times?_m?s|(echo|readout)_(spacing|interval)_m?s"
    r"|flip_angles?_deg|(b0|field_strength)_t|b0_direction|(voxel_size|pixel_size|resolution)_mm"
    r"|line_(width|pitch)_mm|lines|(rf|readout)_bandwidth_hz|readout_sign|field_of_view_mm)"
)
ABSOLUTE = re.compile(r"(/|~/|file://|\\\\|[A-Za-z]:[\\/])\S")
PATH_ENTRY = "$sys.path.insert(0, @bundle_root)"


def static_faults(bundle: Bundle) -> list[Fault]:
    """All faults that can be seen without importing the bundle's code."""
    rules: list[Callable[[Bundle], Iterator[Fault]]] = [
        *(files, required_ids, references, starts_by_itself, imports, strings, overlays, agreement),
        *(metadata_schema, metadata_values, weights_provenance, zoo_faults),
    ]
    return bundle.faults + [fault for rule in rules for fault in rule(bundle)]


def files(bundle: Bundle) -> Iterator[Fault]:
    """Files that must be there, that are too large, or that a zip would not keep."""
    for file, cure in REQUIRED_FILES.items():
        if not (bundle.root / file).is_file():
            yield Fault(file, "-", "is not there", cure)
    if not (bundle.root / bundle.package / "__init__.py").is_file():
        cure = f"put the bundle's code in a package {bundle.package}/ with an __init__.py"
        yield Fault(f"{bundle.package}/__init__.py", "-", "is not there", cure)
    for path in sorted(bundle.root.rglob("*")):
        file = path.relative_to(bundle.root).as_posix()
        if path.is_symlink():
            yield Fault(file, "-", "is a link", "put the file itself there")
        elif path.is_file() and path.stat().st_size > MAX_FILE_BYTES:
            size = f"has {path.stat().st_size / 1024**2:.0f} MB"
            yield Fault(file, "-", size, "keep every file at 25 MB or less; the model zoo takes none larger")
    for path in sorted([*(bundle.root / "configs").glob("*.yaml"), *(bundle.root / "configs").glob("*.yml")]):
        yield Fault(f"configs/{path.name}", "-", "is YAML", "write JSON: monai.bundle.load reads nothing else")


def trainings(bundle: Bundle) -> list[str]:
    """The training configs that are complete by themselves, ``train.json`` first if it is there."""
    complete = [name for name in bundle.runnable if TRAINING.fullmatch(name) and not bases_of(bundle, name)]
    return sorted(complete, key=lambda name: (name != "train.json", name))


def kinds(bundle: Bundle) -> dict[str, str]:
    """Each complete config and the one whose rules hold for it, ``train.json`` or ``inference.json``."""
    found = dict.fromkeys(trainings(bundle), "train.json")
    return found | {name: name for name in ("inference.json",) if name in bundle.configs}


def required_ids(bundle: Bundle) -> Iterator[Fault]:
    """The ids that MONAI expects of training and inference."""
    for name, kind in kinds(bundle).items():
        for id in REQUIRED_IDS[kind]:
            if not _has(bundle.configs[name], id):
                yield Fault(f"configs/{name}", id, "is not there", f"define {id}; MONAI and its tools expect it")


def references(bundle: Bundle) -> Iterator[Fault]:
    """What MONAI finds by reference must be a reference, or check_properties fails."""
    for name, kind in kinds(bundle).items():
        config = bundle.configs[name]
        for id, target in REFERENCES[kind].items():
            parent = id.rpartition("#")[0]
            if not _has(config, id):
                if id in HANDLER_IDS and _has(config, parent):
                    yield Fault(f"configs/{name}", id, "is not there", f'write "@{target}"')
                continue
            value = lookup(config, id)
            plain = value.replace("::", "#") if isinstance(value, str) else None
            if plain != f"@{target}" and (id in HANDLER_IDS or plain is None or not plain.startswith("$")):
                found = value if isinstance(value, str) else f"an inline {type(value).__name__}"
                cure = f'write "@{target}" and define {target} beside it'
                yield Fault(f"configs/{name}", id, f"is {found}", cure)
            elif plain == f"@{target}" and not _has(config, target):
                yield Fault(f"configs/{name}", target, f"is not there, but {id} refers to it", f"define {target}")
        for id in ("train#handlers", "validate#handlers", "handlers"):
            handlers = lookup(config, id) if _has(config, id) else []
            if not isinstance(handlers, list) or not all(isinstance(h, dict) and "_target_" in h for h in handlers):
                cure = 'write a list of objects with "_target_"; check_properties crashes on anything else'
                yield Fault(f"configs/{name}", id, "is not a list of handlers", cure)


def starts_by_itself(bundle: Bundle) -> Iterator[Fault]:
    """Every ``initialize`` puts the bundle's root on the path first: MONAI does so only in ``run``."""
    for name, config in bundle.runnable.items():
        steps = config.get("initialize")
        if steps is not None and (not isinstance(steps, list) or steps[:1] != [PATH_ENTRY]):
            problem = "does not begin with the bundle's root"
            yield Fault(f"configs/{name}", "initialize", problem, f'let "{PATH_ENTRY}" be the first item')
        if name in kinds(bundle) and "$import sys" not in (config.get("imports") or []):
            yield Fault(f"configs/{name}", "imports", 'has no "$import sys"', 'add "$import sys": initialize needs it')


def imports(bundle: Bundle) -> Iterator[Fault]:
    """Import statements that MONAI would read only in part."""
    for name, config in bundle.runnable.items():
        for id, value in walk(config):
            if not isinstance(value, str) or not re.match(r"\$\s*(import|from)\s", value):
                continue
            try:
                node = ast.parse(value[1:].strip()).body[0]
            except SyntaxError as error:
                yield Fault(f"configs/{name}", id, f"is not Python: {error.msg}", "write one import statement")
                continue
            names = node.names if isinstance(node, ast.Import | ast.ImportFrom) else []
            if len(names) != 1:
                cure = "write one name in each statement: MONAI takes only the first"
                yield Fault(f"configs/{name}", id, f"imports {len(names)} names", cure)
            elif isinstance(node, ast.Import) and "." in names[0].name and not names[0].asname:
                cure = f'write "${value[1:].strip()} as ..."; MONAI binds the dotted name, which no expression can use'
                yield Fault(f"configs/{name}", id, "imports a dotted name", cure)


def strings(bundle: Bundle) -> Iterator[Fault]:
    """Absolute paths, file macros and targets in ``scripts``, in any string of any config."""
    for name, config in bundle.configs.items():
        for id, value in walk(config):
            if not isinstance(value, str):
                continue
            for path in _absolute_paths(value):
                cure = "use a path below @bundle_root, @dataset_dir or @output_dir"
                yield Fault(f"configs/{name}", id, f"has the absolute path {path}", cure)
            if name == "metadata.json" and value.startswith(("%", "$", "@")):
                cure = 'begin with a letter, such as "percent": MONAI merges metadata.json into every config'
                yield Fault(f"configs/{name}", id, f"{value[:40]} is read as a macro, expression or reference", cure)
            elif re.match(r"%.*\.(json|ya?ml)\b", value):
                cure = "write the content here; a macro's path depends on the working directory"
                yield Fault(f"configs/{name}", id, f"is the file macro {value}", cure)
            if (id.endswith("_target_") and value.startswith("scripts.")) or re.match(
                r"\$\s*(import|from)\s+scripts\b", value
            ):
                cure = f"put the code in the package {bundle.name}; two bundles in one process share the name scripts"
                yield Fault(f"configs/{name}", id, f"is {value}", cure)


def _absolute_paths(value: str) -> list[str]:
    if not value.startswith("$"):
        return [value] if ABSOLUTE.match(value) else []
    try:
        tree = ast.parse(mask_references(value[1:]).strip())
    except SyntaxError:
        return []  # the references in it are checked where the expression is run
    # "@bundle_root + '/models'" is no absolute path.
    appended = {node.right for node in ast.walk(tree) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add)}
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and node not in appended]
    return [node.value for node in constants if isinstance(node.value, str) and ABSOLUTE.match(node.value)]


def mask_references(expression: str) -> str:
    """Replace each ``@a#b::c`` by a name of the same length, so that Python can parse the expression."""
    return re.sub(r"@(?:(?:#|::)*\w+)+", lambda match: re.sub(r"\W", "_", match[0]), expression)


def bases_of(bundle: Bundle, name: str) -> list[str]:
    """Configs that the overlay ``name`` lies on; empty for a config that is complete by itself."""
    usual = [] if TRAINING.fullmatch(name) or name in BASES else STANDARD_OVERLAYS.get(name, BASES)
    return list(bundle.configs.get(name, {}).get("_overlay_of_", usual))


def overlays(bundle: Bundle) -> Iterator[Fault]:
    """Every key of an overlay exists in a config that it lies on: MONAI accepts a misspelt key in silence."""
    for name in bundle.runnable:
        bases = bases_of(bundle, name)
        for base in bases:
            if base not in bundle.configs:
                yield Fault(f"configs/{name}", "_overlay_of_", f"names {base}, which is not there", "name its base")
        known = [base for base in bases if base in bundle.configs]
        for id in unknown_keys(bundle, name, known) if known else []:
            cure = f'spell it as in {" or ".join(known)}, or say in "_overlay_of_" what the overlay lies on'
            yield Fault(f"configs/{name}", id, f"is not in {' or '.join(known)}", cure)


def unknown_keys(bundle: Bundle, name: str, bases: list[str]) -> list[str]:
    """Keys of the overlay ``name`` that none of the configs ``bases`` has."""
    ids = [key.lstrip("+") for key in bundle.configs[name]]
    known = [bundle.configs[base] for base in bases]
    return [id for id in ids if not id.startswith("_") and not any(_has(config, id) for config in known)]


def agreement(bundle: Bundle) -> Iterator[Fault]:
    """What train.json, further trainings, inference.json and metadata.json all say, they say alike."""
    train = bundle.configs.get("train.json", {})
    acquisition = bundle.metadata.get("acquisition", {})
    others = [name for name in kinds(bundle) if name != "train.json"]
    for name in others:
        config = bundle.configs[name]
        for key in train:
            if ACQUISITION.fullmatch(key) and key in config and train[key] != config[key]:
                found = f"is {config[key]}, but {train[key]} in train.json"
                yield Fault(f"configs/{name}", key, found, "give both the same value")
    for key in train:
        if ACQUISITION.fullmatch(key) and key in bundle.configs.get("inference.json", {}) and key not in acquisition:
            cure = "add it with the value of train.json"
            yield Fault("configs/metadata.json", f"acquisition#{key}", "is not there", cure)
    for key, value in acquisition.items():
        named = [name for name in BASES if key in bundle.configs.get(name, {})]
        if not named:
            cure = "remove it, or define it at the top of train.json and inference.json"
            yield Fault("configs/metadata.json", f"acquisition#{key}", "is in no config", cure)
        for name in named:
            if bundle.configs[name][key] != value:
                found = f"is {value}, but {bundle.configs[name][key]} in {name}"
                yield Fault("configs/metadata.json", f"acquisition#{key}", found, "give both the same value")
    for name in others:
        yield from _same_network(train, bundle.configs[name], name)


def _same_network(train: dict[str, Any], other: dict[str, Any], name: str) -> Iterator[Fault]:
    """The arguments of the network, those that refer to a value at the top too, are those of train.json.

    Of an ensemble, a network with a list of ``members``, each member is compared.
    """
    own, net = train.get("network_def"), other.get("network_def")
    if not isinstance(own, dict) or not isinstance(net, dict):
        return
    members = net["members"] if isinstance(net.get("members"), list) and "members" not in own else None
    nets = {"network_def": net} if members is None else {f"network_def#members#{i}": m for i, m in enumerate(members)}
    for id, one in nets.items():
        if not isinstance(one, dict):
            continue
        for key in sorted(own.keys() & one.keys() - {"_desc_"}):
            here, there = _at_top(other, one[key]), _at_top(train, own[key])
            if here != there:
                cure = "use one network in both: the weights belong to it"
                yield Fault(f"configs/{name}", f"{id}#{key}", f"is {here}, but {there} in train.json", cure)


def _at_top(config: dict[str, Any], value: Any) -> Any:
    """A plain value at the top of the config that ``value`` refers to, or ``value`` itself."""
    if isinstance(value, str) and value.startswith("@") and value[1:] in config:
        found = config[value[1:]]
        return value if isinstance(found, str) and found.startswith(("$", "@")) else found
    return value


def metadata_schema(bundle: Bundle) -> Iterator[Fault]:
    """metadata.json against the project's schema, which holds MONAI's rules and more."""
    import jsonschema  # only for those who check

    if "metadata.json" not in bundle.configs:
        return
    validator = jsonschema.Draft201909Validator(json.loads(SCHEMA.read_text("utf-8")))
    for error in sorted(validator.iter_errors(bundle.metadata), key=lambda e: [str(part) for part in e.absolute_path]):
        id = "#".join(str(part) for part in error.absolute_path)
        cure = error.schema.get("description", "write it as metadata_schema.json describes it")
        message = error.message if len(error.message) < 200 else error.message[:197] + "..."
        if error.validator == "required":
            # jsonschema reports one error for each missing key and names it only in the message.
            key = error.message.split("'")[1]
            id = f"{id}#{key}" if id else key
            cure = error.schema.get("properties", {}).get(key, {}).get("description", f"add {key}")
            message = "is not there"
        elif error.validator == "anyOf":
            message = "has no unit"
        yield Fault("configs/metadata.json", id or "-", message, cure)


def metadata_values(bundle: Bundle) -> Iterator[Fault]:
    """Values of metadata.json that must agree with one another."""
    metadata = bundle.metadata
    version, changelog = metadata.get("version"), metadata.get("changelog")
    if version and isinstance(changelog, dict) and version not in changelog:
        cure = f'add "{version}": "what changed"'
        yield Fault("configs/metadata.json", "changelog", f"says nothing of {version}", cure)
    for id, tensor in walk(metadata):
        if not isinstance(tensor, dict) or not re.fullmatch(r"\w+_data_format#(inputs|\w*outputs)#\w+", id):
            continue
        expected = [str(channel) for channel in range(_count(tensor.get("num_channels")))]
        for key in ("channel_def", "channel_units"):
            if isinstance(tensor.get(key), dict) and sorted(tensor[key], key=_number) != expected:
                cure = f"give one entry for each channel, or mend num_channels: {expected}"
                yield Fault("configs/metadata.json", f"{id}#{key}", f"has the channels {sorted(tensor[key])}", cure)


def weights_provenance(bundle: Bundle) -> Iterator[Fault]:
    """Each file in models/ is the one whose provenance is told."""
    provenance = bundle.metadata.get("provenance")
    provenance = provenance if isinstance(provenance, dict) else {}
    for file, entry in provenance.items():
        path = bundle.root / file
        if not path.is_file():
            yield Fault(file, f"provenance#{file}", "is in metadata.json, but not there", "add it, or remove the entry")
        elif isinstance(entry, dict):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            if digest != entry.get("sha256"):
                found = f"sha256 is {digest}, but {entry.get('sha256')} in metadata.json"
                yield Fault(file, f"provenance#{file}#sha256", found, "ship the weights that were measured, or mend it")
    for path in sorted((bundle.root / "models").glob("*")):
        if f"models/{path.name}" not in provenance:
            cure = f'add "models/{path.name}" to provenance in metadata.json, or remove the file'
            yield Fault(f"models/{path.name}", "provenance", "has no provenance", cure)


def _has(config: dict[str, Any], id: str) -> bool:
    try:
        lookup(config, id)
    except KeyError:
        return False
    return True


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _number(key: str) -> tuple[int, str]:
    return (int(key), "") if key.isdigit() else (-1, key)
