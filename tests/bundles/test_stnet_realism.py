"""The comparison of simulated examinations with real ones: its measurements find what was put in."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from stnet_perfusion.experiments.bench import Bench
from stnet_perfusion.experiments.realism import REFERENCE, examine, realism, second_pass, summary
from stnet_perfusion.inferer import STNetInferer
from stnet_perfusion.simulator import PerfusionSimulator
from torch import Tensor

from physics.perfusion import gamma_variate
from shared_transforms.anatomy import split_generator

STEP = 1.5


def two_passes(second_s: float, share: float) -> Tensor:
    """A first pass with its peak at 20 s, and one that is broader with its peak at a given time."""
    times = STEP * torch.arange(50)
    first = gamma_variate(times, torch.tensor(14.0), torch.tensor(3.0), torch.tensor(2.0))
    return first + share * gamma_variate(times, torch.tensor(second_s - 9.0), torch.tensor(3.0), torch.tensor(3.0))


@pytest.mark.parametrize(("second_s", "share"), [(34.0, 0.15), (38.0, 0.3)])
def test_second_pass_is_found(second_s: float, share: float) -> None:
    assert second_pass(two_passes(second_s, share), STEP) * STEP == pytest.approx(second_s, abs=1.5)


def test_no_second_pass_is_nan() -> None:
    assert math.isnan(second_pass(two_passes(34.0, 0.0), STEP))
    assert math.isnan(second_pass(-two_passes(34.0, 0.2), STEP))
    # Cut off before the first pass has fallen to its half.
    assert math.isnan(second_pass(two_passes(34.0, 0.2)[:15], STEP))


def test_summary_of_known_values() -> None:
    rows = {row["quantity"]: row for row in summary([{"baseline SNR": v} for v in (10.0, 55.0, 65.0, 300.0, math.nan)])}
    row = rows["baseline SNR"]
    assert row["subjects"] == 4 and row["simulated"] == 60.0
    assert row["inside"] is True and row["share_inside"] == 0.5
    assert rows["tail over baseline"]["subjects"] == 0 and "simulated" not in rows["tail over baseline"]
    assert list(rows) == list(REFERENCE)


def test_measures_what_was_drawn() -> None:
    """First frame, SNR, tissue's CBF and MTT of an examination are those it was simulated with."""
    simulator = PerfusionSimulator(size=(48, 56, 4), voxel_size=(4.0, 4.0, 8.0), snr=(60.0, 60.0), lesion_share=0.0)
    drawn = simulator.draw(split_generator(3, 0, split="val"), 1, "val")
    row, curve = examine(simulator, drawn)
    assert row["first frame over baseline"] == pytest.approx(float(drawn.acquisition.transient[0]), rel=0.01)
    assert row["baseline SNR"] == pytest.approx(60.0, rel=0.15)
    # Voxels are not quite pure: grey matter is mixed with a little white, and with fluid without flow.
    (grey_cbf, grey_mtt), (white_cbf, white_mtt) = drawn.haemodynamics.tissue[0].tolist()
    assert row["grey matter CBF"] == pytest.approx(grey_cbf, rel=0.2)
    assert row["white matter CBF"] == pytest.approx(white_cbf, rel=0.3)
    assert row["grey matter MTT"] == pytest.approx(grey_mtt, rel=0.1)
    assert row["white matter MTT"] == pytest.approx(white_mtt, rel=0.15)
    assert row["grey matter CBV"] == pytest.approx(row["grey matter CBF"] * row["grey matter MTT"] / 60.0, rel=0.05)
    assert curve.signal.min() == pytest.approx(row["trough over baseline"], rel=1e-4)
    assert curve.signal[curve.times < -4.0].mean() == pytest.approx(1.0, abs=0.01)


def test_quick_run(tmp_path: Path) -> None:
    bench = Bench({}, tmp_path, STNetInferer(progress=False), quick="true")
    files = realism(bench)
    assert [file.name for file in files] == ["realism.csv", "realism.json", "realism.png"]
    assert all(file.stat().st_size > 0 for file in files)
    content: dict[str, Any] = json.loads((tmp_path / "results" / "realism.json").read_text())
    assert [row["quantity"] for row in content["rows"]] == list(REFERENCE)
    assert all(
        row["subjects"] >= 1 for row in content["rows"] if row["quantity"].startswith(("grey", "white", "trough"))
    )
