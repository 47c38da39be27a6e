"""Acquisitions: those of the paper's table 2, and random ones like those of clinical and phantom scans."""

from __future__ import annotations

import torch
from torch import Tensor

# Inversion times and T2 preparation times of the paper's data sets [s].
_IV_T1 = (139, 166, 193, 219, 246, 272, 299, 325, 352, 379, 405, 432, 458, 485, 511, 538, 565, 591, 618, 644, 671, 697,
          724, 751, 777, 804, 838, 857, 883, 915, 937)  # fmt: skip
_IV_T1_NOISY = (172, 204, 237, 270, 303, 335, 368, 401, 434, 467, 499, 532, 565, 598, 630, 663, 696, 729, 761, 794,
                827, 860, 893, 925, 958)  # fmt: skip
PROTOCOLS: dict[str, dict[str, tuple[float, ...]]] = {
    "T1": {
        "N31": tuple(t / 1000 for t in _IV_T1),
        "N25": tuple(t / 1000 for t in _IV_T1_NOISY),
        "N23": tuple(t / 1000 for t in _IV_T1_NOISY[:23]),
    },
    "T2": {"N6": (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)},
}


def draw_protocol(generator: torch.Generator, parameter: str, name: str = "random") -> tuple[Tensor, Tensor | None]:
    """Times and, for short recoveries, repetition times of one acquisition.

    Args:
        generator: random stream on the CPU.
        parameter: ``"T1"`` or ``"T2"``.
        name: protocol of :data:`PROTOCOLS`, ``"clinical"`` for a random one, or ``"random"`` for a mixture of all.

    Returns:
        Times ``[N]`` [s], ascending, and TR ``[N]`` [s] or None for full recovery.

    Raises:
        ValueError: for an unknown name.
    """
    fixed = PROTOCOLS[parameter]
    if name == "random":
        shares = torch.tensor([0.45, 0.10, 0.10, 0.35] if parameter == "T1" else [0.35, 0.65])
        name = [*fixed, "clinical"][int(torch.multinomial(shares, 1, generator=generator))]
    if name in fixed:
        return torch.tensor(fixed[name]), None
    if name != "clinical":
        raise ValueError(f"protocol must be one of {[*fixed, 'clinical', 'random']}, got {name!r}")
    return _clinical_t1(generator) if parameter == "T1" else (_clinical_t2(generator), None)


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _spaced(first: float, last: float, number: int, logarithmic: bool) -> Tensor:
    if logarithmic:
        return first * (last / first) ** torch.linspace(0.0, 1.0, number)
    return torch.linspace(first, last, number)


def _clinical_t1(generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """6 to 12 inversion times up to 0.7 to 3 s; TR long, short, or a constant recovery after each readout."""
    number = int(torch.randint(6, 13, (), generator=generator))
    times = _spaced(
        _uniform(generator, 0.03, 0.15), _uniform(generator, 0.7, 3.0), number, _uniform(generator, 0, 1) < 0.6
    )
    times = times * (1.0 + 0.1 * (torch.rand(number, generator=generator) - 0.5))
    last = float(times[-1])
    kind = _uniform(generator, 0, 1)
    if kind < 0.15:
        return times, None
    if kind < 0.55:
        repetition = torch.full_like(times, max(_uniform(generator, 2.0, 10.0), last + 0.5))
    elif kind < 0.8:
        repetition = torch.full_like(times, last + _uniform(generator, 0.1, 1.5))
    else:  # the repetition time grows with the inversion time once that is long
        repetition = (times + _uniform(generator, 0.5, 2.0)).clamp(min=_uniform(generator, 0.9, 1.5))
    return times, repetition


def _clinical_t2(generator: torch.Generator) -> Tensor:
    """4 to 32 echoes, the first at 5 to 20 ms, evenly or logarithmically spaced, the last at 60 to 600 ms."""
    number = int(torch.randint(4, 33, (), generator=generator))
    return _spaced(
        _uniform(generator, 0.005, 0.02), _uniform(generator, 0.06, 0.6), number, _uniform(generator, 0, 1) < 0.4
    )
