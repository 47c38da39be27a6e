"""Measure the speed of rim_relaxometry, stage by stage, in one process.

python scripts/benchmark.py [--json STEM] [--size N] [--repeats N] [--only WORD]

Each stage runs once to warm up and then several times; the median counts. Beside it stand the shortest and the longest
time, and the target where the project has set one. Only ratios taken within one run mean much: a busy machine slows all
stages alike. The weights do not matter to speed: networks are as initialised.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
BUNDLE = REPOSITORY / "bundles" / "rim_relaxometry"
sys.path[:0] = [str(REPOSITORY), str(BUNDLE)]

SEED = 0
SNR = 20.0
PAPER_STEP = {"batch": 24, "size": 40, "steps": 6, "features": 36}  # section 4.4.2 of the paper
LOOP_VOXELS = 300
MAX_SHARE_OF_SIMULATION = 15.0  # %


@dataclass(frozen=True)
class Row:
    """One measured stage.

    Attributes:
        stage: what was measured.
        value: median.
        unit: of ``value``, ``low`` and ``high``.
        low, high: smallest and largest value of the repeats.
        repeats: how many.
        target: what the project aims at, in words; empty without a target.
        reached: whether it was reached; None without a target.
    """

    stage: str
    value: float
    unit: str
    low: float
    high: float
    repeats: int
    target: str = ""
    reached: bool | None = None


def timed(work: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each repeat, after one run to warm up."""
    work()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return seconds


def row(stage: str, seconds: list[float], unit: str = "s", work: float = 1.0, target: float | None = None) -> Row:
    """A stage from its times: seconds, or a rate when ``unit`` says "per second" by ending in "/s".

    Args:
        stage: what was measured.
        seconds: times of the repeats.
        unit: "s", or a rate such as "voxels/s".
        work: what was done in one repeat, in the unit of the rate.
        target: largest time, or smallest rate, aimed at.
    """
    is_rate = unit.endswith("/s")
    values = [work / s for s in seconds] if is_rate else seconds
    value = statistics.median(values)
    if target is None:
        return Row(stage, value, unit, min(values), max(values), len(values))
    text = f"{'>=' if is_rate else '<='} {target:g} {unit}"
    reached = value >= target if is_rate else value <= target
    return Row(stage, value, unit, min(values), max(values), len(values), text, reached)


@dataclass(frozen=True)
class Slice:
    """One simulated slice: ``image`` ``[1, 31, H, W]``, head ``mask`` ``[H, W]``."""

    image: Any
    mask: Any
    times: tuple[float, ...]


def make_slice(size: int) -> Slice:
    """A head slice of the paper's protocol with 31 inversion times."""
    import torch
    from rim_relaxometry.protocols import PROTOCOLS
    from rim_relaxometry.simulator import RelaxometrySimulator

    simulator = RelaxometrySimulator(
        "T1", size=(size, size), whole_slice=True, noise="rician", snr=(SNR, SNR), protocol="N31", phantom_share=0.0
    )
    drawn = simulator.draw(torch.Generator().manual_seed(SEED), 1, split="test")
    drawn.slices.pixel_mm.fill_(256.0 / size)
    batch = simulator.simulate(drawn)
    return Slice(batch["image"], batch["label"]["mask"][0, 0], PROTOCOLS["T1"]["N31"])


def input_and_output(subject: Slice, repeats: int) -> Iterator[Row]:
    """Reading the series from 31 files, and writing nine maps."""
    import numpy as np
    from demo import Scan, write_scan

    from shared_transforms.io import ParameterMap, SaveMapsd, load_series

    series = subject.image[0, ..., None].clamp(min=0)
    scan = Scan("T1", series.numpy(), None, None, subject.times, np.eye(4))
    maps = {f"map{k}": ParameterMap(series[k], "s", "a map", (0.0, 1.0)) for k in range(9)}
    with tempfile.TemporaryDirectory() as folder:
        files = write_scan(scan, Path(folder) / "scan")
        loaded = load_series(files, "inversion_recovery")
        yield row("read a series of 31 files", timed(lambda: load_series(files, "inversion_recovery"), repeats))
        save = SaveMapsd(output_dir=Path(folder) / "maps", software_name="benchmark", software_version="0")
        item: dict[Hashable, Any] = {
            "image": loaded["image"],
            "stem": "slice",
            "sources": loaded["sources"],
            "maps": maps,
        }
        yield row("write nine maps", timed(lambda: save(item), repeats))


def estimators(subject: Slice, repeats: int) -> Iterator[Row]:
    """Maximum likelihood: voxelwise, shared and smooth B, in the voxels of the head."""
    from physics.estimation import fit
    from physics.relaxometry import InversionRecovery

    model, data, mask = InversionRecovery(subject.times), subject.image.movedim(1, 0)[:, 0], subject.mask
    voxels = int(mask.sum())
    for noise in ("gaussian", "rician"):
        target = 50_000.0 if noise == "gaussian" else None
        seconds = timed(lambda noise=noise: fit(model, data, noise=noise, mask=mask), repeats)  # type: ignore[misc]
        yield row(f"MLE, voxelwise: grid + LM, {noise}, sigma estimated", seconds, "voxels/s", voxels, target)
    for b_mode in ("shared", "smooth"):
        seconds = timed(lambda b_mode=b_mode: fit(model, data, b_mode=b_mode, mask=mask), repeats)  # type: ignore[misc]
        yield row(f"MLE, {b_mode} B, gaussian, the head of a slice", seconds)


def loop(subject: Slice, voxels: int, bounded: bool) -> list[float]:
    """Seconds per voxel of a plain loop of scipy.optimize.curve_fit, one value for each of three parts.

    Args:
        subject: the slice; voxels are taken evenly from its head.
        voxels: how many.
        bounded: with bounds on the parameters, as relaxometry packages call it; without them MINPACK is used, which is
            the fastest way and may end at a negative time.
    """
    import numpy as np
    from scipy.optimize import OptimizeWarning, curve_fit

    times = np.array(subject.times)
    data = subject.image[0][:, subject.mask].double().numpy().T
    chosen = data[np.linspace(0, len(data) - 1, min(voxels, len(data))).astype(int)]
    limits: dict[str, Any] = {"bounds": ((0, 0.5, 0.01), (np.inf, 2.5, 10))} if bounded else {"maxfev": 1000}

    def signal(ti: Any, a: float, b: float, t1: float) -> Any:
        return np.abs(a * (1 - b * np.exp(-ti / t1)))

    seconds = []
    for part in np.array_split(chosen, 3):
        begin = time.perf_counter()
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", OptimizeWarning)
            for values in part:
                with suppress(RuntimeError):  # no convergence: the time was spent all the same
                    curve_fit(signal, times, values, p0=(values.max(), 1.9, 1.0), **limits)
        seconds.append((time.perf_counter() - begin) / max(len(part), 1))
    return seconds


def networks(subject: Slice, repeats: int, loop_voxels: int) -> Iterator[Row]:
    """RIM and its stages, ResNet, and the loop over voxels that the RIM is compared with."""
    import torch
    from rim_relaxometry.network import RecurrentInferenceMachine, ResNet, series_scale
    from rim_relaxometry.start import dictionary_start

    rim, resnet = RecurrentInferenceMachine("T1", subject.times).eval(), ResNet("T1", subject.times).eval()
    data = (subject.image / series_scale(subject.image)).movedim(1, 0).contiguous()
    size = " x ".join(str(n) for n in subject.image.shape[2:])
    with torch.inference_mode():
        whole = timed(lambda: rim(subject.image), repeats)
        start = timed(lambda: dictionary_start(rim.signal_model, data, True, True), repeats)
        yield row(f"RIM, {size}, 31 images", whole, target=1.0)
        yield row("RIM: its start", start)
        count = int(rim.steps)
        yield row(f"RIM: each of its {count} steps", [max(w - statistics.median(start), 0.0) / count for w in whole])
        yield row(f"ResNet, {size}, 31 images", timed(lambda: resnet(subject.image), repeats))
    voxels = subject.mask.numel()
    for bounded in (False, True):
        name = f"scipy curve_fit in a loop, {'bounded' if bounded else 'unbounded'}"
        per_voxel = loop(subject, loop_voxels, bounded)
        yield row(name, per_voxel, "voxels/s")
        ratios = [s * voxels / statistics.median(whole) for s in per_voxel]
        value = statistics.median(ratios)
        yield Row(
            f"{name}: its time for the slice / that of the RIM",
            value,
            "times",
            min(ratios),
            max(ratios),
            len(ratios),
            ">= 100",
            value >= 100.0,
        )


def training(repeats: int, scale: float = 1.0) -> Iterator[Row]:
    """A training step at the paper's setting and at the shipped one, and the share of the simulation."""
    shipped = json.loads((BUNDLE / "configs" / "train.json").read_text("utf-8"))
    paper = dict(PAPER_STEP, protocol="N31")
    ours = {"batch": shipped["batch_size"], "size": shipped["patch_size_px"][0], "protocol": shipped["protocol"]}
    for name, setting in (("paper's", paper), ("shipped", ours)):
        yield from _training_step(name, setting, repeats, scale)


def _training_step(name: str, setting: Mapping[str, Any], repeats: int, scale: float) -> Iterator[Row]:
    import torch
    from rim_relaxometry.loss import StepwiseLoss
    from rim_relaxometry.network import RecurrentInferenceMachine
    from rim_relaxometry.simulator import RelaxometrySimulator

    from shared_transforms.anatomy import split_generator

    batch, size = max(1, round(setting["batch"] * scale)), max(16, round(setting["size"] * scale))
    options = {key: setting[key] for key in ("steps", "features") if key in setting}
    network = RecurrentInferenceMachine("T1", [0.1, 0.5, 1.0], **options).train()
    simulator = RelaxometrySimulator("T1", size=(size, size), protocol=setting["protocol"])
    loss_function, optimizer = StepwiseLoss(["A", "B", "T1"]), torch.optim.Adam(network.parameters(), 1e-4)
    simulated, whole = [], []
    for index in range(repeats + 1):
        begin = time.perf_counter()
        with torch.no_grad():
            drawn = simulator.draw(split_generator(SEED, index=index), batch, "train")
            sample = simulator.simulate(drawn)
        simulated.append(time.perf_counter() - begin)
        optimizer.zero_grad()
        loss_function(network(sample["image"], **sample["acquisition"]), sample["label"]).backward()
        optimizer.step()
        whole.append(time.perf_counter() - begin)
    text = f"training step, {name} setting: {batch} x {size} x {size}, J = {network.steps}"
    yield row(text, whole[1:], target=1.0 if name == "paper's" else None)
    shares = [100 * s / w for s, w in zip(simulated[1:], whole[1:], strict=True)]
    value, limit = statistics.median(shares), MAX_SHARE_OF_SIMULATION
    yield Row(
        f"training step, {name} setting: share of the simulation",
        value,
        "%",
        min(shares),
        max(shares),
        repeats,
        f"<= {limit:g} %",
        value <= limit,
    )


def measure(size: int, repeats: int, loop_voxels: int, only: str = "", scale: float = 1.0) -> Iterator[Row]:
    """Measure all stages, or those of one group.

    Args:
        size: voxels along each side of the slice.
        repeats: runs of each stage after the first.
        loop_voxels: voxels of the scipy loop.
        only: "io", "mle", "networks" or "training"; empty for all.
        scale: factor on batch and patch size of the training steps, for a quick look.
    """
    subject = make_slice(size) if only != "training" else None
    groups: dict[str, Callable[[], Iterator[Row]]] = {"training": lambda: training(repeats, scale)}
    if subject is not None:
        groups = {
            "io": lambda: input_and_output(subject, repeats),
            "mle": lambda: estimators(subject, repeats),
            "networks": lambda: networks(subject, repeats, loop_voxels),
            **groups,
        }
    for name, group in groups.items():
        if only in ("", name):
            yield from group()


def as_text(item: Row) -> str:
    """One line for the terminal."""
    mark = {None: "", True: "  reached", False: "  NOT reached"}[item.reached]
    span = f"({item.low:.4g} to {item.high:.4g})"
    return f"{item.stage:76} {item.value:10.4g} {item.unit:9} {span:24} {item.target:20}{mark}".rstrip()


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and, when asked, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="STEM", help="also write STEM.json and STEM.csv")
    parser.add_argument(
        "--size", type=int, default=256, metavar="N", help="voxels of a side of the slice, default: 256"
    )
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument("--loop-voxels", type=int, default=LOOP_VOXELS, metavar="N", help="of the scipy loop")
    parser.add_argument("--only", choices=["io", "mle", "networks", "training"], default="", help="one group of stages")
    parser.add_argument("--scale", type=float, default=1.0, help="of the training batch, for a quick look")
    options = parser.parse_args(arguments)
    from shared_transforms.provenance import provenance, write_table

    origin = provenance(SEED)
    machine = origin["hardware"]
    print(f"{machine['cpu']}, {machine['threads']} thread(s) of {machine['cores']} core(s), commit {origin['commit']}")
    print(", ".join(f"{name} {version}" for name, version in origin["versions"].items()) + "\n", flush=True)
    rows = []
    for item in measure(options.size, options.repeats, options.loop_voxels, options.only, options.scale):
        print(as_text(item), flush=True)
        rows.append(asdict(item))
    if options.json:
        stem = options.json.with_suffix("") if options.json.suffix == ".json" else options.json
        print("\n" + "\n".join(str(path) for path in write_table(stem, rows, origin)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
