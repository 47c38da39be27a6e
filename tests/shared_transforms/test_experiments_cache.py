from __future__ import annotations

from pathlib import Path

import torch

import physics
from physics import noise
from shared_transforms.experiments import kept_estimate, key_of


def test_an_estimate_is_made_once(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> dict[str, object]:
        made.append(1)
        return {"map": torch.arange(3.0), "seconds": 2.5}

    path = tmp_path / "folder" / "one.pt"
    first, second = kept_estimate(path, make), kept_estimate(path, make)
    assert len(made) == 1
    assert torch.equal(first["map"], second["map"]) and second["seconds"] == 2.5


def test_a_view_is_kept_alone(tmp_path: Path) -> None:
    large = torch.zeros(1_000_000)
    kept_estimate(tmp_path / "view.pt", lambda: large[:3])
    assert (tmp_path / "view.pt").stat().st_size < 10_000


def test_a_key_changes_with_every_part() -> None:
    values = torch.arange(4.0)
    parts = [("a",), ("b",), ("a", values), ("a", values + 1), ("a", noise), ("a", physics), (values,)]
    keys = [key_of(*part) for part in parts]
    assert len(set(keys)) == len(keys)
    assert keys == [key_of(*part) for part in parts]
    assert all(len(key) == 16 for key in keys)
    assert key_of("a", values.reshape(2, 2).T.T) == key_of("a", values)
