"""Batches that are started again, after an end at any moment, and with other data, options or bundles."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

from shared_transforms.batch.inference import Outcome
from shared_transforms.batch.layout import derivative_names, describe, place
from shared_transforms.batch.record import Maker
from shared_transforms.batch.run import BatchInference
from shared_transforms.batch.units import Unit
from shared_transforms.errors import QMRIError

from .batch_data import ROOT, a_record, batch, open_unit_inference, touch, write_subject

SOFTWARE = {"Name": "bundle", "Version": "1.0.0"}


# The files of a unit


class Killed(BaseException):
    """The process ends here."""


def kill_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process end before the given change of the disk."""
    left = [step]

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return change(*arguments, **keywords)

        return wrapped

    for owner, name in ((os, "rename"), (os, "replace"), (os, "unlink"), (os, "mkdir"), (shutil, "rmtree")):
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
    monkeypatch.setattr(Path, "unlink", counted(Path.unlink))


def files_below(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("earlier", [False, True])
def test_killed_at_any_moment_a_unit_with_a_record_is_whole(
    earlier: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = {"anat/old.nii.gz": "old", "anat/map.nii.gz": "old", "r.json": "old"} if earlier else {}
    new = {"anat/map.nii.gz": "new", "perf/other.nii.gz": "new", "r.json": "new"}
    hand = {"anat/by_hand.txt": "kept"} if earlier else {}
    last = {"anat/map.nii.gz": "last", "r.json": "last"}
    finished = False
    for step in range(60):
        folder, arranged, begun = (tmp_path / f"{step}/{name}" for name in ("sub-01", "arranged", "begun.json"))
        for place_of, texts in ((folder, old | hand), (arranged, new)):
            touch(place_of, *texts)
            for name, text in texts.items():
                (place_of / name).write_text(text)
        with monkeypatch.context() as patch:
            kill_at(step, patch)
            try:
                place(arranged, folder, "r.json", begun, [name for name in old if name != "r.json"])
                finished = True
            except Killed:
                pass
        found = files_below(folder)
        assert found.items() >= hand.items()
        if finished or "r.json" in found:
            assert found == hand | (new if finished or found["r.json"] == "new" else old)
        # The next run, which knows the files of the earlier ones from their record alone, leaves its own and no others.
        recorded = {"old": old, "new": new}.get(found.get("r.json", ""), {})
        touch(again := tmp_path / f"{step}/again", *last)
        for name, text in last.items():
            (again / name).write_text(text)
        place(again, folder, "r.json", begun, [name for name in recorded if name != "r.json"])
        assert files_below(folder) == hand | last and not begun.exists()
        if finished:
            break
    assert finished and step >= (5 if earlier else 1)


@pytest.mark.parametrize("by", ["options", "overlay"])
def test_a_unit_is_done_again_where_a_file_that_the_config_names_changed(
    by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_subject(tmp_path / "data", Unit("sub-01"))
    touch(tmp_path, "mask.txt", "overlay.json")
    (tmp_path / "overlay.json").write_text('{"regions": {"mask_file": "mask.txt"}}')

    def status() -> str:
        options = {"mask_file": "mask.txt"} if by == "options" else {}
        overlays = (tmp_path / "overlay.json",) if by == "overlay" else ()
        infer = open_unit_inference(tmp_path / "data", tmp_path / "maps", overlays=overlays, **options)
        return infer(Unit("sub-01")).status

    assert [status(), status()] == ["done", "kept"]
    (tmp_path / "mask.txt").write_text("another mask")
    assert [status(), status()] == ["done", "kept"]


# The derivative


def test_the_description_is_that_of_a_derivative(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    for version in ("1.0.0", "1.1.0"):
        describe(tmp_path / "raw/derivatives/maps", {"Name": "b", "Version": version}, {"raw": tmp_path / "raw"})
    content = json.loads((tmp_path / "raw/derivatives/maps/dataset_description.json").read_text())
    assert content["DatasetType"] == "derivative" and content["DatasetLinks"] == {"raw": "../.."}
    assert content["GeneratedBy"] == [{"Name": "b", "Version": "1.1.0"}]
    touch(tmp_path / "raw", "sub-01/anat/a.nii.gz")
    with pytest.raises(QMRIError, match="no derivative"):
        describe(tmp_path / "raw", {"Name": "b", "Version": "1"}, {})


def links(output: Path) -> dict[str, str]:
    content: dict[str, dict[str, str]] = json.loads((output / "dataset_description.json").read_text())
    return content["DatasetLinks"]


def test_a_link_keeps_its_data_set_and_each_data_set_its_link(tmp_path: Path) -> None:
    maps, masks, moved, output = (tmp_path / name for name in ("maps", "masks", "moved", "out"))
    for folder in (maps, masks, output):
        folder.mkdir()
    foreign = {"derivative1": "doi:10.1/x", "templates": "https://templateflow.org"}
    description = {"DatasetType": "derivative", "DatasetLinks": foreign, "Name": "n"}
    (output / "dataset_description.json").write_text(json.dumps(description))

    def run(*derivatives: Path) -> tuple[str, ...]:
        names = derivative_names(output, derivatives)
        describe(output, SOFTWARE, {"raw": tmp_path, **dict(zip(names, derivatives, strict=True))})
        return names

    assert run(maps) == ("derivative0",)
    assert run(masks) == ("derivative2",)
    assert run(masks, maps) == ("derivative2", "derivative0")
    assert links(output) == foreign | {"raw": "..", "derivative0": "../maps", "derivative2": "../masks"}
    maps.rename(moved)
    assert run(moved) == ("derivative0",)
    assert links(output)["derivative0"] == "../moved"


def test_lines_of_others_in_bidsignore_are_kept(tmp_path: Path) -> None:
    (tmp_path / ".bidsignore").write_text("notes/\n*.json")
    for _ in range(2):
        describe(tmp_path, SOFTWARE, {})
    lines = (tmp_path / ".bidsignore").read_text().splitlines()
    assert lines[:2] == ["notes/", "*.json"] and "!*_T1map.*" in lines
    assert len(set(lines)) == len(lines)


# The batch


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("sub-01", "sub-02"):
        write_subject(tmp_path / "data", Unit(name))
    return tmp_path / "data"


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is started."""
    monkeypatch.setattr("shared_transforms.batch.run.in_processes", lambda *_: iter(()))


@pytest.mark.usefixtures("idle")
def test_other_maps_are_not_written_over_unless_asked_for(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "maps"
    assert batch(data, output).run()[0]["status"] == "pending"
    batch(data, output, processes=2, threads=3).run()
    with pytest.raises(QMRIError, match="maps made with overlay"):
        batch(data, output, overlay="t2.json").run()
    with pytest.raises(QMRIError, match="maps made with options"):
        batch(data, output, options={"slices_at_once": 1}).run()
    batch(data, output, overlay="t2.json", replace=True).run()
    with pytest.raises(QMRIError, match="a batch of rim_relaxometry"):
        BatchInference("qsmgan", ROOT, data, output, overlay="t2.json", replace=True).run()


@pytest.mark.usefixtures("idle")
def test_maps_of_another_data_set_are_not_mixed_in_unless_asked_for(data: Path, tmp_path: Path) -> None:
    output, second = tmp_path / "maps", tmp_path / "second"
    batch(data, output).run()
    shutil.copytree(data, second)
    with pytest.raises(QMRIError, match=f"maps of {data}"):
        batch(second, output).run()
    assert links(output) == {"raw": "../data"}
    batch(second, output, replace=True).run()
    assert links(output) == {"raw": "../second"}
    second.rename(tmp_path / "moved")
    batch(tmp_path / "moved", output).run()
    assert links(output) == {"raw": "../moved"}


@pytest.mark.usefixtures("idle")
def test_maps_of_an_earlier_version_are_pending(data: Path, tmp_path: Path) -> None:
    run = batch(data, tmp_path / "maps")
    made_by = run.recipe.maker()
    for name, version in (("sub-01", made_by.version), ("sub-02", "0.0.1")):
        maker = Maker(made_by.name, version, made_by.weights_sha256, made_by.config_sha256)
        record = a_record(tmp_path / "maps" / name, {}, maker)
        (tmp_path / f"maps/{name}/{name}_batch.json").write_bytes(record.as_json())
    (tmp_path / "maps/dataset_description.json").write_text('{"DatasetType": "derivative"}')
    assert [row["status"] for row in run.run()] == ["done", "pending"]


def test_a_run_that_is_ended_leaves_a_table_of_what_it_did(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> Iterator[tuple[Unit, Outcome]]:
        yield Unit("sub-01"), Outcome("failed", 1.0, "why")
        raise KeyboardInterrupt

    monkeypatch.setattr("shared_transforms.batch.run.in_processes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        batch(data, tmp_path / "maps").run()
    lines = [line.split("\t") for line in (tmp_path / "maps/batch.tsv").read_text().splitlines()[1:]]
    assert [line[2] for line in lines] == ["failed", "pending"]


@pytest.mark.parametrize("bundle", sorted(path.name for path in ROOT.parent.iterdir() if path.is_dir()))
def test_the_config_exits_where_a_unit_failed_and_else_returns(bundle: str) -> None:
    parser = ConfigParser(ConfigParser.load_config_file(str(ROOT.parent / bundle / "configs/batch.json")))
    for status in (0, 1):
        parser["batch"] = {"_target_": "types.SimpleNamespace", "status": status}
        if status:
            with pytest.raises(SystemExit, match="1"):
                parser.get_parsed_content("finalize")
        else:
            assert parser.get_parsed_content("finalize") == [None]
