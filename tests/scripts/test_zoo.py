"""The model zoo's conventions are rules, and its list of bundles is written as it writes it."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from bundle_files import BundleError, read_bundle
from bundle_rules import static_faults
from pack_bundle import distribute, main

SOURCE = "https://example.org/releases/download/v1"
VIOLATIONS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no display name": (lambda root: edit(root, "metadata", lambda m: m.pop("name")), "metadata.json: name: is not"),
    "changelog ahead": (
        lambda root: edit(root, "metadata", lambda m: m["changelog"].update({"0.10.0": "later"})),
        "version: is 0.2.1, but the changelog knows 0.10.0",
    ),
    "empty licence": (lambda root: (root / "LICENSE").write_text(" \n"), "LICENSE: -: is empty"),
    "empty card": (lambda root: (root / "docs/README.md").write_text(""), "docs/README.md: -: is empty"),
    "empty data licence": (
        lambda root: (root / "docs/data_license.txt").write_text(""),
        "data_license.txt: -: is empty",
    ),
    "downloads": (lambda root: (root / "large_files.yml").write_text("large_files: []"), "large_files.yml: -: names"),
    "inline interval": (lambda root: validation(root, interval=2), "train#handlers#0#interval: is 2"),
    "other evaluator": (lambda root: validation(root, validator="@evaluator"), "#validator: is @evaluator"),
}


def edit(root: Path, config: str, change: Callable[[dict], object]) -> None:
    path = root / f"configs/{config}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def validation(root: Path, **changes: object) -> None:
    handler = {"_target_": "ValidationHandler", "validator": "@validate#evaluator", "interval": "@val_interval"}
    edit(root, "train", lambda train: train["train"].update(handlers=[handler | changes]))


def faults(root: Path) -> list[str]:
    return [str(fault) for fault in static_faults(read_bundle(root))]


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_violation_is_named(tinymap: Path, name: str) -> None:
    assert faults(tinymap) == []
    violate, expected = VIOLATIONS[name]
    violate(tinymap)
    [fault] = faults(tinymap)
    assert expected in fault and "cure: " in fault


def test_the_handler_that_monai_looks_for_is_clean(tinymap: Path) -> None:
    validation(tinymap, validator="@validate::evaluator")
    assert faults(tinymap) == []


@pytest.mark.parametrize("name", ["TinyMap", "tiny-map", "tiny_", "2d_map", "map_v2_head"])
def test_names_that_the_zoo_cannot_read_are_refused(tinymap: Path, name: str) -> None:
    root = tinymap.rename(tinymap.with_name(name))
    assert any(f"{name}: is no name for a bundle" in fault for fault in faults(root))


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    """What runs the code of a bundle takes ten seconds and has tests of its own."""
    monkeypatch.setattr("pack_bundle.check", lambda root: static_faults(read_bundle(root)))
    monkeypatch.setattr("pack_bundle.REPOSITORY", repository)


@pytest.mark.usefixtures("unchecked")
def test_dist_lists_what_it_packed_and_what_was_there(repository: Path, tinymap: Path, tmp_path: Path) -> None:
    output = tmp_path / "dist"
    distribute(["tinymap"], output, repository, SOURCE)
    edit(tinymap, "metadata", lambda m: m.update(version="0.10.0", changelog={"0.10.0": "next", **m["changelog"]}))
    paths = distribute(["tinymap"], output, repository, SOURCE.replace("v1", "v2") + "/")
    assert [path.name for path in paths] == ["tinymap_v0.10.0.zip", "SHA256SUMS", "model_info.json"]
    info = json.loads((output / "model_info.json").read_text())
    assert list(info) == ["tinymap_v0.2.1", "tinymap_v0.10.0"]  # by number, not by letter
    assert info["tinymap_v0.2.1"]["source"] == f"{SOURCE}/tinymap_v0.2.1.zip"
    assert info["tinymap_v0.10.0"]["source"] == f"{SOURCE.replace('v1', 'v2')}/tinymap_v0.10.0.zip"
    for name, entry in info.items():
        content = (output / f"{name}.zip").read_bytes()
        assert entry["checksum"] == hashlib.sha1(content).hexdigest()
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
    checked = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=output, capture_output=True, text=True, check=True)
    assert checked.stdout == "tinymap_v0.2.1.zip: OK\ntinymap_v0.10.0.zip: OK\n"


@pytest.mark.usefixtures("unchecked")
def test_dist_twice_gives_the_same_bytes(repository: Path, tmp_path: Path) -> None:
    contents = []
    for _ in range(2):
        assert main(["--output", str(tmp_path / "dist")]) == 0
        contents.append({path.name: path.read_bytes() for path in (tmp_path / "dist").iterdir()})
    assert contents[0] == contents[1]
    assert set(contents[0]) == {"tinymap_v0.2.1.zip", "model_info.json", "SHA256SUMS"}
    assert json.loads(contents[0]["model_info.json"])["tinymap_v0.2.1"]["source"] == "tinymap_v0.2.1.zip"


@pytest.mark.usefixtures("unchecked")
def test_a_fault_of_one_bundle_leaves_all_as_it_was(
    repository: Path, tinymap: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "dist"
    other = shutil.copytree(tinymap, tinymap.with_name("other"))
    (other / "tinymap").rename(other / "other")
    for path in other.glob("configs/*.json"):
        path.write_text(path.read_text().replace("tinymap.", "other."))
    assert main(["--output", str(output)]) == 0
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    assert len(before) == 4
    (other / "tinymap.txt").touch()
    (other / "other/extra.py").touch()
    (tinymap / "LICENSE").unlink()
    assert main(["other", "tinymap", "--output", str(output)]) == 1
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert "other tinymap: nothing is packed, 1 fault(s)" in capsys.readouterr().err
    (tinymap / "LICENSE").write_text("Apache-2.0")
    assert main(["other", "--output", str(output)]) == 0
    assert "other_v0.2.1.zip has changed: raise the version" in capsys.readouterr().err


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("text", ["{", "[]", '{"tinymap_v0.1.0": 3}'])
def test_a_list_that_cannot_be_read_is_no_reason_to_lose_it(repository: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "model_info.json").write_text(text)
    with pytest.raises(BundleError, match="model_info.json"):
        distribute(["tinymap"], tmp_path, repository)
    assert (tmp_path / "model_info.json").read_text() == text and not list(tmp_path.glob("*.zip"))
