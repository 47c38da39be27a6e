"""The app folder for MONAI Label, without a server."""

import json
import re
from pathlib import Path

import pytest
from bundle_files import REPOSITORY, BundleError
from monai_label import ENVIRONMENT, STAMP, VARIANTS, build_app, main, server_command

BUNDLES = REPOSITORY / "bundles"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("label") / "app"
    bundles = [BUNDLES / name for name in ("qsmgan", "rim_relaxometry", "deepspio")]
    found = build_app(bundles, folder)
    assert found == ["deepspio", "qsmgan", "qsmgan_local_field", "rim_relaxometry", "rim_relaxometry_t2"]
    assert (folder / "main.py").is_file()
    assert build_app(bundles, folder) == found  # again, over the old one
    return folder


def inference(model: Path) -> dict[str, object]:
    config: dict[str, object] = json.loads((model / "configs/inference.json").read_text())
    return config


def test_a_variant_is_a_model_of_its_own(app: Path) -> None:
    t2 = inference(app / "model/rim_relaxometry_t2")
    overlay = json.loads((BUNDLES / "rim_relaxometry/configs/t2.json").read_text())
    base = inference(BUNDLES / "rim_relaxometry")
    assert {key: t2[key] for key in overlay} == overlay
    changed = {key for key in base if t2[key] != base[key]}
    assert changed == {"_desc_", "parameter", "times_s", "weights", "displayable_configs"}
    weights = (app / "model/rim_relaxometry_t2/models/model.pt").read_bytes()
    assert weights == (BUNDLES / "rim_relaxometry/models/model_t2.pt").read_bytes()
    assert inference(app / "model/qsmgan_local_field")["input_kind"] == "local_field"
    assert inference(app / "model/qsmgan") == inference(BUNDLES / "qsmgan")


@pytest.mark.parametrize("bundle", sorted(path.parents[1].name for path in BUNDLES.glob("*/configs/inference.json")))
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
    offered = {
        path.parents[1].name: inference(path.parents[1])["displayable_configs"]
        for path in BUNDLES.glob("*/configs/inference.json")
    }
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


def test_two_zips_of_one_bundle_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="second deepspio"):
        build_app([BUNDLES / "deepspio", BUNDLES / "deepspio"], tmp_path / "app")
    assert list(tmp_path.iterdir()) == []


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
