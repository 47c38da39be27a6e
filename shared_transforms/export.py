"""Networks as TorchScript and as ONNX, each compared with the network in PyTorch before its file is written.

onnx, onnxscript and onnxruntime (the extra ``export``) are imported only here, and only where a network is exported.
"""

from __future__ import annotations

import importlib
import io
import json
import logging
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.data import save_net_with_metadata
from torch import Tensor, nn

from shared_transforms.atomic import atomic_write
from shared_transforms.errors import QMRIError
from shared_transforms.experiments.bench import Row, plain
from shared_transforms.provenance import provenance, write_table
from shared_transforms.quiet import quiet
from shared_transforms.weights import load_weights, sha256_file

__all__ = ["Example", "Network", "export_networks", "exported_onnx", "exported_torchscript", "read_networks"]

# From a network, the sizes of the axes that vary (batch first) and a generator: the inputs by name, in the order of the
# call.
Example = Callable[[nn.Module, Sequence[int], torch.Generator], Mapping[str, Tensor]]
Axes = Mapping[str, Sequence[str | None]]
Answer = Callable[[Mapping[str, Tensor]], Tensor]

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
AXIS = re.compile(r"(?:(?P<factor>\d+)\*)?(?P<name>[a-z_]\w*)(?:>=(?P<least>\d+))?")
# Of an export from PyTorch, relative to a channel's largest value. Where PyTorch in single precision differs by more
# from itself in double precision, there are voxels at a tie between two answers: so many may then differ.
LARGEST_DIFFERENCE = 1e-3
LARGEST_SHARE = 0.05


@dataclass(frozen=True)
class Network:
    """A network with the weights of a file.

    Attributes:
        module: the network, in evaluation mode.
        weights: the file.
        metadata: of the bundle.
    """

    module: nn.Module
    weights: Path
    metadata: Mapping[str, Any]


def read_networks(
    bundle_root: str | Path,
    weights: str | Path | None = None,
    configs: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
) -> list[Network]:
    """Networks of a bundle with their weights.

    Args:
        bundle_root: root of the bundle.
        weights: a file, or one of ``models/``; None for every file whose provenance metadata.json tells.
        configs: whose ``network_def`` takes the weights, base first; None for those that metadata.json names, and for
            inference.json where it does not name the file.
        device: where the networks are, and where TorchScript that is no compiled source stays.

    Returns:
        One network for each file.

    Raises:
        QMRIError: if a file is not there or does not fit.
    """
    root = Path(bundle_root)
    metadata = json.loads((root / "configs" / "metadata.json").read_text("utf-8"))
    named = {root / file: entry["network"] for file, entry in metadata["provenance"].items()}
    if weights is not None:
        path = Path(weights) if Path(weights).is_file() else root / weights
        known = {file.resolve(): network for file, network in named.items()}
        named = {path: known.get(path.resolve(), ["inference.json"])}
    found = []
    for path, own in named.items():
        names = own if configs is None else list(configs)
        parser = ConfigParser()
        parser.read_config([str(root / "configs" / name) for name in names])
        parser["bundle_root"] = str(root)
        module = load_weights(parser.get_parsed_content("network_def"), path, network=f"network_def of {names[-1]}")
        found.append(Network(module.eval().to(device), path, metadata))
    return found


def export_networks(
    networks: Sequence[Network],
    output_dir: str | Path,
    table: str | Path,
    axes: Axes,
    example: Example,
    recorded: Sequence[int],
    compared: Sequence[Sequence[int]],
    script: bool = True,
    seed: int = 0,
) -> list[Path]:
    """Write ``<weights>.ts`` and ``<weights>.onnx`` of each network, and a table of how far they are from PyTorch.

    A file that cannot be made, or that gives another answer, is not written, and an earlier one of its name is removed;
    the table says why. Columns of the table:
    the largest ``difference``; ``relative_difference``, the largest relative to a channel's largest value;
    ``share_beyond``, the share of values where that is more than a thousandth; and ``rounding``, the relative
    difference between PyTorch in single and in double precision, which no export can be asked to beat.

    Args:
        networks: what to export, on the device where TorchScript is to run.
        output_dir: folder of the files.
        table: path of the table without suffix.
        axes: for each input and for ``pred`` the name of each axis, None for one of fixed size; ``"8*x"`` for multiples
            of 8, ``"x>=9"`` and ``"8*x>=24"`` for sizes from 9 and from 24.
        example: makes inputs like those the networks were trained for.
        recorded: sizes of the axes that vary, batch first, that the exporters see.
        compared: sizes at which the files are compared; others than ``recorded``.
        script: compile TorchScript from the source; False records one call, for networks that cannot be compiled.
        seed: of the example's random numbers.

    Returns:
        The files written, the two of the table last.

    Raises:
        QMRIError: if a package of the extra ``export`` is not there.
    """
    for package in PACKAGES:
        _require(package)
    rows: list[Row] = []
    files: list[Path] = []
    for network in networks:
        generator = torch.Generator().manual_seed(seed)
        device = next(network.module.parameters()).device
        first, *others = (
            {name: value.to(device) for name, value in example(network.module, sizes, generator).items()}
            for sizes in (recorded, *compared)
        )
        shared = {"weights": network.weights.name, "network": type(network.module).__name__, "varying": _varying(axes)}
        forms: dict[str, tuple[str, Callable[[], tuple[bytes, Answer, Row]]]] = {
            "TorchScript": ("ts", partial(exported_torchscript, network, first, script)),
            "ONNX": ("onnx", partial(exported_onnx, network, first, axes)),
        }
        for form, (suffix, make) in forms.items():
            path = Path(output_dir) / f"{network.weights.stem}.{suffix}"
            print(f"{path}: {_shapes(first)}", flush=True)
            content, found = _compared(network.module, form, make, others)
            rows += [plain(shared | row) for row in found]
            if content is not None:
                with atomic_write(path) as file:
                    file.write(content)
                files.append(path)
            else:
                path.unlink(missing_ok=True)  # the table would contradict what an earlier export left
                print(f"  {found[0]['note']}", flush=True)
    source = provenance(seed) | {"weights": {n.weights.name: sha256_file(n.weights) for n in networks}}
    source["versions"] = source["versions"] | {package: version(package) for package in PACKAGES}
    return files + write_table(table, rows, source)


def exported_torchscript(
    network: Network, inputs: Mapping[str, Tensor], script: bool = True
) -> tuple[bytes, Answer, Row]:
    """A network as TorchScript, with what it is in its ``metadata.json``, as MONAI's ``ckpt_export`` puts it there.

    Args:
        network: what to export.
        inputs: an example, by name, in the order of the call.
        script: see :func:`export_networks`.

    Returns:
        The file, a function that runs it, and what the table says of it.

    Raises:
        RuntimeError: if the network cannot be compiled or recorded.
    """
    module, buffer, facts = network.module, io.BytesIO(), _facts(network, inputs)
    with _exporter(), torch.no_grad():
        made = torch.jit.script(module) if script else torch.jit.trace(module, tuple(inputs.values()))
        save_net_with_metadata(made, buffer, meta_values=facts, include_config_vals=False)
        content = _without_sources(buffer.getvalue())
        device = next(module.parameters()).device
        loaded = torch.jit.load(io.BytesIO(content), map_location=device)

    def run(values: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            answer: Tensor = loaded(*values.values())
        return answer

    return content, run, {"format": "TorchScript", "made_by": f"torch.jit.{'script' if script else 'trace'}"}


def exported_onnx(network: Network, inputs: Mapping[str, Tensor], axes: Axes) -> tuple[bytes, Answer, Row]:
    """A network as ONNX with axes of any size, checked by ``onnx.checker``.

    Args:
        network: what to export.
        inputs: an example, by name, in the order of the call.
        axes: see :func:`export_networks`.

    Returns:
        The file, a function that runs it by onnxruntime on the CPU, and what the table says of it.

    Raises:
        QMRIError: if a package of the extra ``export`` is not there.
        RuntimeError: if the network cannot be exported with such axes.
    """
    onnx, onnxruntime, _ = _require("onnx"), _require("onnxruntime"), _require("onnxscript")
    passes = importlib.import_module("onnx_ir.passes.common")
    with _exporter():
        program = torch.onnx.export(
            network.module, tuple(inputs.values()), dynamo=True, verbose=False,
            input_names=list(inputs), output_names=["pred"], dynamic_shapes=tuple(_dimensions(axes, inputs)),
        )  # fmt: skip
    assert program is not None  # what dynamo=True gives
    passes.ClearMetadataAndDocStringPass()(program.model)  # the paths of the sources, among other things
    facts = _facts(network, inputs)
    program.model.metadata_props.update({k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()})
    proto = program.model_proto
    onnx.checker.check_model(proto, full_check=True)
    content: bytes = proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(values: Mapping[str, Tensor]) -> Tensor:
        return torch.from_numpy(session.run(None, {name: value.cpu().numpy() for name, value in values.items()})[0])

    opset = next(entry.version for entry in proto.opset_import if not entry.domain)
    return content, run, {"format": "ONNX", "made_by": "torch.onnx", "opset": opset}


def _compared(
    module: nn.Module,
    form: str,
    make: Callable[[], tuple[bytes, Answer, Row]],
    examples: Sequence[Mapping[str, Tensor]],
) -> tuple[bytes | None, list[Row]]:
    """The file, None if it cannot be made or is no use, and a row for each example."""
    with torch.no_grad():
        expected = [module(*values.values()) for values in examples]
    try:
        content, run, what = make()
        found = [run(values).to(wanted) for values, wanted in zip(examples, expected, strict=True)]
        differences = [_differences(answer, wanted) for answer, wanted in zip(found, expected, strict=True)]
    except QMRIError:
        raise
    except Exception as error:  # compilers, checkers and runtimes each raise their own
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        reason = re.split(r"\s+(?:at\s+)?File ", first)[0]  # the rest names a file of this machine
        return None, [{"format": form, "note": f"not possible: {reason}"}]
    rows = []
    with torch.no_grad():
        precise = deepcopy(module).double()
        for values, wanted, answer, (difference, share) in zip(examples, expected, found, differences, strict=True):
            own, _ = _differences(precise(*(value.double() for value in values.values())), wanted)
            row = {"shapes": _shapes(values), "difference": (answer - wanted).abs().max().item(),
                   "relative_difference": difference, "share_beyond": share, "rounding": own,
                   "bytes": len(content)}  # fmt: skip
            rows.append(what | row)
    limit = LARGEST_SHARE if max(row["rounding"] for row in rows) > LARGEST_DIFFERENCE else 0.0
    for row in rows:
        if not row["share_beyond"] <= limit:
            return None, [row | {"note": "not possible: the answer is another than PyTorch's"}]
    return content, rows


def _differences(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """Largest difference, relative to a channel's largest value, and the share of values beyond a thousandth of it."""
    largest = expected.abs().transpose(0, 1).flatten(1).amax(1)  # channels have units of their own
    difference = (found.to(expected) - expected).abs().transpose(0, 1).flatten(1) / largest[:, None]
    return difference.max().item(), 1.0 - (difference <= LARGEST_DIFFERENCE).float().mean().item()  # NaN counts


def _dimensions(axes: Axes, inputs: Mapping[str, Tensor]) -> Iterator[dict[int, Any]]:
    """For each input its axes that vary, as torch.export wants them; one name is one size everywhere."""
    known: dict[str, Any] = {}
    for name in inputs:
        found = {}
        for index, text in enumerate(axes[name]):
            if text is None:
                continue
            factor, axis, least = _axis(text)
            base = known.setdefault(axis, torch.export.Dim(axis, min=least))
            found[index] = base if factor == 1 else factor * base
        yield found


def _axis(text: str) -> tuple[int, str, int]:
    """Factor, name and smallest value of the name: 8, x and 3 for ``"8*x>=24"``."""
    match = AXIS.fullmatch(text)
    if match is None:
        raise QMRIError(
            field="axes", found=text, expected='a name such as "x", "8*x" or "x>=9"', remedy="mend configs/export.json"
        )
    factor = int(match["factor"] or 1)
    return factor, match["name"], -(-int(match["least"] or 1) // factor)


def _varying(axes: Axes) -> str:
    """The axes that vary in words: ``image: batch, 8*x``."""
    lists = {name: [text for text in given if text is not None] for name, given in axes.items()}
    return "; ".join(f"{name}: {', '.join(found)}" for name, found in lists.items())


def _shapes(values: Mapping[str, Tensor]) -> str:
    return "; ".join(f"{name}: {' x '.join(map(str, value.shape))}" for name, value in values.items())


def _facts(network: Network, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """Bundle, version, weights, and inputs and outputs where those of metadata.json are this network's."""
    metadata, described = network.metadata, network.metadata["network_data_format"]["inputs"]
    facts = {name: metadata[name] for name in ("name", "version")}
    facts |= {"weights": network.weights.name, "weights_sha256": sha256_file(network.weights)}
    if all(value.shape[1] == described[name]["num_channels"] for name, value in inputs.items()):
        facts["network_data_format"] = metadata["network_data_format"]
    return facts


def _without_sources(content: bytes) -> bytes:
    """A TorchScript file without the names and lines of the source files, and the inputs, it was made from."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(result, "w") as new:
        for entry in old.infolist():
            if not entry.filename.endswith(".debug_pkl") and "/traced_inputs" not in entry.filename:
                new.writestr(zipfile.ZipInfo(entry.filename), old.read(entry))
    return result.getvalue()


def _exporter() -> AbstractContextManager[None]:
    """Without the warnings of torch's exporters about torch, and of absent packages that no network here needs."""
    return quiet("torch.onnx", logging.ERROR)


def _require(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise QMRIError(
            field=package, found="not installed", expected="onnx, onnxscript and onnxruntime, which exports need",
            remedy='pip install onnx onnxscript onnxruntime, or pip install "qmri-bundles[export]" in the repository',
        ) from error  # fmt: skip
