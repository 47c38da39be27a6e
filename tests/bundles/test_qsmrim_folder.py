"""A user's own subjects as a cohort."""

from __future__ import annotations

import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from qsmrim_net.cohort.folder import cohort_from_folder
from qsmrim_net.cohort.source import load_cohort

from shared_transforms.errors import QMRIError

from .rim_subject import LESIONS, PLAIN, ROOT, SHAPE, VOXEL, subject, write
from .trainings import Training

# Lesions are numbered by their first voxel along x: those of LESIONS in this order.
ORDER = (0, 2, 4, 1, 3)
LINES = "1\t1\t1\t1\n2\t0\t0\t1\n3\t0\t0\t0\n4\t0\t0\t0\n5\t0\tn/a\t\n"
OWN = "id\trim\trater_1\trater_2\n" + LINES


def common(*stems: str) -> str:
    lines = [f"{stem}\t{line}" for stem in stems for line in LINES.splitlines()]
    return "\n".join(["subject\tid\trim\trater_1\trater_2", *lines]) + "\n"


def voxels_of(number: int) -> int:
    """Of a lesion, as it was drawn."""
    x, y, z = np.indices(SHAPE)
    (a, b, c), radius = LESIONS[number]
    return int((np.sqrt((x - a) ** 2 + (y - b) ** 2 + (4.0 * (z - c)) ** 2) <= radius).sum())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subjects."""
    root = tmp_path_factory.mktemp("subjects")
    for stem in ("sub-01", "sub-02"):
        write(root / stem, stem=stem)
    return root


def test_every_lesion_has_the_answer_of_its_line(folder: Path) -> None:
    (folder / "lesions.tsv").write_text(common("sub-02", "sub-01"))
    table = cohort_from_folder(folder)
    assert table.subject.tolist() == [0] * 5 + [1] * 5 and table.lesion.tolist() == [1, 2, 3, 4, 5] * 2
    assert table.label.tolist() == [1, 0, 0, 0, 0] * 2
    assert table.raters[:5].tolist() == [[1, 1], [0, 1], [0, 0], [0, 0], [-1, -1]]
    assert table.voxels[:5].tolist() == [voxels_of(k) for k in ORDER]
    assert torch.allclose(table.volume_ml, table.voxels * math.prod(VOXEL) / 1000)
    assert (table.image != 0).any(1).sum((1, 2, 3)).tolist() == table.voxels.tolist()
    # The lesion with a rim of 60 ppb is the one that is called so; one voxel has no features.
    brightest = table.image[:5, 0].flatten(1).quantile(0.99, 1)
    assert int(brightest.argmax()) == 0
    assert table.status[:5].tolist() == [0, 0, 1, 0, 0]
    assert torch.equal(table.features.isnan().all(1), table.status != 0)
    assert (table.kind == -1).all() and table.amplitude.isnan().all()


def test_a_file_for_each_subject_beside_its_images(folder: Path, tmp_path: Path) -> None:
    for stem in ("sub-01", "sub-02"):
        write(tmp_path / stem, stem=stem)
        (tmp_path / stem / f"{stem}_lesions.tsv").write_text(OWN)
    (folder / "lesions.tsv").write_text(common("sub-01", "sub-02"))
    first, second = cohort_from_folder(tmp_path), cohort_from_folder(folder)
    assert torch.equal(first.image, second.image) and torch.equal(first.raters, second.raters)


def test_lesions_with_numbers_of_their_own(tmp_path: Path) -> None:
    """And a unit that only the user knows, and other voxels than those of the patches."""
    volumes = subject()
    own = (12, 7, 30, 2, 9)
    for number, (middle, radius) in zip(own, LESIONS, strict=True):
        box = (2, *(slice(int(m - radius), int(m + radius) + 1) for m in middle))
        volumes[box][volumes[box] > 0] = number
    write(tmp_path / "one", volumes, unit=None)
    (tmp_path / "one" / "lesions.tsv").write_text("id\trim\n12\t1\n7\t0\n30\t0\n2\t0\n9\t0\n")
    with pytest.raises(QMRIError, match="unit"):
        cohort_from_folder(tmp_path / "one")
    options = {"qsm_unit": "ppb", "voxel_size_mm": (1.5, 1.5, 3.0)}
    table = load_cohort(tmp_path / "one", size=(12, 12, 8), reading=options)
    assert table.lesion.tolist() == sorted(own) and table.label.tolist() == [0, 0, 0, 1, 0]
    assert table.image.shape[2:] == (12, 12, 8) and (table.raters == -1).all()
    assert int(table.voxels[3]) == voxels_of(0)  # of the file
    seen = int((table.image[3] != 0).any(0).sum())
    assert seen == pytest.approx(voxels_of(0) / 4, rel=0.25)


@pytest.mark.parametrize(
    ("text", "field", "said"),
    [
        (OWN.replace("4\t0\t0\t0\n", ""), "id", "no line for lesion 4"),
        (OWN + "9\t0\t0\t0\n", "id", "lines for 9"),
        (OWN + "2\t0\t0\t0\n", "id", "not the first"),
        (OWN.replace("4\t", "four\t"), "id", "'four'"),
        (OWN.replace("2\t0\t0\t1", "2\tyes\t0\t1"), "rim", "'yes' in line 3"),
        (OWN.replace("2\t0\t0\t1", "2\t0\t0\t2"), "rater_2", "'2'"),
        (OWN.replace("rim", "RIM"), "rim", "RIM"),
        (OWN.replace("\t", ","), "id", "columns"),
        ("id\trim\n", "file content", "no line"),
        (common("sub-01", "sub-03"), "subject", "'sub-03'"),
        (None, "lesions.tsv", "no lesions.tsv"),
    ],
)
def test_tables_that_do_not_fit_are_refused(text: str | None, field: str, said: str, tmp_path: Path) -> None:
    write(tmp_path / "one")
    if text is not None:
        (tmp_path / "one" / "lesions.tsv").write_text(text)
    with pytest.raises(QMRIError) as caught:
        cohort_from_folder(tmp_path / "one")
    assert caught.value.field == field and said in caught.value.found


def test_a_table_that_is_no_text_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "one")
    (tmp_path / "one" / "lesions.tsv").write_bytes(OWN.encode("utf-16"))
    with pytest.raises(QMRIError, match="UTF-8"):
        cohort_from_folder(tmp_path / "one")


def test_subjects_must_be_named_where_there_are_several(folder: Path) -> None:
    (folder / "lesions.tsv").write_text(OWN)
    with pytest.raises(QMRIError, match="a column subject"):
        cohort_from_folder(folder)


def test_images_that_inference_refuses_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "one")
    (tmp_path / "one" / "lesions.tsv").write_text(OWN)
    moved = PLAIN.copy()
    moved[0, 3] += 20
    nib.save(nib.Nifti1Image(subject()[1].astype(np.float32), moved), tmp_path / "one" / "sub-01_FLAIR.nii.gz")
    with pytest.raises(QMRIError, match="FLAIR"):
        cohort_from_folder(tmp_path / "one")


def test_the_config_reads_as_inference_does(folder: Path, tmp_path: Path) -> None:
    """Every option of train.json's reading is one of inference.json, with the same value."""
    (folder / "lesions.tsv").write_text(common("sub-01", "sub-02"))
    run = Training("qsmrim_net", {}).workflow(tmp_path, cohort_dir=str(folder), folds=2, initialize=[])
    assert len(run.parser.get_parsed_content("training")) == len(run.parser.get_parsed_content("held_out")) == 5
    inference = json.loads((ROOT / "configs/inference.json").read_text())
    reading = run.parser.get_parsed_content("reading")
    names = {"split": "split_confluent"}
    assert reading == {name: inference[names.get(name, name)] for name in reading}
