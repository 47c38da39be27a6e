"""Documents of deepspio: its tables, what the network loses, its metrics."""

import json
from pathlib import Path

import pytest

from .documented import add_results, card_of, without_results

NAME = "deepspio"


def error(method: str, nmae: float, images: int = 256, **place: object) -> dict[str, object]:
    return place | {
        "method": method, "images": images, "nmae": nmae, "nmae_sd": 0.2 * nmae, "nmae_low": 0.9 * nmae,
        "nmae_high": 1.1 * nmae, "paper": None,
    }  # fmt: skip


def bottle(method: str, true: float, estimated: float, paper: float) -> dict[str, object]:
    shares = {"percent_error": 100 * abs(estimated / true - 1), "paper_percent_error": 100 * abs(paper / true - 1)}
    return {"method": method, "batch": 1, "concentration": true, "estimated": estimated, "paper": paper} | shares


ALL = {"set": "paper", "band": "all"}
TABLES = {
    "simulated": [
        error("zero", 1.0, **ALL, images_shared=64, nmae_shared=1.0),
        error("centre_line", 0.75, 64, **ALL, images_shared=64, nmae_shared=0.75),
        error("deepspio", 0.375, **ALL, images_shared=64, nmae_shared=0.5) | {"paper": 0.17, "paper_sd": 0.1},
        *(error(method, nmae, set="paper", band="0.22-1") for method, nmae in (("zero", 1.0), ("deepspio", 1.25))),
        {"method": "synthesis", "note": "left out: too slow"},
    ],
    "phantoms": [
        bottle("deepspio", 3.5, 2.8, 3.43),
        bottle("centre_line", 3.5, 2.1, 3.43),
        {"method": "deepspio", "batch": "trained range", "images": 1, "percent_error": 20.0},
    ],
    "noise": [
        *(error("deepspio", 0.5, study="concentrations", concentration=3.5, decibels=d) for d in (5.0, "none")),
        error("deepspio", 0.5, study="levels", concentration=20.5, decibels=5.0),
    ],
}
TARGETS = [{"target": "NMAE of DeepSPIO: CPU profile", "limit": 0.35, "measured": 0.375, "met": False}]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with the configs of the bundle and a README, without results."""
    return without_results(tmp_path, NAME)


@pytest.fixture
def measured(repository: Path) -> Path:
    """The same with results."""
    return add_results(repository, NAME, TABLES, {"simulated": TARGETS})


def card(repository: Path) -> str:
    return card_of(repository, NAME)


def test_without_results_nothing_is_claimed(repository: Path) -> None:
    assert card(repository).count("Not measured yet") == 2
    assert "Not measured yet." in (repository / "README.md").read_text()


def test_tables_beside_the_map_of_zeros_and_the_paper(measured: Path) -> None:
    text = card(measured)
    assert "| DeepSPIO | 256 | 0.375 (0.338 to 0.413) |" in text
    assert "| 0.22-1 | 1 | - | 1.25 |" in text
    assert "| 1 | 3.5 | 2.80 | 2.10 | 3.43 |" in text  # the paper's phantom as one more column
    assert "| NMAE of DeepSPIO | <= 0.350 | 0 | 1 | 0.375 | CPU profile | simulated |" in text
    assert "None" not in text
    readme = (measured / "README.md").read_text()
    assert "| 0.22-1 | 1 | - | 1.25 |" in readme
    assert "Of 1 requirements measured, 0 are met." in readme


def test_where_another_method_or_the_map_of_zeros_is_better_is_said(measured: Path) -> None:
    text = card(measured)
    assert "In 1 of the comparisons" in text
    assert "| simulated | images of: paper, band: 0.22-1 | NMAE | 1.25 | 1 | zero map |" in text


def test_metrics_beside_the_best_classical_method(measured: Path) -> None:
    card(measured)
    metadata = json.loads((measured / "bundles" / NAME / "configs" / "metadata.json").read_text())
    assert metadata["eval_metrics"]["concentration"] == {
        "NMAE": {
            "value": 0.375, "unit": "1", "n": 256, "confidence_interval": [0.9 * 0.375, 1.1 * 0.375],
            "baseline": {
                "name": "centre line", "value": 0.75, "confidence_interval": [0.9 * 0.75, 1.1 * 0.75], "n": 64,
            },
            "interval": "95 percent, bootstrap",
        }
    }  # fmt: skip
    train = json.loads((measured / "bundles" / NAME / "configs" / "train.json").read_text())
    names = ("line_width_mm", "line_pitch_mm", "rf_bandwidth_hz", "readout_sign", "pixel_size_mm", "echo_time_s")
    assert {name: metadata["acquisition"][name] for name in names} == {name: train[name] for name in names}


def test_numbers_of_the_protocol_follow_the_configs(repository: Path) -> None:
    path = repository / "bundles" / NAME / "configs" / "train.json"
    train = json.loads(path.read_text())
    path.write_text(json.dumps(train | {"rf_bandwidth_hz": 2 * train["rf_bandwidth_hz"]}))
    gradient = train["rf_bandwidth_hz"] / (42.577478518 * train["line_width_mm"])
    text = card(repository)
    assert f"slice gradient {2 * gradient:.0f} mT/m" in text
    assert f"| `line_pitch_mm` | {train['line_pitch_mm']:g} |" in text
