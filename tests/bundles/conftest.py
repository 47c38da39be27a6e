"""Small simulated batches for the tests of bundles."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from shared_transforms.anatomy import split_generator

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def rim_root() -> Path:
    return REPOSITORY / "bundles" / "rim_relaxometry"


@lru_cache(maxsize=8)
def simulated(parameter: str, protocol: str, snr: float, noise: str = "gaussian", size: int = 48) -> dict[str, Any]:
    """Two held-out patches; the same for every test that asks for them."""
    from rim_relaxometry.simulator import RelaxometrySimulator

    simulator = RelaxometrySimulator(
        parameter=parameter,
        size=(size, size),
        protocol=protocol,
        snr=(snr, snr),
        noise=noise,
        phantom_share=0.0,
        free_share=0.0,
    )
    return simulator.simulate(simulator.draw(split_generator(11, split="test"), 2, "test"))
