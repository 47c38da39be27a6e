"""Documents of stnet_perfusion: its tables, what the network loses, its metrics."""

import json
from pathlib import Path

import pytest

from .documented import add_results, card_of, without_results

NAME = "stnet_perfusion"


def with_intervals(**columns: float) -> dict[str, float]:
    row = {}
    for name, value in columns.items():
        row |= {name: value, f"{name}_sd": 0.2 * value, f"{name}_low": 0.9 * value, f"{name}_high": 1.1 * value}
    return row


def lesions(method: str, threshold: str, dice: float) -> dict[str, object]:
    place = {"method": method, "threshold": threshold, "threshold_s": 6.0, "subjects": 18}
    return place | with_intervals(auc=0.95, dice=dice, iou=0.8, hd95=5.0)


def maps(method: str, parameter: str, mae: float) -> dict[str, object]:
    place = {"region": "brain", "parameter": parameter, "method": method, "subjects": 86}
    return place | with_intervals(psnr=30.0, ssim=0.9, pcc=0.9, scc=0.9, nrmse=0.2, mae=mae)


def levels(method: str, snr: float, tmax: float) -> dict[str, object]:
    errors = {"cbv_mae": 0.3, "cbf_mae": 5.0, "tmax_mae": tmax, "dice": 0.9}
    return {"snr": snr, "method": method, "subjects": 10} | errors


TABLES = {
    "table1": [
        *(lesions("stnet", threshold, 0.875) for threshold in ("6 s", "operating point")),
        lesions("osvd", "6 s", 0.925),
        lesions("csvd", "6 s", 0.75),
        {"method": "paper_stnet", "threshold": "operating point", "subjects": 18, "dice": 0.859, "dice_sd": 0.099},
        {"method": "tikhonov", "note": "left out: no file of its weights"},
    ],
    "table2": [
        *(maps("stnet", parameter, 0.25) for parameter in ("CBV", "CBF", "Tmax")),
        *(maps("ttv", parameter, 0.5) for parameter in ("CBV", "CBF", "Tmax")),
        *(maps("trivial", parameter, 0.125) for parameter in ("CBV", "CBF", "Tmax")),  # no rival
    ],
    "table2_uncalibrated": [
        *(maps("stnet", parameter, 0.375) for parameter in ("CBV", "CBF", "Tmax")),
        *(maps("osvd", parameter, 0.75) for parameter in ("CBV", "CBF", "Tmax")),
    ],
    "noise_sweep": [levels(method, 20.0, tmax) for method, tmax in (("stnet", 0.5), ("osvd", 0.75))],
}
TARGETS = [{"target": "Dice: ST-Net, lesions, 6 s", "limit": 0.859, "measured": 0.875, "met": True}]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with the configs of the bundle and a README, without results."""
    return without_results(tmp_path, NAME)


@pytest.fixture
def measured(repository: Path) -> Path:
    """The same with results."""
    return add_results(repository, NAME, TABLES, {"table1": TARGETS})


def card(repository: Path) -> str:
    return card_of(repository, NAME)


def test_without_results_nothing_is_claimed(repository: Path) -> None:
    assert card(repository).count("Not measured yet") == 2
    assert "Not measured yet." in (repository / "README.md").read_text()


def test_tables_beside_their_rivals_and_the_paper(measured: Path) -> None:
    text = card(measured)
    assert "| ST-Net (paper) | operating point | - | 18 | - | 0.859 |" in text
    assert "| ST-Net | 86 | 30 (27 to 33) |" in text
    assert "sd |" not in text  # the intervals are enough
    assert "| Dice | >= 0.859 | 1 | 1 | 0.875 | ST-Net, lesions, 6 s | table1 |" in text
    assert "None" not in text
    readme = (measured / "README.md").read_text()
    assert "| 20 | ST-Net | 0.300 | 5 | 0.500 | 0.900 |" in readme
    assert "Of 1 requirements measured, 1 are met." in readme


def test_where_the_network_loses_is_said(measured: Path) -> None:
    text = card(measured)
    assert "In 1 of the comparisons" in text
    assert "| table1 | 6 s | DICE | 0.875 | 0.925 | oSVD |" in text


def test_metrics_beside_the_best_deconvolution(measured: Path) -> None:
    card(measured)
    metadata = json.loads((measured / "bundles" / NAME / "configs" / "metadata.json").read_text())
    found = metadata["eval_metrics"]
    assert set(found) == {"CBV", "CBF", "Tmax", "hypoperfusion"}
    error = found["Tmax"]["MAE"]
    assert (error["value"], error["unit"], error["n"]) == (0.375, "s", 86)  # of maps as inference gives them
    assert error["baseline"]["name"] == "oSVD"
    assert found["hypoperfusion"]["DICE"]["baseline"] == {
        "name": "oSVD", "value": 0.925, "confidence_interval": [0.9 * 0.925, 1.1 * 0.925],
    }  # fmt: skip


def test_numbers_of_the_configs_stand_in_the_card(repository: Path) -> None:
    inference = json.loads((repository / "bundles" / NAME / "configs" / "inference.json").read_text())
    text = card(repository)
    assert f"the factor is {inference['tissue_relaxivity']:g} 1/s/mM in tissue" in text
    assert "0.705 ml/g" in text
