"""Speed of rim_relaxometry: reading and writing, maximum likelihood, networks, training."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Hashable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bundle_files import REPOSITORY

from benchmarks import Row, Settings, Stages, rate, row, timed

BUNDLE = REPOSITORY / "bundles" / "rim_relaxometry"
THREADS = 1  # one slice of 2-D convolutions
SEED = 0
SNR = 20.0
SIZE = 256  # voxels of a side of the slice
PAPER_STEP = {"batch": 24, "size": 40, "steps": 6, "features": 36}  # section 4.4.2 of the paper
LOOP_VOXELS = 300
MAX_SHARE_OF_SIMULATION = 15.0  # %


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
    from demos.rim_relaxometry import Scan, write_scan

    from shared_transforms.io import ParameterMap, SaveMapsd, load_series

    series = subject.image[0, ..., None].clamp(min=0)
    scan = Scan("T1", series.numpy(), None, None, subject.times, np.eye(4))
    maps = {f"map{k}": ParameterMap(series[k], "s", "a map", (0.0, 1.0)) for k in range(9)}
    with tempfile.TemporaryDirectory() as folder:
        files = write_scan(scan, Path(folder) / "scan")
        loaded = load_series(files, "inversion_recovery")
        yield row("read a series of 31 files", timed(lambda: load_series(files, "inversion_recovery"), repeats), "s")
        save = SaveMapsd(output_dir=Path(folder) / "maps", software_name="benchmark", software_version="0")
        item: dict[Hashable, Any] = {
            "image": loaded["image"],
            "stem": "slice",
            "sources": loaded["sources"],
            "maps": maps,
        }
        yield row("write nine maps", timed(lambda: save(item), repeats), "s")


def estimators(subject: Slice, repeats: int) -> Iterator[Row]:
    """Maximum likelihood: voxelwise, shared and smooth B, in the voxels of the head."""
    from physics.estimation import fit
    from physics.relaxometry import InversionRecovery

    model, data, mask = InversionRecovery(subject.times), subject.image.movedim(1, 0)[:, 0], subject.mask
    voxels = int(mask.sum())
    for noise in ("gaussian", "rician"):
        target = 50_000.0 if noise == "gaussian" else None
        seconds = timed(lambda noise=noise: fit(model, data, noise=noise, mask=mask), repeats)  # type: ignore[misc]
        yield rate(f"MLE, voxelwise: grid + LM, {noise}, sigma estimated", seconds, voxels, "voxels/s", target)
    for b_mode in ("shared", "smooth"):
        seconds = timed(lambda b_mode=b_mode: fit(model, data, b_mode=b_mode, mask=mask), repeats)  # type: ignore[misc]
        yield row(f"MLE, {b_mode} B, gaussian, the head of a slice", seconds, "s")


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
        yield row(f"RIM, {size}, 31 images", whole, "s", target=1.0)
        yield row("RIM: its start", start, "s")
        count = int(rim.steps)
        each = [max(w - statistics.median(start), 0.0) / count for w in whole]
        yield row(f"RIM: each of its {count} steps", each, "s")
        yield row(f"ResNet, {size}, 31 images", timed(lambda: resnet(subject.image), repeats), "s")
    voxels = subject.mask.numel()
    for bounded in (False, True):
        name = f"scipy curve_fit in a loop, {'bounded' if bounded else 'unbounded'}"
        per_voxel = loop(subject, loop_voxels, bounded)
        yield rate(name, per_voxel, 1.0, "voxels/s")
        ratios = [s * voxels / statistics.median(whole) for s in per_voxel]
        yield row(f"{name}: its time for the slice / that of the RIM", ratios, "times", 100.0, above=True)


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
    yield row(text, whole[1:], "s", 1.0 if name == "paper's" else None)
    shares = [100 * s / w for s, w in zip(simulated[1:], whole[1:], strict=True)]
    yield row(f"training step, {name} setting: share of the simulation", shares, "%", MAX_SHARE_OF_SIMULATION)


def groups(settings: Settings) -> Stages:
    """Stages by name."""
    subject = cache(lambda: make_slice(settings.scaled(SIZE, 32)))
    repeats, voxels = settings.repeats, settings.scaled(LOOP_VOXELS, 6)
    return {
        "io": lambda: input_and_output(subject(), repeats),
        "mle": lambda: estimators(subject(), repeats),
        "networks": lambda: networks(subject(), repeats, voxels),
        "training": lambda: training(repeats, settings.scale),
    }
