"""The simulated cohort: subjects made once from a seed, side by side in processes, and kept on disk."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from tqdm import tqdm

from qsmrim_net import patches, radiomics
from qsmrim_net.patches import lesion_geometry, lesion_patches, normalise_flair, reference_qsm
from qsmrim_net.radiomics.extract import extract_features
from shared_transforms.anatomy import split_generator
from shared_transforms.experiments.cache import key_of

from . import lesions, population, raters, subject
from .population import draw_population
from .subject import GradientEcho, Subject, draw_subject, simulate_subject
from .table import LesionTable

__all__ = ["simulated_cohort", "simulated_subject", "subject_table"]


def simulated_subject(
    seed: int, number: int, subjects: int = 172, split: str = "train", protocol: GradientEcho | None = None
) -> Subject:
    """One subject of a cohort, the same whenever and wherever it is made.

    Args:
        seed: of the cohort.
        number: of the subject in the cohort, from 0.
        subjects: in the cohort.
        split: of the anatomy; cohorts of different splits never share a deformation.
        protocol: of the examination; the paper's by default.

    Returns:
        The examination and its truth.
    """
    drawn = draw_population(split_generator(seed, split=split), subjects)
    rims, total, confluent = (int(values[number]) for values in (drawn.rims, drawn.lesions, drawn.confluent))
    generator = split_generator(seed, index=number + 1, split=split)
    return simulate_subject(draw_subject(generator, rims, total, confluent, split, protocol), protocol)


def subject_table(examined: Subject, number: int, size: Sequence[int]) -> LesionTable:
    """Patches, radiomics and truth of all lesions of a subject.

    Args:
        examined: a simulated subject.
        number: that stands for it in the table.
        size: of the patches [voxels].

    Returns:
        One row a lesion, in the order of the labels.
    """
    qsm = reference_qsm(examined.qsm, examined.brain)
    features = extract_features(qsm, examined.labels, examined.voxel_size)
    geometry = lesion_geometry(examined.labels, examined.voxel_size)
    count, kind = len(examined.lesions), examined.lesions.kind
    return LesionTable(
        subject=torch.full((count,), number),
        lesion=torch.arange(1, count + 1),
        image=lesion_patches(qsm, normalise_flair(examined.flair, examined.brain), examined.labels, size),
        features=features.values,
        status=torch.tensor([status != "ok" for status in features.status], dtype=torch.int8),
        label=(kind == 0).long(),
        raters=examined.raters,
        kind=kind,
        amplitude=examined.lesions.rim,
        voxels=geometry["voxels"],
        volume_ml=geometry["volume_ml"].float(),
    )


def simulated_cohort(
    seed: int = 0,
    subjects: int = 172,
    split: str = "train",
    size: Sequence[int] = (24, 24, 8),
    cache_dir: str | Path = "cohort",
    processes: int = 1,
    protocol: GradientEcho | None = None,
) -> LesionTable:
    """The cohort of a seed. The first call simulates it, about three seconds a subject and core; later ones read it.

    Args:
        seed: of the cohort.
        subjects: 172 gives the paper's counts exactly.
        split: ``"train"``, ``"val"`` or ``"test"``: of the anatomy.
        size: of the patches [voxels].
        cache_dir: holds a file a subject while the cohort is made, then one of all. Its name changes with the recipe.
        processes: that simulate side by side.
        protocol: of the examinations; the paper's by default.

    Returns:
        All lesions.
    """
    protocol = protocol or GradientEcho()
    recipe = f"{seed}/{subjects}/{split}/{tuple(size)}/{protocol}"
    key = key_of(recipe, population, lesions, subject, raters, patches, radiomics)
    path = Path(cache_dir) / f"{split}_{subjects}-subjects_seed-{seed}_{key}.pt"
    if path.is_file():
        return LesionTable.load(path)
    parts = [path.with_suffix("") / f"subject-{number:04d}.pt" for number in range(subjects)]
    jobs = [
        (part, seed, number, subjects, split, tuple(size), protocol)
        for number, part in enumerate(parts)
        if not part.is_file()
    ]
    _run(jobs, processes)
    table = LesionTable.concatenate(LesionTable.load(part) for part in parts)
    table.save(path)
    for part in parts:
        part.unlink(missing_ok=True)
    path.with_suffix("").rmdir()
    return table


Job = tuple[Path, int, int, int, str, tuple[int, ...], GradientEcho]


def _run(jobs: Sequence[Job], processes: int) -> None:
    """Make subjects, in this process or in several."""
    bar = tqdm(total=len(jobs), desc="simulated subjects", disable=None)
    if processes <= 1:
        for job in jobs:
            _make(job)
            bar.update()
    else:
        # Forked children of a process that has run torch's threads can hang.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for _ in pool.map(_make, jobs):
                bar.update()
    bar.close()


def _make(job: Job) -> None:
    path, seed, number, subjects, split, size, protocol = job
    subject_table(simulated_subject(seed, number, subjects, split, protocol), number, size).save(path)
