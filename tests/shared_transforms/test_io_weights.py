"""Weights fit exactly, or the network stays as it was and the message says why."""

import hashlib

import pytest
import torch
from torch import nn

from shared_transforms.errors import QMRIError
from shared_transforms.weights import load_weights, sha256_file


@pytest.fixture
def saved(tmp_path):
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    path = tmp_path / "model.pt"
    torch.save(network.state_dict(), path)
    return network, path


def fresh():
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def test_weights_are_loaded(saved):
    network, path = saved
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert sha256_file(path) == digest
    other = fresh()
    assert load_weights(other, path, sha256=digest.upper()) is other
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))


def truncate(path, network):
    path.write_bytes(path.read_bytes()[:-200])


def save(make):
    return lambda path, network: torch.save(make(network), path)


FAULTS = {
    "truncated": (truncate, "file content", "truncated"),
    "empty": (lambda path, network: path.write_bytes(b""), "file content", "0 bytes"),
    "git-lfs pointer": (
        lambda path, network: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "file content", "bytes"
    ),
    "missing file": (lambda path, network: path.unlink(), "path", "no such file"),
    "a pickled module": (save(lambda n: n), "file content", "other objects than tensors"),
    "a checkpoint": (save(lambda n: {"network": n.state_dict(), "epoch": 3}), "file content", "no state_dict"),
    "a list": (save(lambda n: [1, 2]), "file content", "a list"),
    "another network": (save(lambda n: nn.Conv2d(1, 1, 3).state_dict()), "keys", "4 of 4 tensors missing"),
    "another width": (save(lambda n: nn.Sequential(n[0], nn.Linear(4, 3)).state_dict()), "1.weight", "(3, 4)"),
    "diverged": (save(lambda n: {k: v * float("nan") for k, v in n.state_dict().items()}), "0.weight", "NaN"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_bad_weights_leave_the_network_unchanged(saved, name):
    network, path = saved
    fault, field, found = FAULTS[name]
    fault(path, network)
    other = fresh()
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(QMRIError) as caught:
        load_weights(other, path, network="rim_relaxometry T1")
    error = caught.value
    assert error.field == field and found in error.found and error.file == str(path)
    assert "rim_relaxometry T1" in error.expected and error.remedy
    assert all(torch.equal(before[k], v) for k, v in other.state_dict().items())


def test_wrong_sha256(saved):
    _, path = saved
    with pytest.raises(QMRIError) as caught:
        load_weights(fresh(), path, sha256="0" * 64)
    assert caught.value.field == "sha256" and "Sequential" in caught.value.expected
    with pytest.raises(QMRIError, match="git lfs"):
        sha256_file(path.parent / "absent.pt")
