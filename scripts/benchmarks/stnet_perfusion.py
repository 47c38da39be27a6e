"""Speed of stnet_perfusion: simulation, deconvolutions beside those of others, network, training, inference.

The rivals run on the same curves in the same process: the loop over voxels that most packages for DSC-MRI have, and
scipy's solver of circulant systems, which is cSVD for a whole volume at once.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from bundle_files import REPOSITORY

from benchmarks import Row, Settings, Stages, row, timed

BUNDLE = REPOSITORY / "bundles" / "stnet_perfusion"
THREADS = 2
SEED = 0
FRAMES, FRAME_TIME, SNR = 50, 1.5, 50.0
VOXELS, LOOPED = 400_000, 1_000  # of a volume, and for rivals that take a Python call for each
UNIT = 10_000  # voxels, as the paper counts
CSVD_SECONDS, OSVD_SECONDS, NETWORK_SECONDS = 0.5, 2.0, 0.5
CSVD_THRESHOLD, OSCILLATION = 0.1, 0.035
THRESHOLDS = tuple(0.01 * step for step in range(1, 100))  # that the loop tries in turn
GRID = (64, 64, 10)  # voxels, for methods that need neighbours
SLICE = 100  # voxels of a side
PATCHES = 1_000  # 9 x 9, evaluated one by one: a tenth of the paper's unit
EXAMINATION, VOXEL_MM = (88, 104, 6), (2.0, 2.0, 6.0)  # one whole simulated examination
SLOW_REPEATS = 1  # of stages that take many seconds


def curves(count: int) -> tuple[Any, Any]:
    """Noisy concentrations ``[count, T]`` [mM] of tissue with drawn haemodynamics, and the arterial curve ``[T]``."""
    import torch

    from physics.perfusion import ArterialInput, tissue_concentration

    generator = torch.Generator().manual_seed(SEED)

    def uniform(low: float, high: float) -> Any:
        return low + (high - low) * torch.rand(count, generator=generator)

    arrival, alpha, beta, peak = (torch.tensor(value) for value in (15.0, 3.0, 1.5, 8.0))
    artery = ArterialInput(arrival, alpha, beta, peak)
    times = FRAME_TIME * torch.arange(FRAMES)
    clean = tissue_concentration(artery, times, uniform(10.0, 80.0), uniform(3.0, 12.0), uniform(-1.0, 6.0))
    noise = torch.randn(clean.shape, generator=generator) * clean.amax(-1).median() / SNR * 3.0
    return clean + noise, artery.concentration(times)


def loop_osvd(concentration: Any, aif: Any, frame_time: float, index: float = OSCILLATION) -> Any:
    """Block-circulant SVD with an oscillation index as packages for DSC-MRI have it: one voxel after the other.

    Args:
        concentration: ``[V, T]``, numpy.
        aif: ``[T]``.
        frame_time: [s].
        index: largest oscillation index of a response.

    Returns:
        Responses ``[V, 2 T]`` [1/s].
    """
    import numpy as np
    from scipy.linalg import circulant

    n = 2 * len(aif)
    left, values, right = np.linalg.svd(frame_time * circulant(np.pad(aif, (0, len(aif)))))
    kept = values >= values[0] * np.array(THRESHOLDS)[:, None]
    inverses = np.where(kept, 1.0 / np.maximum(values, 1e-12), 0.0)
    found = np.zeros((len(concentration), n))
    for voxel, curve in enumerate(np.pad(concentration, ((0, 0), (0, len(aif))))):
        projected = left.T @ curve
        for inverse in inverses:
            response = right.T @ (inverse * projected)
            swing = np.abs(response[2:] - 2 * response[1:-1] + response[:-2]).sum()
            if swing <= index * n * response.max():
                break
        found[voxel] = response
    return found


def scipy_csvd(concentration: Any, aif: Any, frame_time: float, threshold: float = CSVD_THRESHOLD) -> Any:
    """Block-circulant SVD by scipy's solver of circulant systems, whose eigenvalues below a tolerance count as none.

    Arguments and result as of :func:`loop_osvd`, but for the threshold, relative to the largest singular value.
    """
    import numpy as np
    from scipy.linalg import solve_circulant

    column = frame_time * np.pad(aif, (0, len(aif)))
    padded = np.pad(concentration, ((0, 0), (0, len(aif))))
    tolerance = threshold * np.abs(np.fft.fft(column)).max()
    return np.asarray(solve_circulant(column, padded, singular="lstsq", tol=tolerance, baxis=-1, outaxis=-1)).real


def deconvolution(settings: Settings) -> Iterator[Row]:
    """Deconvolution of a volume, and what rivals take for it."""
    from physics.perfusion import deconvolve

    voxels, looped = settings.scaled(VOXELS, 500, 100), settings.scaled(LOOPED, 50)
    concentration, aif = curves(voxels)
    few, curve = concentration[:looped].double().numpy(), aif.double().numpy()
    seconds: dict[str, float] = {}
    for method, target in (("csvd", CSVD_SECONDS), ("osvd", OSVD_SECONDS)):
        found = timed(partial(deconvolve, concentration, aif, FRAME_TIME, method), settings.repeats)
        seconds[method] = statistics.median(found) / voxels
        yield row(f"{LABELS[method]}, {voxels} voxels x {FRAMES} frames", found, "s", target)
    rivals: tuple[tuple[str, str, Callable[[], Any], int], ...] = (
        ("csvd", "scipy solve_circulant", lambda: scipy_csvd(concentration.numpy(), aif.numpy(), FRAME_TIME), voxels),
        ("osvd", "numpy loop over voxels", lambda: loop_osvd(few, curve, FRAME_TIME), looped),
    )
    for method, name, work, count in rivals:
        found = timed(work, SLOW_REPEATS)
        yield row(f"{LABELS[method]} as {name}, {UNIT} voxels", [UNIT * s / count for s in found], "s")
        ratios = [s / count / seconds[method] for s in found]
        yield row(f"{LABELS[method]} as {name}: its time / that here", ratios, "times")
    for method in ("ssvd", "tikhonov"):
        found = timed(partial(deconvolve, concentration, aif, FRAME_TIME, method), settings.repeats)
        yield row(f"{LABELS[method]}, {voxels} voxels x {FRAMES} frames", found, "s")


def spatial(settings: Settings) -> Iterator[Row]:
    """Deconvolution that looks at neighbours."""
    from physics.perfusion import deconvolve

    grid = tuple(settings.scaled(length, 4, 2) for length in GRID)
    count = grid[0] * grid[1] * grid[2]
    concentration, aif = curves(count)
    volume = concentration.reshape(*grid, FRAMES)
    found = timed(partial(deconvolve, volume, aif, FRAME_TIME, "ttv"), SLOW_REPEATS)
    yield row(f"{LABELS['ttv']}, {UNIT} voxels of {' x '.join(map(str, grid))}", [UNIT * s / count for s in found], "s")


LABELS = {"ssvd": "sSVD", "csvd": "cSVD", "osvd": "oSVD", "tikhonov": "Tikhonov", "ttv": "total variation"}


def network() -> Any:
    """The network of the configuration, as initialised."""
    import torch
    from stnet_perfusion.network import STNet

    torch.manual_seed(SEED)
    return STNet().eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def networks(settings: Settings) -> Iterator[Row]:
    """The network on one slice, where neighbours share the encoder, and patch by patch."""
    import torch
    from stnet_perfusion.network import image_channels

    side, patches = settings.scaled(SLICE, 10), settings.scaled(PATCHES, 20)
    model = network()
    image = torch.rand(1, image_channels(), side + 2 * model.crop, side + 2 * model.crop)
    half = torch.ones(1, side, side, dtype=torch.bool)
    half[:, ::2] = False
    batch = torch.rand(patches, image_channels(), 2 * model.crop + 1, 2 * model.crop + 1)
    with torch.inference_mode():
        features = model.encode(image).flatten(0, 1)[:512]
        beside = torch.rand(len(features), model.frames + 1)
        found = timed(lambda: model.estimate(image, torch.ones_like(half)), settings.repeats)
        dense = statistics.median(found) / side**2
        yield row(f"ST-Net, {UNIT} voxels of one slice", [UNIT * s / side**2 for s in found], "s", NETWORK_SECONDS)
        parts: dict[str, tuple[Callable[[], Any], int]] = {
            "spatial encoder": (lambda: model.encode(image), side**2),
            "temporal network": (lambda: model.decode(features, beside), len(features)),
            "all through the temporal network at once": (lambda: model(image), side**2),
            "every second row masked out": (lambda: model.estimate(image, half), side**2),
        }
        for name, (work, count) in parts.items():
            found = [UNIT * s / count for s in timed(work, settings.repeats)]
            yield row(f"ST-Net, {UNIT} voxels of one slice: {name}", found, "s")
        found = timed(lambda: model(batch), SLOW_REPEATS)
    yield row(f"ST-Net, {UNIT} voxels patch by patch", [UNIT * s / patches for s in found], "s")
    yield row("ST-Net patch by patch: its time / that of one slice", [s / patches / dense for s in found], "times")


def examination(settings: Settings) -> tuple[Any, Any]:
    """A simulator of whole examinations, and one draw."""
    import torch
    from stnet_perfusion.simulator import PerfusionSimulator

    size = [*(settings.scaled(length, 32, 8) for length in EXAMINATION[:2]), EXAMINATION[2]]
    simulator = PerfusionSimulator(size=size, voxel_size=VOXEL_MM, snr=(SNR, SNR), repetition_time=(FRAME_TIME,) * 2)
    return simulator, simulator.draw(torch.Generator().manual_seed(SEED), 1, "test")


def simulation(settings: Settings) -> Iterator[Row]:
    """An examination: anatomy and vessels, then all its frames, then the network's standard form of it."""
    import torch
    from stnet_perfusion.anatomy import paint_anatomy

    simulator, drawn = examination(settings)
    parts: dict[str, Callable[[], Any]] = {
        "draw": lambda: simulator.draw(torch.Generator().manual_seed(SEED), 1, "test"),
        "anatomy, vessels, stroke": lambda: paint_anatomy(drawn.anatomy, simulator.head, simulator.device),
        "whole series and truth": lambda: simulator.series(drawn),
        "training sample": lambda: simulator.simulate(drawn),
    }
    text = " x ".join(map(str, simulator.size))
    for name, work in parts.items():
        yield row(f"simulation of {text}: {name}", timed(work, settings.repeats), "s")


def training(settings: Settings) -> Iterator[Row]:
    """A step of the optimiser as the configuration has it."""
    import torch
    from monai.engines import SupervisedTrainer
    from stnet_perfusion.loss import PerfusionLoss
    from stnet_perfusion.network import image_channels

    from shared_transforms.inferers import AutocastInferer, SlicewiseInferer
    from shared_transforms.simulation import prepare_simulated_batch

    train = json.loads((BUNDLE / "configs" / "train.json").read_text("utf-8"))
    model, batch, side = network().train(), train["batch_size"], train["patch_size"][0]
    inner = (side - 2 * model.crop,) * 2
    label = {name: torch.rand(batch, 1, *inner, 1) for name in ("brain", "area")}
    sample = {
        "image": torch.rand(batch, image_channels(), side, side, 1),
        "label": {"parameters": torch.rand(batch, 3, *inner, 1), **label},
        "acquisition": {},
    }
    trainer = SupervisedTrainer(
        device=torch.device("cpu"), max_epochs=1, train_data_loader=[sample], network=model,
        optimizer=torch.optim.Adam(model.parameters(), 1e-4), loss_function=PerfusionLoss(train["physics_weight"]),
        inferer=AutocastInferer(inferer=SlicewiseInferer(progress=False)), prepare_batch=prepare_simulated_batch,
        decollate=False,
    )  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small convolutions on two busy cores are many times slower with two
    found = timed(trainer.run, settings.repeats)
    torch.set_num_threads(threads)
    text = f"{batch} crops of {side} x {side}, {batch * inner[0] * inner[1]} voxels"
    yield row(f"training step, one thread: {text}", found, "s")


def inference(settings: Settings) -> Iterator[Row]:
    """From the concentrations of a whole brain to maps: standard frames, tiles, mask."""
    import torch
    from stnet_perfusion.baselines import Deconvolution
    from stnet_perfusion.inferer import STNetInferer
    from stnet_perfusion.simulator import concentration_image

    simulator, drawn = examination(settings)
    series = simulator.series(drawn)
    image, mask = concentration_image(series), series["mask"][None]
    given = {"mask": mask, "aif": series["aif"], "vof": series["vof"], "frame_time": series["repetition_time"]}
    voxels = int(mask.sum())
    methods: dict[str, Callable[..., Any]] = {
        "ST-Net": partial(STNetInferer(progress=False), network=network()),
        **{LABELS[name]: Deconvolution(name) for name in ("csvd", "osvd")},
    }
    with torch.inference_mode():
        for name, method in methods.items():
            found = timed(partial(method, image, **given), settings.repeats)
            text = f"{name}, whole brain of {' x '.join(map(str, simulator.size))}"
            yield row(text, found, "s")
            yield row(f"{text}, for {UNIT} voxels of the mask", [UNIT * s / voxels for s in found], "s")


def groups(settings: Settings) -> Stages:
    """Stages by name."""
    stages = (simulation, deconvolution, spatial, networks, training, inference)
    return {stage.__name__: partial(stage, settings) for stage in stages}
