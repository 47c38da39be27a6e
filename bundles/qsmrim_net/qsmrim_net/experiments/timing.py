"""Time of one subject, from its files to table, maps, sheet and report, stage by stage."""

from __future__ import annotations

import io
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigWorkflow
from torch import Tensor

from shared_transforms.experiments import Row, target

from ..cohort.build import simulated_subject
from ..cohort.subject import Subject
from . import paper
from .bench import Bench

THREADS = 2
STAGES = {
    "LoadLesionMapsd": "reading", "LesionsInd": "lesions", "Featuresd": "patches and radiomics",
    "PatchesAsImaged": "patches and radiomics",
    "network": "network", "LesionTabled": "table", "MapsFromTabled": "maps", "ContactSheetd": "contact sheet",
    "SaveMapsd": "writing", "SaveSummaryd": "writing", "SaveReportd": "report",
}  # fmt: skip


def timing(bench: Bench, inference_config: str | Path, subjects: int = 5, cohort_seed: int = 1) -> list[Path]:
    """Wall-clock time of every stage of inference, with two threads.

    Args:
        bench: weights and output folder.
        inference_config: file of the inference; the bundle's other files are found from it.
        subjects: number of simulated subjects of split "test".
        cohort_seed: of these.
    """
    rows: list[Row] = []
    with threads(THREADS), tempfile.TemporaryDirectory() as folder:
        for number in range(-1, bench.pick(subjects, 1)):  # the first of all warms up
            place = Path(folder) / f"sub-{number + 1:02d}"
            lesions = write_subject(simulated_subject(cohort_seed, max(0, number), split="test"), place)
            seconds = stages(inference_config, place, Path(folder) / "output", bench)
            if number >= 0:
                rows += [
                    {"method": "qsmrim_net", "subject": number, "lesions": lesions, "stage": name, "wall_seconds": t}
                    for name, t in seconds.items()
                ]  # fmt: skip
    for row in rows:
        row["paper"] = paper.SECONDS if row["stage"] == "total" else None
    totals = [row["wall_seconds"] for row in rows if row["stage"] == "total"]
    targets = [target("one subject, end to end [s], mean", float(np.mean(totals)), paper.SECONDS)]
    notes = [
        f"{len(totals)} simulated subjects of split test, {THREADS} threads, after one that warms up: from three NIfTI "
        "files to the written table, maps, sheet and report, with the shipped ensemble. total has what is between the "
        "stages too, but not the start of the process. The paper's time is on a GPU, from the maps to the "
        "probabilities, 4.6 s on average (SD 4.1 s).",
    ]
    return bench.write("timing", rows, notes, targets)


def write_subject(subject: Subject, folder: Path) -> int:
    """Write QSM [ppb], FLAIR and lesion mask as a user has them; the number of lesions."""
    folder.mkdir(parents=True)
    affine = np.diag([*subject.voxel_size, 1.0])
    stem = folder / folder.name
    for name, volume in (("Chimap", subject.qsm), ("FLAIR", subject.flair), ("label-lesion_mask", subject.labels)):
        _save(volume, affine, Path(f"{stem}_{name}.nii.gz"))
    Path(f"{stem}_Chimap.json").write_text(json.dumps({"Units": "ppb"}))
    return len(subject.lesions)


def stages(inference_config: str | Path, dataset_dir: Path, output_dir: Path, bench: Bench) -> dict[str, float]:
    """Seconds of the stages of inference on the subject in a folder."""
    root = Path(inference_config).resolve().parent.parent
    workflow = ConfigWorkflow(
        config_file=str(inference_config), workflow_type="infer", logging_file=False, bundle_root=str(root),
        dataset_dir=str(dataset_dir), output_dir=str(output_dir), device=f"$torch.device('{bench.device}')",
        weights=str(bench.weights),
    )  # fmt: skip
    workflow.initialize()
    seconds: dict[str, float] = defaultdict(float)
    content = workflow.parser.get_parsed_content
    for part in ("preprocessing", "postprocessing"):
        compose = content(part)
        compose.transforms = tuple(timed(step, seconds) for step in compose.transforms)
    network, begin = content("network"), [0.0]
    network.register_forward_pre_hook(lambda *_: begin.append(time.perf_counter()))
    network.register_forward_hook(lambda *_: _add(seconds, "network", begin[-1]))
    with redirect_stdout(io.StringIO()):  # the list of the files
        start = time.perf_counter()
        workflow.run()
        seconds["total"] = time.perf_counter() - start
    workflow.finalize()
    return dict(seconds)


def timed(step: Callable[[Any], Any], seconds: dict[str, float]) -> Callable[[Any], Any]:
    """The same transform, whose time is added to its stage."""
    name = STAGES.get(type(step).__name__, type(step).__name__)

    def call(data: Any) -> Any:
        begin = time.perf_counter()
        result = step(data)
        _add(seconds, name, begin)
        return result

    return call


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads of torch, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _add(seconds: dict[str, float], name: str, begin: float) -> None:
    seconds[name] += time.perf_counter() - begin


def _save(volume: Tensor, affine: Any, path: Path) -> None:
    whole = not volume.is_floating_point()
    nib.save(nib.Nifti1Image(volume.numpy().astype(np.int16 if whole else np.float32), affine), path)
