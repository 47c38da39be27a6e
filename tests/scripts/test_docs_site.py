from __future__ import annotations

import importlib
import inspect
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from bundle_files import REPOSITORY, bundle_names
from check_site import faults
from site_pages import SITE, for_site, meaning, modules_of, pages, values_of

# Checks, containers and drawings by numbers of their own: nothing in them is a formula of physics.
NO_FORMULA = {
    "FieldFit", "Figures", "Frames", "InputFunction", "Iteration", "Particles", "central_plane", "check_echo_times",
    "check_geometry", "check_kernel_kind", "check_noise_model", "draw_particles", "empty", "fast_shape", "marked_input",
    "volume",
}  # fmt: skip
# Definitions that no paper has to give: their formula is all there is to say.
DEFINITIONS = NO_FORMULA | {
    "ArterialInput", "Ellipsoids", "Fit", "SignalModel", "Tubes", "arterial_scale", "baseline_signal",
    "delay_from_tmax", "disc_fractions", "draw_discs", "draw_ellipsoids", "draw_tubes",
    "ellipsoid_fractions", "field_per_concentration",
    "find_frames", "fold_planes", "frequency_period", "paint", "perfusion_maps", "polarity_splits", "random_rotations",
    "rescale_phase", "tube_fractions", "unmix_tissue", "wrap",
}  # fmt: skip
YEAR = re.compile(r"\b(19|20)\d\d\b")


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return pages()


@pytest.mark.parametrize("bundle", bundle_names())
def test_every_bundle_has_its_pages(made: dict[str, str], bundle: str) -> None:
    root = REPOSITORY / "bundles" / bundle
    card = for_site((root / "docs" / "README.md").read_text("utf-8"), root / "docs" / "README.md")
    assert f"](/../../bundles/{bundle}/docs/figures/" in card and "](figures/" not in card
    results, interface = made[f"bundles/{bundle}/results.md"], made[f"bundles/{bundle}/interface.md"]
    for table in (root / "docs" / "results").glob("*.csv"):
        assert f"[{table.name}](/../../bundles/{bundle}/docs/results/{table.name})" in results
    assert "commit `" in results and "seed 0" in results
    metadata = json.loads((root / "configs" / "metadata.json").read_text("utf-8"))
    formats = metadata["network_data_format"]
    for name, image in formats.get("post_processed_outputs", {}).items():
        assert re.search(rf"^\| `{name}` \|.*\| {re.escape(image['unit'])} \|", interface, re.MULTILINE), name


@pytest.mark.parametrize("bundle", bundle_names())
def test_every_value_of_a_config_has_a_meaning(
    made: dict[str, str], bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("inference.json", "train.json"):
        config = json.loads((REPOSITORY / "bundles" / bundle / "configs" / name).read_text("utf-8"))
        assert [key for key in values_of(config) if not meaning(key, config)] == []
        assert all(f"| `{key}` |" in made[f"bundles/{bundle}/configuration.md"] for key in values_of(config))


def test_public_names_of_physics_have_formula_and_source() -> None:
    without: dict[str, list[str]] = {"formula": [], "source": []}
    seen = set()
    for module in map(importlib.import_module, modules_of("physics", REPOSITORY / "physics")):
        for name in (name for name in module.__all__ if callable(getattr(module, name))):
            found = getattr(module, name)
            seen.add(name)
            text = inspect.getdoc(found) or ""
            home = inspect.getdoc(sys.modules[found.__module__]) or ""
            if "math:" not in text and name not in NO_FORMULA:
                without["formula"].append(name)
            if not (YEAR.search(text + home) or "ource:" in text) and name not in DEFINITIONS:
                without["source"].append(name)
    assert without == {"formula": [], "source": []}
    assert seen >= DEFINITIONS  # no exception for what is not there any more


def test_meaning_of_a_value_comes_from_description_or_docstring() -> None:
    config = {
        "_desc_": "Fits. first: what is said; second, third: are said together. Else nothing.",
        "first": 1, "third": 2, "fourth": "rician", "seed": 0,
        "network": {"_target_": "physics.noise.check_noise_model", "noise": "@fourth"},
        "other": {"_target_": "physics.noise.add_rician_noise", "sigma": "$2 * @fourth"},
    }  # fmt: skip
    assert meaning("first", config) == "what is said" and "said together" in meaning("third", config)
    assert meaning("fourth", config).startswith("standard deviation of the real and of the imaginary part")
    assert "same seed" in meaning("seed", config) and meaning("network", config) == ""


def test_pages_name_each_module(made: dict[str, str]) -> None:
    for package in ("physics", "shared_transforms"):
        for module in modules_of(package, REPOSITORY / package):
            assert f".. automodule:: {module}\n" in made[f"reference/{module}.md"]
        written = (SITE / f"{package}.md").read_text("utf-8")
        named = set(re.findall(rf"{{mod}}`({package}\.\w+)`", written))
        assert named <= set(modules_of(package, REPOSITORY / package))
    assert {f"physics.{name}" for name in ("noise", "viewline")} <= set(modules_of("physics", REPOSITORY / "physics"))


def test_links_to_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "there.csv").write_text("")
    source = tmp_path / "docs" / "page.md"
    text = for_site("[a](../there.csv) [b](https://example.org) [c](#d) ![e](../there.csv#f)", source, tmp_path)
    assert text == "[a](/../../there.csv) [b](https://example.org) [c](#d) ![e](/../../there.csv#f)"
    for gone in ("gone.png", "gone.md", "../SECURITY.md", "../bundles/gone/docs/README.md"):
        with pytest.raises(ValueError, match="which is not there"):
            for_site(f"[x]({gone})", source, tmp_path)


def test_configuration_of_sphinx_and_files_that_pages_include(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    settings = runpy.run_path(str(SITE / "conf.py"))
    for extension in settings["extensions"]:
        importlib.import_module(extension)
    for page in SITE.glob("*.md"):
        text = page.read_text("utf-8")
        for target in re.findall(r"{(?:literal)?include} (\S+)", text):
            file = (SITE / target.lstrip("/")).resolve()
            assert file.is_file(), f"{page.name} includes {target}"
            for_site(file.read_text("utf-8"), file)


def test_check_of_a_site_finds_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "b.html").write_text('<h1 id="top"></h1>')
    (tmp_path / "a.html").write_text(
        '<a href="b.html#top"></a><a href="b.html#gone"></a><a href="https://example.org"></a><img src="no.png">'
        '<script src="https://example.org/x.js"></script><link rel="canonical" href="https://example.org/">'
    )
    assert faults(tmp_path) == [
        "a.html: loads https://example.org/x.js from outside",
        "a.html: b.html#gone has no such place",
        "a.html: no.png is not there",
    ]


@pytest.mark.docs
def test_a_new_bundle_of_the_walk_through_passes_the_check(tmp_path: Path) -> None:
    script = SITE / "new_bundle.sh"
    subprocess.run(["bash", script, "my_bundle", tmp_path], cwd=REPOSITORY, check=True)
    check = [sys.executable, "scripts/check_bundle.py", str(tmp_path / "my_bundle")]
    done = subprocess.run(check, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "clean" in done.stdout, done.stdout + done.stderr


@pytest.mark.docs
def test_site_is_built_without_a_warning_and_needs_nothing_from_outside() -> None:
    done = subprocess.run(["make", "docs"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert faults(REPOSITORY / "build" / "site") == []
