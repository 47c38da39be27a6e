"""Subjects of a data set, records of what is done, their places, and the inference of one after the other."""

import json
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from filelock import FileLock

from shared_transforms.batch.inference import Outcome
from shared_transforms.batch.layout import arrange, datatype_of
from shared_transforms.batch.record import Maker, files_of, read_record
from shared_transforms.batch.table import keep_failure, rows_of, write_table
from shared_transforms.batch.units import Unit, find_units, search_folder, share_of
from shared_transforms.errors import QMRIError
from shared_transforms.io import find_lesion_maps

from .batch_data import MAKER, a_record, batch, open_unit_inference, touch, write_subject

# Units


def test_sessions_are_units_and_derivatives_are_not(tmp_path: Path) -> None:
    touch(
        tmp_path, "sub-02/anat/a.nii", "sub-01/ses-b/anat/a.nii", "sub-01/ses-a/perf/a.nii", "participants.tsv",
        "derivatives/other/sub-03/anat/a.nii", "sub-04.html",
    )  # fmt: skip
    expected = [Unit("sub-01", "ses-a"), Unit("sub-01", "ses-b"), Unit("sub-02")]
    assert find_units(tmp_path) == expected
    assert [unit.label for unit in expected] == ["sub-01_ses-a", "sub-01_ses-b", "sub-02"]
    assert find_units(tmp_path, ["01"], ["ses-b"]) == expected[1:2]
    assert find_units(tmp_path, ["sub-02"]) == expected[2:]


@pytest.mark.parametrize("shards", [1, 3, 4, 20])
def test_shards_share_the_units_without_rest(shards: int) -> None:
    units = [Unit(f"sub-{number:02d}") for number in range(10)]
    parts = [share_of(units, f"{i}/{shards}") for i in range(shards)]
    assert sorted(unit for part in parts for unit in part) == units
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_what_cannot_be_found_is_said(tmp_path: Path) -> None:
    touch(tmp_path, "sub-01/anat/a.nii", "empty/notes.txt")
    for folder, found in ((tmp_path / "no", "no such folder"), (tmp_path / "empty", "no sub-.* folder .notes.txt.")):
        with pytest.raises(QMRIError, match=found):
            find_units(folder)
    with pytest.raises(QMRIError, match="no sub-07"):
        find_units(tmp_path, ["01", "07"])
    with pytest.raises(QMRIError, match="no ses-1"):
        find_units(tmp_path, [], ["1"])
    for shard in ("4/4", "1", "-1/3", "0/0"):
        with pytest.raises(QMRIError, match="shard"):
            share_of([], shard)


def test_derivatives_are_looked_through_where_they_are_named(tmp_path: Path) -> None:
    raw, maps, unit = tmp_path / "raw", tmp_path / "maps", Unit("sub-01", "ses-2")
    for folder, name, values in (
        (raw / "sub-01/ses-2/anat", "sub-01_ses-2_FLAIR", 3.0),
        (raw / "sub-01/ses-1/anat", "sub-01_ses-1_FLAIR", 4.0),
        (maps / "sub-01/ses-2/anat", "sub-01_ses-2_Chimap", 1.0),
        (maps / "sub-01/ses-2/anat", "sub-01_ses-2_label-lesion_mask", 2.0),
        (maps / "sub-02/ses-2/anat", "sub-02_ses-2_Chimap", 5.0),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(np.full((4, 4, 4), values, np.float32), np.eye(4)), folder / f"{name}.nii.gz")
    (raw / "FLAIR.json").write_text('{"EchoTime": 0.1}')
    with search_folder(unit, raw, [maps]) as (folder, real):
        [item] = find_lesion_maps(folder)
        chi, flair, mask = (real(path) for path in item["image"])
        assert (folder / "FLAIR.json").is_file(), "sidecars are inherited from above"
    assert flair == str(raw / "sub-01/ses-2/anat/sub-01_ses-2_FLAIR.nii.gz")
    names = ("Chimap", "label-lesion_mask")
    assert [chi, mask] == [str(maps / f"sub-01/ses-2/anat/sub-01_ses-2_{n}.nii.gz") for n in names]
    with search_folder(unit, raw, []) as (folder, real):
        assert folder == raw / "sub-01/ses-2" and real("as it is") == "as it is"


# Records


def test_a_record_holds_until_maker_input_or_output_changes(tmp_path: Path) -> None:
    image, folder = tmp_path / "image.nii", tmp_path / "out"
    image.write_text("voxels")
    files = {"bids:raw:image.nii": image}
    (tmp_path / "record.json").write_bytes(a_record(folder, files).as_json())
    record = read_record(tmp_path / "record.json")
    assert record is not None and record.holds(folder, MAKER, files)

    os.utime(image, ns=(1, 1))
    assert record.holds(folder, MAKER, files), "a copy with another time is the same input"
    image.write_text("VOXELS")
    assert not record.holds(folder, MAKER, files), "other voxels of the same size"
    image.write_text("voxels")
    assert not record.holds(folder, MAKER, files | {"bids:raw:mask.nii": image}), "a mask was added"
    assert not record.holds(folder, MAKER, {}), "an input was removed"
    for changed in (Maker("bundle", "1.1.0", "ab12", "cd34"), Maker("bundle", "1.0.0", None, "cd34")):
        assert not record.holds(folder, changed, files)
    (folder / "anat/map.json").write_text("cut")
    assert not record.holds(folder, MAKER, files)
    (folder / "anat/map.json").unlink()
    assert not record.holds(folder, MAKER, files)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"made_by": 3}', '{"made_by": {}, "other": 1}'])
def test_a_damaged_record_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(content)
    assert read_record(tmp_path / "record.json") is None
    assert read_record(tmp_path / "absent.json") is None


def test_files_of_items_are_images_masks_and_every_sidecar(tmp_path: Path) -> None:
    image = write_subject(tmp_path, Unit("sub-01"))
    touch(tmp_path, "sub-01/anat/sub-01_mask.nii.gz", "IRT1.json", "MESE.json")
    mask = tmp_path / "sub-01/anat/sub-01_mask.nii.gz"
    notes = ["a / b", "a note longer than a name can be / " * 200]
    items = [{"image": [str(image)], "mask": str(mask), "stem": "sub-01", "notes": notes, "phase": None}]
    expected = {image, mask, image.with_name("sub-01_IRT1.json"), tmp_path / "IRT1.json"}
    assert set(files_of(items)) == expected


# Layout


def test_files_lie_as_bids_has_them_and_name_their_sources(tmp_path: Path) -> None:
    written, arranged = tmp_path / "w", tmp_path / "a"
    stem = "sub-01_acq-x"
    touch(written, f"{stem}/{stem}_T1map.nii.gz", f"{stem}/sheets/page.png")
    (written / stem / f"{stem}_T1map.json").write_text(json.dumps({"Sources": ["../../raw/a.nii"], "Units": "s"}))
    page = f"<code>{stem}/{stem}_T1map.nii.gz</code> <code>{stem}/report.html</code>"
    (written / stem / "report.html").write_text(page)
    files = arrange(written, arranged, {stem: "anat"}, lambda p: f"bids:raw:{p.relative_to(tmp_path / 'raw')}")
    names = [f"{stem}_{n}" for n in ("T1map.json", "T1map.nii.gz", "report.html", "sheets_page.png")]
    assert sorted(file.as_posix() for file in files) == [f"anat/{name}" for name in names]
    assert json.loads((arranged / "anat" / names[0]).read_text()) == {"Sources": ["bids:raw:a.nii"], "Units": "s"}
    assert (arranged / "anat" / names[2]).read_text() == f"<code>{names[1]}</code> <code>{names[2]}</code>"


@pytest.mark.parametrize(
    ("image", "expected"),
    [("/d/sub-1/anat/a.nii", "anat"), ("/perf/sub-1/ses-2/perf/a.nii", "perf"), ("/perf/sub-1/a.nii", "anat"),
     ("/d/sub-1/scans/a.nii", "anat")],
)  # fmt: skip
def test_the_datatype_is_that_of_the_image(image: str, expected: str) -> None:
    assert datatype_of(image, "sub-1") == expected


# The table


def test_the_table_tells_of_every_unit_what_lies_on_the_disk(tmp_path: Path) -> None:
    units = [Unit(f"sub-{n}", "ses-1") for n in range(5)]
    (tmp_path / "in.nii").write_text("x")
    record = a_record(units[0].below(tmp_path), {"i": tmp_path / "in.nii"})
    (units[0].below(tmp_path) / "sub-0_ses-1_batch.json").write_bytes(record.as_json())
    keep_failure(tmp_path, units[1], Outcome("failed", 2.0, "file: a\tb\nfield: c"))
    keep_failure(tmp_path, units[2], Outcome("absent", 0.1, "none"))
    rows = rows_of(tmp_path, units, MAKER, running=[units[3]])
    assert [row["status"] for row in rows] == ["done", "failed", "absent", "running", "pending"]
    assert rows_of(tmp_path, units[:1], Maker("bundle", "1.1.0", "ab12", "cd34"))[0]["status"] == "pending", "outdated"
    write_table(tmp_path, rows, {"seed": None})
    lines = (tmp_path / "batch.tsv").read_text().splitlines()
    assert lines[0].split("\t") == ["subject", "session", "status", "seconds", "peak_memory_mb", "message"]
    assert lines[2].split("\t") == ["sub-1", "ses-1", "failed", "2.0", "0.0", "file: a b field: c"]
    assert json.loads((tmp_path / "batch.json").read_text())["Provenance"] == {"seed": None}
    keep_failure(tmp_path, units[1], Outcome("done", 2.0))
    assert rows_of(tmp_path, units[1:2], MAKER)[0]["status"] == "pending", "mended, and its maps are elsewhere"


# Inference


def test_a_unit_is_done_once_and_again_where_its_input_changed(tmp_path: Path) -> None:
    data, output = tmp_path / "data", tmp_path / "data/derivatives/maps"
    units = [Unit("sub-01", "ses-1"), Unit("sub-01", "ses-2"), Unit("sub-02", "ses-1")]
    images = [write_subject(data, unit, t1) for unit, t1 in zip(units, (0.8, 1.2, 1.0), strict=True)]
    images[2].write_bytes(images[2].read_bytes()[:-40])
    (data / "sub-03/anat").mkdir(parents=True)
    infer = open_unit_inference(data, output)
    outcomes = [infer(unit) for unit in [*units, Unit("sub-03")]]
    assert [outcome.status for outcome in outcomes] == ["done", "done", "failed", "absent"]
    for part in (f"file: {images[2]}", "field: file content", "found: a truncated", "expected:", "remedy:"):
        assert part in outcomes[2].message
    assert not (output / "sub-02").exists() and not (output / "sub-03").exists()
    maps = [unit.below(output) / f"anat/{unit.label}_T1map.nii.gz" for unit in units[:2]]
    assert [float(np.median(nib.load(m).get_fdata())) for m in maps] == pytest.approx([0.8, 1.2], rel=0.1)
    sidecar = json.loads((maps[0].with_name("sub-01_ses-1_T1map.json")).read_text())
    assert sidecar["Sources"] == ["bids:raw:sub-01/ses-1/anat/sub-01_ses-1_IRT1.nii.gz"]
    record = read_record(output / "sub-01/ses-1/sub-01_ses-1_batch.json")
    assert record is not None
    written = {p.relative_to(output / "sub-01/ses-1").as_posix() for p in maps[0].parent.iterdir()}
    assert set(record.outputs) == written and len(record.inputs) == 2

    assert [open_unit_inference(data, output)(unit).status for unit in units[:2]] == ["kept", "kept"]
    write_subject(data, units[1], 0.6)
    write_subject(data, units[2])
    again = open_unit_inference(data, output)
    assert [again(unit).status for unit in units] == ["kept", "done", "done"]
    assert float(np.median(nib.load(maps[1]).get_fdata())) == pytest.approx(0.6, rel=0.1)
    assert open_unit_inference(data, output, "2.0.0")(units[0]).status == "done"
    with FileLock(output / ".batch/locks/sub-01_ses-1.lock"):
        assert open_unit_inference(data, output)(units[0]).status == "running"


def test_what_is_no_fault_of_the_input_is_told_with_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_subject(tmp_path / "data", Unit("sub-01"))
    infer = open_unit_inference(tmp_path / "data", tmp_path / "maps")

    def full(*_: object) -> None:
        print("said before")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(infer, "_infer", full)
    outcome = infer(Unit("sub-01"))
    assert outcome.status == "failed" and "No space left" in outcome.message
    assert "said before" in outcome.details and "Traceback" in outcome.details
    assert not (tmp_path / "maps/sub-01").exists()


# What is refused before anything starts


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_subject(tmp_path / "data", Unit("sub-01"))
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"overlay": "t3.json"}, "overlay"),
        ({"overlay": "smoke.json"}, "--"),
        ({"options": {"slices_at_onc": 2}}, "--slices_at_onc"),
        ({"options": {"inferer#slice_at_once": 2}}, "--inferer#slice_at_once"),
        ({"options": {"output_dir": "x"}}, "options"),
        ({"options": "slices_at_once"}, "options"),
        ({"options": {"slices_at_once": {1}}}, "options"),
        ({"processes": 0}, "processes"),
        ({"threads": "two"}, "threads"),
        ({"derivatives": "nowhere"}, "derivatives"),
        ({"shard": "3/2"}, "shard"),
        ({"subjects": "09"}, "subjects"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    options: dict[str, Any], field: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(QMRIError) as error:
        batch(data, tmp_path / "maps", **options)
    assert (error.value.field or "").startswith(field)
    assert not (tmp_path / "maps").exists()


def test_maps_do_not_go_among_the_raw_data(data: Path) -> None:
    for output in (data, data / "sub-01", data / "sub-01/maps"):
        with pytest.raises(QMRIError, match="raw data"):
            batch(data, output)


def test_the_exit_status_tells_of_failures_and_of_nothing_found(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for status, expected in (("failed", 1), ("done", 0)):
        given = [(Unit("sub-01"), Outcome(status, 1.0, "why"))]  # type: ignore[arg-type]
        monkeypatch.setattr("shared_transforms.batch.run.in_processes", lambda *_, given=given: iter(given))
        run = batch(data, tmp_path / "maps")
        run.run()
        assert run.status == expected
    given = [(Unit("sub-01"), Outcome("absent", 1.0, "no such image"))]
    monkeypatch.setattr("shared_transforms.batch.run.in_processes", lambda *_: iter(given))
    with pytest.raises(QMRIError, match=r"no images of this kind in any of 1; sub-01: no such image"):
        batch(data, tmp_path / "maps").run()
