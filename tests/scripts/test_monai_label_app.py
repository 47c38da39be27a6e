"""The app folder for MONAI Label, without a server."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from bundle_files import REPOSITORY, BundleError, bundle_names
from monai_label import ENVIRONMENT, MARKER, STAMP, VARIANTS, build_app, main, server_command

BUNDLES = REPOSITORY / "bundles"
pytestmark = pytest.mark.xdist_group("packed")


@pytest.fixture(scope="module")
def app(packed: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("label") / "app"
    bundles = [packed(name) for name in ("qsmgan", "rim_relaxometry", "deepspio")]
    found = build_app(bundles, folder)
    assert list(found) == ["deepspio", "qsmgan", "qsmgan_local_field", "rim_relaxometry", "rim_relaxometry_t2"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in found.values())
    assert (folder / "main.py").is_file()
    assert build_app(bundles, folder) == found  # again, over the old one
    return folder


def inference(model: Path) -> dict[str, object]:
    config: dict[str, object] = json.loads((model / "configs/inference.json").read_text())
    return config


def test_a_variant_is_a_model_of_its_own(app: Path, packed: Callable[[str], Path]) -> None:
    t2 = inference(app / "model/rim_relaxometry_t2")
    overlay = json.loads((BUNDLES / "rim_relaxometry/configs/t2.json").read_text())
    base = inference(packed("rim_relaxometry"))
    assert {key: t2[key] for key in overlay} == overlay
    changed = {key for key in base if t2[key] != base[key]}
    assert changed == {"_desc_", "parameter", "times_s", "weights", "displayable_configs"}
    weights = (app / "model/rim_relaxometry_t2/models/model.pt").read_bytes()
    assert weights == (BUNDLES / "rim_relaxometry/models/model_t2.pt").read_bytes()
    assert inference(app / "model/qsmgan_local_field")["input_kind"] == "local_field"
    assert inference(app / "model/qsmgan") == inference(packed("qsmgan"))


@pytest.mark.parametrize("bundle", bundle_names())
def test_what_a_viewer_shows_is_read(bundle: str) -> None:
    """Every value that a user may set is one that the first transform takes; nothing in a config refers to it."""
    config = inference(BUNDLES / bundle)
    shown = dict(config["displayable_configs"])  # type: ignore[call-overload]
    [request] = [t for t in config["preprocessing"]["transforms"] if t["_target_"].endswith(".ReadRequestd")]  # type: ignore[index]
    assert "displayable_configs" not in json.dumps(
        {key: value for key, value in config.items() if key not in ("displayable_configs", "_desc_")}
    )
    offered = [shown, *(v.values["displayable_configs"] for v in VARIANTS.values() if v.bundle == bundle)]
    values = {name for configs in offered for name in configs} - {"map"}
    assert values == set(request.get("options", []))
    assert config["postprocessing"]["transforms"][-1]["_target_"].endswith(".AnswerMapd")  # type: ignore[index]


def test_the_page_lists_what_is_offered() -> None:
    page = (REPOSITORY / "docs/monai_label.md").read_text()
    offered = {name: inference(BUNDLES / name)["displayable_configs"] for name in bundle_names()}
    offered |= {name: variant.values["displayable_configs"] for name, variant in VARIANTS.items()}
    rows = {
        row[0].strip("` "): row
        for row in (line.strip("|").split("|") for line in page.splitlines() if line.startswith("| `"))
    }
    assert sorted(rows) == sorted(offered)
    for name, configs in offered.items():
        maps, values = (re.findall("`([^`]+)`", cell) for cell in rows[name][3:5])
        assert maps == configs["map"], name  # type: ignore[index]
        assert values == [key for key in configs if key != "map"], name  # type: ignore[attr-defined]


def version_of(bundle: Path, version: str, folder: Path) -> Path:
    """A packed bundle, small, as another version of it."""
    root = folder / version / bundle.name
    metadata = json.loads((bundle / "configs/metadata.json").read_text()) | {"version": version}
    package = root / f"{bundle.name}_v{version.replace('.', '_')}"
    for made in (root / "configs", package / "physics", package / "shared_transforms"):
        made.mkdir(parents=True)
    (root / "configs/metadata.json").write_text(json.dumps(metadata))
    return root


def test_the_newest_version_of_a_bundle_is_served(tmp_path: Path) -> None:
    old, newest, new = (version_of(BUNDLES / "deepspio", v, tmp_path) for v in ("0.2.0", "0.10.0", "0.9.1"))
    assert build_app([old, newest, new], tmp_path / "app") == {"deepspio": "0.10.0"}
    assert (tmp_path / "app/model/deepspio/deepspio_v0_10_0").is_dir()
    assert not (tmp_path / "app/model/deepspio/deepspio_v0_2_0").exists()


def test_bundles_that_cannot_be_served_are_refused(tmp_path: Path) -> None:
    one = version_of(BUNDLES / "deepspio", "0.2.0", tmp_path / "one")
    with pytest.raises(BundleError, match=r"second deepspio 0\.2\.0"):
        build_app([one, one], tmp_path / "apps/app")
    with pytest.raises(BundleError, match="not self-contained"):
        build_app([BUNDLES / "deepspio"], tmp_path / "apps/app")
    assert list((tmp_path / "apps").iterdir()) == []


def test_no_folder_is_deleted_that_is_no_app(tmp_path: Path) -> None:
    """Not even one with a model in it."""
    bundle, kept = version_of(BUNDLES / "deepspio", "0.2.0", tmp_path), tmp_path / "training"
    (kept / "model").mkdir(parents=True)
    (kept / "model/weights.pt").write_text("a week of work")
    for target in (kept, kept / "model/weights.pt"):
        with pytest.raises(BundleError, match="other things than an app"):
            build_app([bundle], target)
    assert (kept / "model/weights.pt").read_text() == "a week of work"
    shutil.rmtree(kept / "model")
    build_app([bundle], kept)
    assert (kept / MARKER).is_file()
    (kept / "model/deepspio/old").touch()
    build_app([bundle], kept)
    assert not (kept / "model/deepspio/old").exists()


def test_what_is_missing_is_said(app: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "thesis.txt").touch()
    assert main(["app", str(tmp_path / "no.zip"), "--app", str(kept)]) == 1
    assert "other things than an app" in capsys.readouterr().err
    assert [path.name for path in kept.iterdir()] == ["thesis.txt"]
    environment = tmp_path / "environment"
    for folder, made, words in (
        (kept, environment, "make the environment first"),
        (kept, ENVIRONMENT, "build the app"),
    ):
        if made == ENVIRONMENT:
            (environment / "bin").mkdir(parents=True)
            (environment / "bin/python").touch()
        assert main(["start", str(tmp_path), "--app", str(folder), "--environment", str(environment)]) == 1
        assert words in capsys.readouterr().err
    place = ["--app", str(app), "--environment", str(environment)]
    assert main(["start", str(tmp_path / "none"), *place]) == 1
    assert "name a folder" in capsys.readouterr().err
    assert main(["start", str(tmp_path), *place, "--models", "qsmgam"]) == 1
    assert "one of deepspio, qsmgan" in capsys.readouterr().err
    command = server_command(environment, app, tmp_path, "127.0.0.1", 8000, ["deepspio"])
    assert command[0] == str(environment / "bin/python")
    assert command[-3:] == ["--conf", "models", "deepspio"]


def test_an_environment_that_is_there_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    from monai_label import REQUIREMENTS, set_up

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("nothing is to be installed")

    monkeypatch.setattr("subprocess.run", refuse)
    (tmp_path / STAMP).write_text(hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest())
    set_up(tmp_path)
    (tmp_path / STAMP).write_text("another")
    with pytest.raises(AssertionError, match="installed"):
        set_up(tmp_path)
