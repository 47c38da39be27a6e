from __future__ import annotations

import pytest
import torch

from physics.relaxometry import InversionRecovery, LookLocker, SignalModel, SpinEcho, T2Preparation

PAPER_T1_MS = (
    [139, 166, 193, 219, 246, 272, 299, 325, 352, 379, 405, 432, 458, 485, 511, 538]
    + [565, 591, 618, 644, 671, 697, 724, 751, 777, 804, 838, 857, 883, 915, 937]
)  # fmt: skip
PAPER_T1 = [t / 1000 for t in PAPER_T1_MS]
PAPER_T2 = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32]
CLINICAL = [0.05, 0.1, 0.2, 0.4, 0.7, 1.1, 1.6, 2.2, 3.0]

MODELS = {
    "inversion_recovery": lambda: InversionRecovery(CLINICAL),
    "inversion_recovery_tr": lambda: InversionRecovery(CLINICAL, 5.0),
    "inversion_recovery_trs": lambda: InversionRecovery(CLINICAL, [4.0 + t for t in CLINICAL]),
    "look_locker": lambda: LookLocker(CLINICAL, 8.0, 0.05),
    "t2_preparation": lambda: T2Preparation(PAPER_T2),
    "spin_echo": lambda: SpinEcho(PAPER_T2),
}
every_model = pytest.mark.parametrize("name", MODELS)
every_mode = pytest.mark.parametrize("b_mode", ["voxelwise", "shared", "smooth"])
every_noise = pytest.mark.parametrize("noise", ["gaussian", "rician"])


def draw(model: SignalModel, shape: tuple[int, ...], one_b: bool = False, seed: int = 5) -> torch.Tensor:
    """Parameters [Q, *shape] in float64, well inside what the protocols above can measure."""
    generator = torch.Generator().manual_seed(seed)
    ranges = {"A": (0.5, 2.0), "B": (1.5, 2.0), "T1": (0.2, 2.0), "T2": (0.02, 0.3)}
    rows = []
    for name in model.parameter_names:
        low, high = ranges[name]
        draws = torch.rand(shape, generator=generator, dtype=torch.float64)
        rows.append(low + (high - low) * (torch.full_like(draws, 0.7) if one_b and name == "B" else draws))
    return torch.stack(rows)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20)
