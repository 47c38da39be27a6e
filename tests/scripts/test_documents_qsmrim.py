"""Documents of qsmrim_net: its tables, what the network loses, its metrics."""

import json
from pathlib import Path

import pytest

from .documented import add_results, card_of, without_results

NAME = "qsmrim_net"
COUNTS = {"tp": 3, "fp": 1, "fn": 1, "tn": 95}


def with_interval(**values: float) -> dict[str, float]:
    """Each value with bounds a tenth below and above it."""
    ends = {f"{name}_{end}": factor * v for name, v in values.items() for end, factor in (("low", 0.9), ("high", 1.1))}
    return values | ends


def rates(method: str, pr_auc: float, seeds: str = "0 1 2", paper: float | None = None) -> dict[str, object]:
    measured = with_interval(proc_auc=0.5, pr_auc=pr_auc, f1=0.625, sensitivity=0.75, ppv=0.75)
    theirs = {f"paper_{name}": paper for name in ("f1", "proc_auc", "pr_auc")}
    theirs |= dict.fromkeys(("paper_specificity", "paper_ppv", "paper_tp", "paper_fp", "paper_fn", "paper_tn"))
    theirs |= {"paper_accuracy": 0.81, "paper_sensitivity": 0.59} if paper else {}
    return {"method": method, "seeds": seeds, "lesions": 100, "rims": 4, **measured, **COUNTS, **theirs}


def counts(method: str, mse: float, thresholds: str) -> dict[str, object]:
    measured = with_interval(pearson=0.75, mse=mse)
    return {"method": method, "seeds": "0 1 2", "thresholds": thresholds, "subjects": 12, **measured}


TABLES = {
    "lesion_table": [
        rates("size", 0.125, ""),
        rates("aprl_forest", 0.25, paper=0.4375),
        rates("rimnet", 0.5, "0", paper=0.5625),
        rates("qsmrim_net", 0.75, paper=0.6875),
        rates("qsmrim_net", 0.375, "0", paper=0.6875),
        {"method": "aprl_network", "note": "left out: APRL (NN) has no scores of all folds"},
    ],
    "ablation": [rates("image_only", 0.875), rates("qsmrim_net", 0.75)],
    "subjects": [
        *(counts("qsmrim_net", 1.5, place) for place in ("own fold", "other folds")),
        *(counts("aprl_forest", mse, place) for mse, place in ((2.5, "own fold"), (1.25, "other folds"))),
    ],
}
TARGETS = [
    {"target": "QSMRim-Net: pROC AUC", "limit": 0.76, "measured": 0.5, "met": False},
    {"target": "QSMRim-Net: PR AUC", "limit": 0.7, "measured": 0.75, "met": True},
]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with the configs of the bundle and a README, without results."""
    return without_results(tmp_path, NAME)


@pytest.fixture
def measured(repository: Path) -> Path:
    """The same with results."""
    return add_results(repository, NAME, TABLES, {"lesion_table": TARGETS})


def card(repository: Path) -> str:
    return card_of(repository, NAME)


def test_without_results_nothing_is_claimed(repository: Path) -> None:
    assert card(repository).count("Not measured yet") == 2
    assert "Not measured yet." in (repository / "README.md").read_text()


def test_tables_beside_the_paper(measured: Path) -> None:
    text = card(measured)
    assert "| QSMRim-Net | 0 1 2 | 0.500 (0.450 to 0.550) | 0.750 (0.675 to 0.825) |" in text
    assert "| APRL (RF) | 0.810 | 0.438 | 0.590 |" in text  # the paper's patients
    assert "| QSMRim-Net: pROC AUC | >= 0.760 | 0 | 1 | 0.500 |" in text
    assert "no scores of all folds" not in text and "None" not in text
    readme = (measured / "README.md").read_text()
    assert readme.count("| QSMRim-Net |") == 1, "the row of all seeds alone"
    assert "| QSMRim-Net | 0.500 | 0.750 | 0.625 | 0.750 | 0.750 | 0.688 | 0.688 | 0.688 |" in readme
    assert "100 lesions, 4 of them with a rim" in readme
    assert "Of 2 requirements measured, 1 are met." in readme


def test_where_another_method_is_as_good_is_said(measured: Path) -> None:
    text = card(measured)
    lost = [line for line in text.splitlines() if line.startswith(("| ablation |", "| subjects |"))]
    assert "| ablation |  | PR AUC | 0.750 | 0.875 | images alone |" in lost
    assert "| subjects | thresholds: other folds | MSE | 1.50 | 1.25 | APRL (RF) |" in lost
    assert not any("own fold | MSE" in line or "ablation |  | MSE" in line for line in lost)
    assert "| lesion_table |  | PR AUC |" not in text


def test_metrics_beside_the_best_method_without_a_network(measured: Path) -> None:
    card(measured)
    metadata = json.loads((measured / "bundles" / NAME / "configs" / "metadata.json").read_text())
    found = metadata["eval_metrics"]["rim"]
    assert found["PR_AUC"] == {
        "value": 0.75, "unit": "1", "n": 100, "confidence_interval": [0.9 * 0.75, 1.1 * 0.75],
        "baseline": {"name": "APRL (RF)", "value": 0.25, "confidence_interval": [0.9 * 0.25, 1.1 * 0.25]},
        "interval": "95 percent, bootstrap over subjects",
    }  # fmt: skip
    assert (found["squared_error_of_counts"]["n"], found["squared_error_of_counts"]["baseline"]["value"]) == (12, 2.5)
    train = json.loads((measured / "bundles" / NAME / "configs" / "train.json").read_text())
    assert metadata["acquisition"] == {"voxel_size_mm": train["voxel_size_mm"]}


def test_numbers_of_the_protocol_follow_the_configs(repository: Path) -> None:
    path = repository / "bundles" / NAME / "configs" / "train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"size": [20, 22, 6], "width": 12}))
    text = card(repository)
    assert "a patch of 20 x 22 x 6 voxels around each lesion" in text
    assert "width 12 where the paper has 64" in text
