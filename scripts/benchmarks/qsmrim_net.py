"""Speed of qsmrim_net: simulation of a subject, lesions and patches, radiomics, networks, training, inference.

The rival of the radiomics is pyradiomics itself, with PyWavelets, on the same lesions in the same process.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from bundle_files import REPOSITORY

from benchmarks import Row, Settings, Stages, row, timed

BUNDLE = REPOSITORY / "bundles" / "qsmrim_net"
THREADS = 2
SEED = 0
LESIONS, RIMS = 24, 1  # of a subject, as the cohort has them on average
SMALLEST = (48, 64, 12)  # voxels of a volume, for a quick look
RADIOMICS_MS, INFERENCE_SECONDS = 15.0, 4.6
SLOW_REPEATS = 1  # of stages that take many seconds
FEW = 6  # lesions of the slow rival


def protocol(settings: Settings) -> Any:
    """The acquisition at the size of this run."""
    from qsmrim_net.cohort.subject import GradientEcho

    sizes = zip(GradientEcho().size, SMALLEST, strict=True)
    x, y, z = (settings.scaled(length, least) for length, least in sizes)
    return GradientEcho(size=(x, y, z))


def drawing(settings: Settings) -> Any:
    """Everything random about the subject of this run."""
    import torch
    from qsmrim_net.cohort.subject import draw_subject

    generator = torch.Generator().manual_seed(SEED)
    return draw_subject(generator, RIMS, settings.scaled(LESIONS, 3), split="test", protocol=protocol(settings))


@lru_cache(maxsize=1)
def subject(settings: Settings) -> Any:
    """A simulated subject, the same for all stages."""
    from qsmrim_net.cohort.subject import simulate_subject

    return simulate_subject(drawing(settings), protocol(settings))


def prepared(settings: Settings) -> tuple[Any, Any, Any]:
    """Referenced QSM [ppb] and normalised FLAIR ``[X, Y, Z]``, and the labels of the subject."""
    from qsmrim_net.patches import normalise_flair, reference_qsm

    one = subject(settings)
    return reference_qsm(one.qsm, one.brain), normalise_flair(one.flair, one.brain), one.labels


def each(seconds: list[float], count: int) -> list[float]:
    """Milliseconds of one of ``count``."""
    return [1000 * s / count for s in seconds]


def simulation(settings: Settings) -> Iterator[Row]:
    """One subject of the cohort: anatomy and lesions, ten echoes, field, inversion, FLAIR, masks."""
    from qsmrim_net.cohort.subject import simulate_subject

    one, sequence = drawing(settings), protocol(settings)
    size, lesions = " x ".join(map(str, sequence.size)), len(one.lesions)
    yield row("draw a subject", timed(lambda: drawing(settings), settings.repeats), "s")
    found = timed(lambda: simulate_subject(one, sequence), SLOW_REPEATS)
    yield row(f"simulate a subject: {size} voxels, {lesions} lesions, {len(sequence.echo_times)} echoes", found, "s")


def lesions(settings: Settings) -> Iterator[Row]:
    """From a mask to the patches of all lesions."""
    from qsmrim_net.lesions import find_lesions
    from qsmrim_net.patches import lesion_patches, normalise_flair, reference_qsm

    one = subject(settings)
    qsm, flair, labels = prepared(settings)
    count, mask = int(labels.max()), (labels > 0).int()
    parts: dict[str, Callable[[], Any]] = {
        "lesions of a binary mask": lambda: find_lesions(mask, one.voxel_size),
        "reference of QSM, normalisation of FLAIR": lambda: (
            reference_qsm(one.qsm, one.brain), normalise_flair(one.flair, one.brain)
        ),
        f"patches of {count} lesions": lambda: lesion_patches(qsm, flair, labels),
    }  # fmt: skip
    for name, work in parts.items():
        yield row(name, each(timed(work, settings.repeats), 1), "ms")


def radiomics(settings: Settings) -> Iterator[Row]:
    """The features of all lesions of a subject, and of some of them by pyradiomics."""
    import torch
    from qsmrim_net.radiomics.extract import extract_features
    from qsmrim_net.radiomics.names import FEATURES
    from qsmrim_net.radiomics.reference import reference_features

    one = subject(settings)
    qsm, _, labels = prepared(settings)
    count = int(labels.max())
    few = torch.where(labels <= FEW, labels, 0)
    text = f"{len(FEATURES)} radiomic features of a lesion"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the target is for one core, and the rival knows no other way
    found = each(timed(lambda: extract_features(qsm, labels, one.voxel_size), settings.repeats), count)
    yield row(f"{text}, one thread, {count} at once", found, "ms", RADIOMICS_MS)
    fast = statistics.median(each(timed(lambda: extract_features(qsm, few, one.voxel_size), settings.repeats), 1))
    found = each(timed(lambda: reference_features(qsm, few, one.voxel_size), SLOW_REPEATS), 1)
    torch.set_num_threads(threads)
    some = int(few.max())
    yield row(f"{text}, one thread, {some} by pyradiomics and PyWavelets", [ms / some for ms in found], "ms")
    yield row(f"pyradiomics and PyWavelets: its time / that here, {some} lesions", [ms / fast for ms in found], "times")


def training_values() -> dict[str, Any]:
    """What stands in train.json."""
    values: dict[str, Any] = json.loads((BUNDLE / "configs" / "train.json").read_text("utf-8"))
    return values


def network(width: int | None = None, **options: Any) -> Any:
    """The network of the configuration, or of another width, as initialised."""
    import torch
    from qsmrim_net.network import QSMRimNet

    torch.manual_seed(SEED)
    values = training_values()
    options = {"stem": values["stem"], **options}
    made = QSMRimNet(values["width"] if width is None else width, **options)
    return made.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def networks(settings: Settings) -> Iterator[Row]:
    """Probabilities of the lesions of a subject: ours, three seeds of it, the paper's size, and RimNet."""
    import torch
    from qsmrim_net.baselines import RimNet
    from qsmrim_net.ensemble import RimEnsemble
    from qsmrim_net.radiomics.names import FEATURES

    count, size = settings.scaled(LESIONS, 3), training_values()["size"]
    images, features = torch.randn(count, 2, *size), torch.randn(count, len(FEATURES))
    one = network()
    models = {
        f"QSMRim-Net, width {training_values()['width']}": one,
        "the same, three seeds": RimEnsemble([network() for _ in range(3)]),
        "QSMRim-Net, width 64 and the paper's stem": network(64, stem="paper"),
        "RimNet": RimNet().to(memory_format=torch.channels_last_3d),  # type: ignore[call-overload]
    }
    text = f"a lesion of {' x '.join(map(str, size))}, {count} at once"
    with torch.inference_mode():
        for name, model in models.items():
            work = partial(model.eval(), images.contiguous(memory_format=torch.channels_last_3d), features)
            yield row(f"{name}: {text}", each(timed(work, settings.repeats), count), "ms")


def training(settings: Settings) -> Iterator[Row]:
    """A step of the optimiser as the configuration has it."""
    import torch
    from monai.engines import SupervisedTrainer
    from qsmrim_net.dataset import prepare_lesion_batch
    from qsmrim_net.loss import RimLoss
    from qsmrim_net.radiomics.names import FEATURES

    from shared_transforms.inferers import AutocastInferer

    values, model = training_values(), network().train()
    batch = settings.scaled(values["batch_size"], 8)
    labels = (torch.arange(batch) < 3).float()
    images, features = torch.randn(batch, 2, *values["size"]), torch.randn(batch, len(FEATURES))
    sample = {"image": images, "radiomics": features, "label": labels}
    trainer = SupervisedTrainer(
        device=torch.device("cpu"), max_epochs=1, train_data_loader=[sample], network=model,
        optimizer=torch.optim.Adam(model.parameters(), 1e-4), loss_function=RimLoss(), inferer=AutocastInferer(),
        prepare_batch=partial(prepare_lesion_batch, training=True), decollate=False,
    )  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small convolutions on two busy cores are many times slower with two
    found = timed(trainer.run, settings.repeats)
    torch.set_num_threads(threads)
    size = " x ".join(map(str, values["size"]))
    yield row(f"training step, one thread: {batch} patches of {size}, width {values['width']}", found, "s")


def inference(settings: Settings) -> Iterator[Row]:
    """Files of a subject to tables, maps and report, as the configuration does it, without the start of Python."""
    import torch
    from demos.qsmrim_net import write_scans
    from monai.bundle import ConfigParser
    from qsmrim_net.ensemble import RimEnsemble

    one = subject(settings)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "model.pt"
        torch.save(RimEnsemble([network() for _ in range(3)]).state_dict(), weights)
        write_scans(one, Path(folder) / "scans")

        def run() -> None:
            parser = ConfigParser()
            parser.read_config(str(BUNDLE / "configs" / "inference.json"))
            parser.read_meta({"version": "0"})
            places = {"dataset_dir": f"{folder}/scans", "output_dir": f"{folder}/maps", "weights": str(weights)}
            parser.update({"bundle_root": str(BUNDLE), "device": "cpu", **places})
            parser.get_parsed_content("run")

        found = timed(run, settings.repeats)
    size = " x ".join(map(str, one.qsm.shape))
    text = f"inference of a subject, files to report: {size} voxels, {len(one.lesions)} lesions, three seeds"
    yield row(text, found, "s", INFERENCE_SECONDS)


def groups(settings: Settings) -> Stages:
    """Stages by name."""
    stages = (simulation, lesions, radiomics, networks, training, inference)
    return {stage.__name__: partial(stage, settings) for stage in stages}
