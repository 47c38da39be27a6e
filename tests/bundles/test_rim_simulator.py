"""The simulator of relaxometry series."""

from __future__ import annotations

import pytest
import torch
from rim_relaxometry.protocols import PROTOCOLS, draw_protocol
from rim_relaxometry.simulator import FREE_RANGE, TISSUE_T2, RelaxometrySimulator

from shared_transforms.anatomy import split_generator
from shared_transforms.simulation import SimulationDataset


def test_a_sample_can_be_drawn_again_alone() -> None:
    simulator = RelaxometrySimulator(size=(24, 24))
    data = SimulationDataset(simulator, batches=3, batch_size=2, seed=4)
    data.set_epoch(5)
    again = SimulationDataset(simulator, batches=3, batch_size=2, seed=4)
    again.set_epoch(5)
    assert torch.equal(data[2]["image"], again[2]["image"])
    first = again[1]["image"]
    again.set_epoch(6)
    assert first.shape != again[1]["image"].shape or not torch.equal(first, again[1]["image"])


def test_splits_and_seeds_differ() -> None:
    simulator = RelaxometrySimulator(size=(24, 24), protocol="N23")
    images = [
        SimulationDataset(simulator, 1, 2, seed, split)[0]["image"]
        for seed, split in ((0, "train"), (0, "val"), (0, "test"), (1, "train"))
    ]
    for i, a in enumerate(images):
        for b in images[:i]:
            assert not torch.equal(a, b)


@pytest.mark.parametrize("bad", [{"batches": 0}, {"batch_size": 0}])
def test_empty_datasets_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        SimulationDataset(RelaxometrySimulator(size=(24, 24)), **({"batches": 1, "batch_size": 1} | bad))


@pytest.mark.parametrize(("noise", "mean", "power"), [("gaussian", 0.0, 1.0), ("rician", 1.2533, 2.0)])
def test_background_holds_the_noise_and_nothing_else(noise: str, mean: float, power: float) -> None:
    simulator = RelaxometrySimulator(size=(256, 48), whole_slice=True, protocol="N31", snr=(5.0, 5.0), noise=noise)
    batch = simulator.simulate(simulator.draw(split_generator(1), 2))
    sigma = 0.65 / 5.0
    empty = batch["label"]["parameters"][:, 0] == 0.0
    assert int(empty.sum()) > 50
    values = batch["image"].movedim(1, 0)[:, empty] / sigma
    assert float(values.mean()) == pytest.approx(mean, abs=0.05)
    assert float(values.square().mean()) == pytest.approx(power, rel=0.05)


def test_without_noise_the_series_is_the_signal_equation() -> None:
    simulator = RelaxometrySimulator(size=(32, 32), protocol="N31", snr=(1e6, 1e6), noise="gaussian")
    batch = simulator.simulate(simulator.draw(split_generator(2), 2))
    a, b, t1 = batch["label"]["parameters"].unbind(1)
    for n, time in enumerate(PROTOCOLS["T1"]["N31"]):
        expected = (a * (1.0 - b * torch.exp(-time / t1))).abs()
        assert torch.allclose(batch["image"][:, n], expected, atol=1e-4)


def test_t2_has_no_gap_between_vessels_and_csf() -> None:
    assert TISSUE_T2[0][0] == 2.0
    simulator = RelaxometrySimulator("T2", size=(16, 16))
    drawn = [simulator.draw(split_generator(3, index=i), 16).relaxation for i in range(8)]
    values = torch.cat(drawn).flatten()
    between = ((values > 0.4) & (values < 1.4)).float().mean()
    assert float(between) > 0.02
    assert float(values.min()) >= 0.003
    assert FREE_RANGE["T2"][1] >= 2.0


def test_b_of_the_paper_is_half_normal() -> None:
    simulator = RelaxometrySimulator(size=(16, 16), inversion="paper")
    values = torch.cat([simulator.draw(split_generator(4, index=i), 64).inversion for i in range(8)])
    assert float(values.max()) <= 2.0
    # The mean of a half-normal distribution is sigma sqrt(2 / pi).
    assert float(2.0 - values.mean()) == pytest.approx(0.2 * (2.0 / torch.pi) ** 0.5, rel=0.1)
    fixed = RelaxometrySimulator(size=(16, 16), inversion=1.6)
    assert float(fixed.draw(split_generator(4), 3).inversion.unique()) == pytest.approx(1.6)


def test_protocols() -> None:
    assert [len(PROTOCOLS["T1"][n]) for n in ("N31", "N25", "N23")] == [31, 25, 23]
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        times, repetition = draw_protocol(generator, "T1", "clinical")
        assert 6 <= len(times) <= 12
        assert bool((times.diff() > 0).all())
        assert 0.02 < float(times[0]) < float(times[-1]) < 3.2
        assert repetition is None or bool((repetition > times).all())
        echoes, none = draw_protocol(generator, "T2", "clinical")
        assert none is None
        assert 4 <= len(echoes) <= 32
        assert bool((echoes.diff() > 0).all())
    with pytest.raises(ValueError, match="protocol must be one of"):
        draw_protocol(generator, "T1", "N6")


@pytest.mark.parametrize("bad", [{"parameter": "T3"}, {"noise": "poisson"}])
def test_unknown_choices_are_refused(bad: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="must be one of"):
        RelaxometrySimulator(**bad)


def test_a_protocol_of_ones_own() -> None:
    own = {"times": (0.1, 0.4, 1.1), "repetition_time": 3.0, "protocol": "given"}
    simulator = RelaxometrySimulator(size=(16, 16), **own)
    batch = simulator.simulate(simulator.draw(split_generator(9), 2))
    assert batch["image"].shape == (2, 3, 16, 16)
    assert torch.allclose(batch["acquisition"]["times"], torch.tensor([0.1, 0.4, 1.1]))
    assert torch.equal(batch["acquisition"]["repetition_time"], torch.full((3,), 3.0))
    with pytest.raises(ValueError, match="longer than every inversion time"):
        RelaxometrySimulator(size=(16, 16), **(own | {"repetition_time": 1.0}))
