"""Speed of deepspio: simulation stage by stage beside the usual ways, network, training, inference.

The rivals run on the same samples in the same process: the field of the whole volume by three-dimensional transforms, a
loop over the excitations with one profile each, and PyWavelets.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from bundle_files import REPOSITORY

from benchmarks import Row, Settings, Stages, rate, row, timed

BUNDLE = REPOSITORY / "bundles" / "deepspio"
THREADS = 2
SEED = 0
SIDE, PLANES = 256, 64  # pixels of a side, voxels across the plane
FIELD_OF_VIEW = 50.0  # [mm]
BATCH = 16  # samples at once
SAMPLES_PER_SECOND, INFERENCE_SECONDS = 100.0, 0.5
SLOW_REPEATS = 1  # of stages that take many seconds


def geometry(settings: Settings) -> tuple[int, int, float]:
    """Pixels of a side, voxels across the plane, and pixel size [mm]; the field of view stays as the scale changes."""
    side = settings.scaled(SIDE, 32, 16)
    return side, max(8, PLANES * side // SIDE), FIELD_OF_VIEW / side


def scenes(count: int, side: int, planes: int) -> tuple[Any, Any, Any]:
    """Discs of iron: proton density and concentration [ug/mm^3] ``[count, X, Z]``, and the latter ``[count, X, Y, Z]``.

    Times do not depend on what an image shows.
    """
    import torch

    grids = (torch.arange(n, dtype=torch.float32) - n // 2 for n in (side, planes, side))
    x, y, z = torch.meshgrid(*grids, indexing="ij")
    radius = side * (0.03 + 0.05 * torch.rand(count, generator=torch.Generator().manual_seed(SEED)))
    volume = 5.0 * ((x**2 + 4.0 * y**2 + z**2) < radius[:, None, None, None] ** 2)
    density = ((x**2 + z**2) < (0.45 * side) ** 2)[:, 0].float().expand(count, side, side)
    return density, volume[:, :, planes // 2], volume


def fields(settings: Settings) -> Iterator[Row]:
    """The field of the imaging plane, its kernel known, and the rival that makes that of the whole volume."""
    import torch

    from physics.dipole import field_from_susceptibility
    from physics.viewline import fold_planes, folded_plane_field

    side, planes, pixel = geometry(settings)
    volume = scenes(1, side, planes)[2]
    folded = fold_planes(volume)
    with torch.inference_mode():
        found = timed(lambda: folded_plane_field(folded, (pixel,) * 3), settings.repeats)
        one = statistics.median(found)
        yield row(f"field of the plane of {side} x {planes} x {side}", found, "s")
        found = timed(lambda: field_from_susceptibility(volume[0], (pixel,) * 3), SLOW_REPEATS)
    yield row(f"field of the volume of {side} x {planes} x {side}, 3-D transforms", found, "s")
    yield row("field of the volume: its time / that of the plane", [s / one for s in found], "times")


def loop_image(density: Any, concentration: Any, field: Any, pixel: float, sequence: Any, oversampling: int = 2) -> Any:
    """A View Line image as it is usually simulated: one excitation after the other, each with a profile of its own.

    Args:
        density: signal without iron ``[X, Z]``, numpy.
        concentration: [ug/mm^3].
        field: [uT].
        pixel: of both axes [mm].
        sequence: the sequence.
        oversampling: points along z in a pixel.

    Returns:
        Even and odd lines ``[2, X, Z]``.
    """
    import numpy as np
    from scipy.special import erf

    rows, pixels = field.shape
    gamma = 2.0 * np.pi * 42.577478518  # [rad/s/uT]
    slopes = np.gradient(field, pixel)
    spread = (gamma**2) * (slopes[0] ** 2 + slopes[1] ** 2) * sequence.diffusivity * sequence.echo_time**3 / 12.0
    rate_per_ug = sequence.relaxivity * 1000.0 / 55.845  # [1/s per ug/mm^3]
    signal = density * np.exp(-sequence.echo_time * rate_per_ug * concentration - spread)
    at = np.clip((np.arange(pixels * oversampling) + 0.5) / oversampling - 0.5, 0.0, pixels - 1.0)
    low = np.minimum(at.astype(int), pixels - 2)
    share = at - low
    signal, field = (v[:, low] * (1.0 - share) + v[:, low + 1] * share for v in (signal, field))
    z = ((np.arange(pixels * oversampling) + 0.5) / oversampling - 0.5 * pixels) * pixel
    seen = z + sequence.readout_sign * field / sequence.readout_gradient
    place = np.clip(seen / pixel + 0.5 * (pixels - 1), -1.0, pixels)
    left = np.floor(place).astype(int)
    first = np.arange(rows)[:, None] * (pixels + 3) + left + 1
    image = np.zeros((2, rows * (pixels + 3)))
    for line in range(sequence.lines):
        away = z + field / sequence.slice_gradient - (line - (sequence.lines - 1) / 2) * sequence.line_pitch
        half, scale = 0.5 * sequence.line_width, np.sqrt(2.0) * sequence.edge
        excited = signal * 0.5 * (erf((away + half) / scale) - erf((away - half) / scale)) / oversampling
        for index, weight in ((first, 1.0 - (place - left)), (first + 1, place - left)):
            image[line % 2] += np.bincount(index.ravel(), (excited * weight).ravel(), image.shape[1])
    return image.reshape(2, rows, -1)[:, :, 1 : pixels + 1]


def images(settings: Settings) -> Iterator[Row]:
    """Decay, comb of all excitations, and readout, and the rival that takes the lines one by one."""
    import torch

    from physics.viewline import ViewLineSequence, central_plane_field, view_line_image

    side, planes, pixel = geometry(settings)
    count = settings.scaled(BATCH, 2)
    density, concentration, volume = scenes(count, side, planes)
    sequence = ViewLineSequence()
    with torch.inference_mode():
        field = central_plane_field(volume, (pixel,) * 3)
        found = timed(
            lambda: view_line_image(density, concentration, field, (pixel, pixel), sequence), settings.repeats
        )
    one = statistics.median(found) / count
    yield rate(f"decay, excitation, readout of {side}^2, {sequence.lines} lines at once", found, count, "samples/s")
    m, c, b = (values[0].double().numpy() for values in (density, concentration, field))
    found = timed(lambda: loop_image(m, c, b, pixel, sequence), SLOW_REPEATS)
    yield rate(f"decay, excitation, readout of {side}^2, loop over the lines in numpy", found, 1, "samples/s")
    yield row("loop over the lines: its time / that of all at once", [s / one for s in found], "times")


def wavelets(settings: Settings) -> Iterator[Row]:
    """The wavelet coefficients of the labels, and PyWavelets."""
    import pywt
    import torch
    from deepspio.wavelets import analysis

    side, count = geometry(settings)[0], settings.scaled(BATCH, 2)
    maps = torch.rand(count, 1, side, side)
    with torch.inference_mode():
        found = timed(lambda: analysis(maps), settings.repeats)
    one = statistics.median(found) / count
    yield rate(f"wavelet coefficients of {side}^2", found, count, "samples/s")
    array = maps[0, 0].numpy()
    found = timed(lambda: pywt.dwt2(array, "db4", mode="periodization"), settings.repeats)
    yield rate(f"wavelet coefficients of {side}^2, PyWavelets", found, 1, "samples/s")
    yield row("PyWavelets: its time / that here", [s / one for s in found], "times")


def simulation(settings: Settings) -> Iterator[Row]:
    """A batch of the training, whole images: its stages, all of them, and with windows as the training has them."""
    import torch
    from deepspio.simulator import PADDING
    from deepspio.wavelets import analysis

    from physics.noise import add_rician_noise, sigma_from_decibels
    from physics.phantoms import folded_planes
    from physics.viewline import folded_plane_field

    side, _, pixel = geometry(settings)
    count = settings.scaled(BATCH, 2)
    whole = simulator(settings, None)
    drawn = whole.draw(torch.Generator().manual_seed(SEED), count)
    bodies = folded_planes(drawn.particles, (side, side))
    sample = whole.simulate(drawn)
    image, level = sample["image"], torch.full((count, 1, 1, 1), 20.0)
    noise = torch.Generator().manual_seed(SEED)
    scenes_text = f", {len(drawn.particles)} geometries"
    parts: dict[str, Callable[[], Any]] = {
        "draw": lambda: whole.draw(torch.Generator().manual_seed(SEED), count),
        f"particles rasterised{scenes_text}": lambda: folded_planes(drawn.particles, (side, side)),
        f"field of the plane{scenes_text}": lambda: folded_plane_field(bodies, (pixel,) * 3, padding=PADDING),
        f"anatomy{scenes_text}": lambda: whole.density.images(drawn.density),
        "noise": lambda: add_rician_noise(image, sigma_from_decibels(image, level, axes=(1, 2, 3)), noise),
        "wavelet label": lambda: analysis(sample["label"]["parameters"]),
    }

    def batch(one: Any) -> Any:
        made = one.simulate(one.draw(torch.Generator().manual_seed(SEED), count))
        return analysis(made["label"]["parameters"])

    text = f"simulation of {side}^2, {count} samples"
    with torch.inference_mode():
        for name, work in parts.items():
            yield rate(f"{text}: {name}", timed(work, settings.repeats), count, "samples/s")
        found = timed(lambda: batch(whole), settings.repeats)
        yield rate(f"{text}: all stages", found, count, "samples/s", SAMPLES_PER_SECOND)
        crop = settings.scaled(training_values()["crop"], 16, 16)
        windows = simulator(settings, crop)
        found = timed(lambda: batch(windows), settings.repeats)
    yield rate(f"{text}: all stages, windows of {crop}^2", found, count, "samples/s")


def simulator(settings: Settings, crop: int | None) -> Any:
    """The simulator of the training at the size of this run."""
    from deepspio.simulator import ViewLineSimulator

    train = training_values()
    side, _, pixel = geometry(settings)
    return ViewLineSimulator(
        size=side, crop=crop, pixel_size=pixel, figures=train["figures"], count=train["figure_count"],
        noise_share=train["noise_share"], decibels=train["noise_db"], reuse=train["reuse"], anatomy=train["anatomy"],
    )  # fmt: skip


def training_values() -> dict[str, Any]:
    """What stands in train.json."""
    values: dict[str, Any] = json.loads((BUNDLE / "configs" / "train.json").read_text("utf-8"))
    return values


def network() -> Any:
    """The network of the configuration, as initialised."""
    import torch
    from deepspio.network import DeepSPIO

    torch.manual_seed(SEED)
    return DeepSPIO(training_values()["width"]).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def networks(settings: Settings) -> Iterator[Row]:
    """The network on one image, and the U-Net that it is compared with."""
    import torch
    from deepspio.network import UNetComparator

    side = geometry(settings)[0]
    image = torch.rand(1, 2, side, side)
    model = network()
    rival = UNetComparator(model.width).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.inference_mode():
        found = timed(lambda: model(image), settings.repeats)
        yield row(f"DeepSPIO, width {model.width}, one image of {side}^2", found, "s", INFERENCE_SECONDS)
        found = timed(lambda: rival(image), settings.repeats)
        yield row(f"U-Net, width {model.width}, one image of {side}^2", found, "s")


def training(settings: Settings) -> Iterator[Row]:
    """A step of the optimiser as the configuration has it."""
    import torch
    from deepspio.loss import WaveletLoss
    from monai.engines import SupervisedTrainer

    from shared_transforms.inferers import AutocastInferer
    from shared_transforms.simulation import prepare_simulated_batch

    train = training_values()
    model, batch = network().train(), train["batch_size"]
    side = settings.scaled(train["crop"], 32, 16)
    sample = {
        "image": torch.rand(batch, 2, side, side), "label": {"parameters": torch.rand(batch, 1, side, side)},
        "acquisition": {},
    }  # fmt: skip
    trainer = SupervisedTrainer(
        device=torch.device("cpu"), max_epochs=1, train_data_loader=[sample], network=model,
        optimizer=torch.optim.Adam(model.parameters(), 1e-4), loss_function=WaveletLoss(),
        inferer=AutocastInferer(), prepare_batch=prepare_simulated_batch, decollate=False,
    )  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small convolutions on two busy cores are many times slower with two
    found = timed(trainer.run, settings.repeats)
    torch.set_num_threads(threads)
    yield rate(
        f"training step, one thread: {batch} windows of {side}^2, width {model.width}", found, batch, "samples/s"
    )


def groups(settings: Settings) -> Stages:
    """Stages by name."""
    stages = (simulation, fields, images, wavelets, networks, training)
    return {stage.__name__: partial(stage, settings) for stage in stages}
