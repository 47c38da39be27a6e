"""Speed and memory of qsmgan: dipole kernels and fields, classical inversions, simulation, training, inference.

Processor time counts all threads, so that two threads are no way to halve it. Peak memory is what the process held at
most while the stage ran, less what it held before: the input is there already.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from bundle_files import REPOSITORY

from benchmarks import Row, Settings, Stages, row

BUNDLE = REPOSITORY / "bundles" / "qsmgan"
THREADS = 2
SEED = 0
SIZE, LARGE, SIMULATED = 160, 256, 128  # voxels of a side
DIRECT_SECONDS, DIRECT_MIB = 1.5, 2048.0  # TKD, Tikhonov and L2 of a large volume
INFERENCE_SECONDS = 60.0
TV_ITERATIONS = 30
SLOW_REPEATS = 1  # of stages that take many seconds
CRITIC_STEPS = 5

_fresh = itertools.count(1)


def voxel_size() -> tuple[float, float, float]:
    """Cubic voxels of 1 mm that differ in the seventh digit: a kernel for them is in no cache."""
    side = 1.0 + 1e-7 * next(_fresh)
    return side, side, side


Costs = list[dict[str, Any]]


def costs(work: Callable[[], Any], repeats: int, warm: bool = True) -> Costs:
    """Processor time [s] and peak memory [MiB] of each repeat, after one run to warm up."""
    import torch
    from qsmgan.experiments.scores import measured

    def run() -> torch.Tensor:
        work()
        return torch.zeros(())  # what is measured gives a tensor

    if warm:
        work()
    return [measured(run)[1] for _ in range(repeats)]


def rows(stage: str, found: Costs, seconds: float | None = None, mib: float | None = None) -> Iterator[Row]:
    """Processor time and, where the system tells it, peak memory of a stage, beside their targets."""
    yield row(stage, [one["cpu_seconds"] for one in found], "CPU s", seconds)
    memory = [one["memory_mib"] for one in found if one["memory_mib"] is not None]
    if memory:
        yield row(f"{stage}: peak memory", memory, "MiB", mib)


def make_field(size: int) -> tuple[Any, Any]:
    """Noise in an ellipsoid: field [ppm] and mask ``[size, size, size]``. Times do not depend on what a field shows."""
    import torch

    line = torch.linspace(-1.0, 1.0, size)
    x, y, z = torch.meshgrid(line, line, line, indexing="ij")
    mask = (x / 0.85).square() + (y / 0.95).square() + (z / 0.8).square() < 1
    return 0.01 * torch.randn(mask.shape, generator=torch.Generator().manual_seed(SEED)) * mask, mask


def kernels(settings: Settings) -> Iterator[Row]:
    """The dipole kernel, made anew."""
    from physics.dipole import dipole_kernel

    for kind, side in itertools.product(("exact", "kspace"), (SIZE, LARGE)):
        shape = (settings.scaled(side, 16),) * 3
        found = costs(lambda: dipole_kernel(shape, voxel_size(), kind=kind), settings.repeats)  # noqa: B023
        yield from rows(f"dipole kernel, {kind}, {shape[0]}^3", found)


def fields(settings: Settings) -> Iterator[Row]:
    """The field of a susceptibility distribution, its kernel known."""
    from physics.dipole import field_from_susceptibility

    side = settings.scaled(SIZE, 16)
    chi, _ = make_field(side)
    found = costs(lambda: field_from_susceptibility(chi, (1.0, 1.0, 1.0)), settings.repeats)
    yield from rows(f"field of {side}^3, exact, padded twofold", found)


def plain_tkd(field: Any, threshold: float = 0.2) -> Any:
    """TKD as most scripts have it: numpy's complex transforms, the kernel sampled in k-space, no padding.

    Args:
        field: ``[X, Y, Z]`` [ppm], cubic voxels, B0 along z.
        threshold: of the kernel.
    """
    import numpy as np

    x, y, z = np.meshgrid(*[np.fft.fftfreq(n) for n in field.shape], indexing="ij")
    squared = x**2 + y**2 + z**2
    squared[0, 0, 0] = 1.0
    kernel = 1 / 3 - z**2 / squared
    small = np.abs(kernel) < threshold
    inverse = np.where(small, np.sign(kernel) / threshold, 1 / np.where(small, 1.0, kernel))
    inverse[0, 0, 0] = 0.0
    return np.real(np.fft.ifftn(np.fft.fftn(field) * inverse))


def direct(settings: Settings) -> Iterator[Row]:
    """Inversions in one step, and the rival that does less and takes longer."""
    from physics.dipole_inversion import l2_gradient, tikhonov, tkd

    for side in (SIZE, LARGE):
        size = settings.scaled(side, 16)
        field, mask = make_field(size)
        targets = (DIRECT_SECONDS, DIRECT_MIB) if side == LARGE else (None, None)
        best = 0.0
        for name, method in (("TKD", tkd), ("Tikhonov", tikhonov), ("L2 of gradients", l2_gradient)):
            found = costs(lambda: method(field, (1.0, 1.0, 1.0), mask=mask), settings.repeats)  # noqa: B023
            best = best or statistics.median(one["cpu_seconds"] for one in found)
            yield from rows(f"{name}, {size}^3", found, *targets)
        found = costs(lambda: tkd(field, voxel_size(), mask=mask), settings.repeats)  # noqa: B023
        yield from rows(f"TKD, {size}^3, first call: the kernel is made", found)
        array = field.numpy()
        found = costs(lambda: plain_tkd(array), settings.repeats)  # noqa: B023
        yield from rows(f"numpy fftn TKD, {size}^3, unpadded", found)
        ratios = [one["cpu_seconds"] / best for one in found]
        yield row(f"numpy fftn TKD, {size}^3: its processor time / that of TKD here", ratios, "times")


def iterative(settings: Settings) -> Iterator[Row]:
    """Iterative inversions with their own numbers of iterations; TV with a fixed one."""
    from physics.dipole_inversion import ilsqr, medi, tv_admm

    size = settings.scaled(SIZE, 16)
    field, mask = make_field(size)
    methods: dict[str, Callable[[], Any]] = {
        f"TV, {TV_ITERATIONS} iterations": lambda: tv_admm(
            field, (1.0, 1.0, 1.0), mask=mask, iterations=TV_ITERATIONS, tolerance=0.0
        ),
        "iLSQR": lambda: ilsqr(field, (1.0, 1.0, 1.0), mask=mask),
        "MEDI": lambda: medi(field, (1.0, 1.0, 1.0), mask=mask, magnitude=mask.float()),
    }
    for name, work in methods.items():
        yield from rows(f"{name}, {size}^3", costs(work, SLOW_REPEATS, warm=False))


def simulation(settings: Settings) -> Iterator[Row]:
    """A simulated volume: the parts that take time, then the whole, head and phantom."""
    import torch
    from qsmgan.simulator import SusceptibilitySimulator
    from qsmgan.start import network_input

    from physics.dipole import field_from_susceptibility
    from shared_transforms.anatomy import sample_volumes

    size, repeats = settings.scaled(SIMULATED, 48, 8), settings.repeats
    simulators = {
        name: SusceptibilitySimulator(size=(size,) * 3, phantom_share=share)
        for name, share in (("head", 0.0), ("phantom", 1.0))
    }
    one = simulators["head"]
    drawn = one.draw(torch.Generator().manual_seed(SEED), 1)
    field, mask = (volume[None] for volume in make_field(size))
    parts: dict[str, Callable[[], Any]] = {
        "draw": lambda: one.draw(torch.Generator().manual_seed(SEED), 1),
        "deformed anatomy": lambda: sample_volumes(one.head, drawn.volumes),
        "field": lambda: field_from_susceptibility(field, (1.0, 1.0, 1.0)),
        "starting map and other channels": lambda: network_input(field, mask),
    }
    for name, work in parts.items():
        yield from rows(f"simulation of {size}^3: {name}", costs(work, repeats))
    for name, simulator in simulators.items():
        sample = simulator.draw(torch.Generator().manual_seed(SEED), 1)
        found = costs(lambda: simulator.simulate(sample), repeats)  # noqa: B023
        yield from rows(f"simulation of {size}^3: whole {name}", found)


def training(settings: Settings) -> Iterator[Row]:
    """A step of the supervised stage, and the steps of critic and generator that belong together in the second."""
    import torch
    from monai.engines import SupervisedTrainer
    from qsmgan.adversarial import AdversarialUpdate
    from qsmgan.loss import SusceptibilityLoss
    from qsmgan.network import Critic

    from shared_transforms.inferers import AutocastInferer
    from shared_transforms.simulation import prepare_simulated_batch

    train = json.loads((BUNDLE / "configs" / "train.json").read_text("utf-8"))
    size, batch = settings.scaled(train["patch_size"], 32, 8), train["batch_size"]
    inner = (batch, 1, *[size - 2 * train["crop"]] * 3)
    sample = {
        "image": torch.randn(batch, len(train["channels"]), size, size, size) * 0.01,
        "label": {"parameters": torch.randn(inner) * 0.05, "mask": torch.ones(inner, dtype=torch.bool)},
        "acquisition": {},
    }
    text = f"{batch} x {size}^3 to {inner[-1]}^3, width {train['width']}"

    def steps(update: Any, count: int) -> Callable[[], Any]:
        generator = network(train)
        trainer = SupervisedTrainer(
            device=torch.device("cpu"), max_epochs=1, train_data_loader=[sample] * count, network=generator,
            optimizer=torch.optim.AdamW(generator.parameters(), 1e-4), loss_function=SusceptibilityLoss(),
            inferer=AutocastInferer(), prepare_batch=prepare_simulated_batch, iteration_update=update, decollate=False,
        )  # fmt: skip
        return trainer.run

    yield from rows(f"training step: {text}", costs(steps(None, 1), settings.repeats))
    critic = Critic()
    update = AdversarialUpdate(
        critic, torch.optim.Adam(critic.parameters(), 1e-4), critic_steps=CRITIC_STEPS, crop=train["crop"]
    )
    found = costs(steps(update, CRITIC_STEPS), SLOW_REPEATS)
    yield from rows(f"WGAN-GP: {CRITIC_STEPS} critic steps and one of the generator: {text}", found)


def network(train: dict[str, Any]) -> Any:
    """The generator of the configuration, as initialised."""
    import torch
    from qsmgan.network import Generator

    torch.manual_seed(SEED)
    generator = Generator(train["channels"], train["width"], crop=train["crop"])
    return generator.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def inference(settings: Settings) -> Iterator[Row]:
    """Everything from a local field to the map."""
    import torch
    from qsmgan.inferer import FrameInferer

    size = settings.scaled(SIZE, 32)
    field, mask = make_field(size)
    train = json.loads((BUNDLE / "configs" / "train.json").read_text("utf-8"))
    generator, inferer = network(train).eval(), FrameInferer(progress=False)
    image = torch.stack([field, mask.float()])[None]
    found = costs(lambda: inferer(image, generator, mask[None, None]), SLOW_REPEATS, warm=False)
    yield from rows(f"QSMGAN, {size}^3, from the field to the map", found, INFERENCE_SECONDS)


def groups(settings: Settings) -> Stages:
    """Stages by name."""
    stages = (kernels, fields, direct, iterative, simulation, training, inference)
    return {stage.__name__: partial(stage, settings) for stage in stages}
