"""ST-Net: one dense pass equals patch by patch, outputs in units, whole series tile by tile."""

from typing import Any

import pytest
import torch
from stnet_perfusion.frames import FRAME_TIME, standardise
from stnet_perfusion.inferer import STNetInferer
from stnet_perfusion.loss import PerfusionLoss
from stnet_perfusion.network import FRAMES, TYPICAL, STNet, image_channels
from torch import Tensor

from physics.perfusion import haematocrit_factor


@pytest.fixture
def network() -> STNet:
    return _network()


def _network(**options: Any) -> STNet:
    torch.manual_seed(0)
    network = STNet(**options).eval()
    with torch.no_grad():  # away from the typical answer, so that the input matters
        network.head[3].weight.mul_(20.0)
    return network


def _image(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand((shape[0], image_channels(), *shape[1:]), generator=generator) * 0.4


@pytest.mark.parametrize(("padding", "side"), [("context", 9), ("zero", 7)])
@torch.no_grad()
def test_dense_equals_patch_by_patch(padding: str, side: int) -> None:
    network, image = _network(padding=padding), _image(2, 15, 13)
    dense = network(image)
    patches = image.unfold(2, side, 1).unfold(3, side, 1)
    x, y = patches.shape[2:4]
    alone = network(patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, image_channels(), side, side))
    torch.testing.assert_close(dense, alone.reshape(2, x, y, 3).permute(0, 3, 1, 2), atol=1e-5, rtol=1e-5)
    assert dense.shape == (2, 3, 15 - side + 1, 13 - side + 1)


@torch.no_grad()
def test_zero_padding_differs_from_context_at_the_patch_border_alone() -> None:
    """With the same weights the two settings see the same 7 x 7 voxels where those around them are zero."""
    context, zero = _network(padding="context"), _network(padding="zero")
    zero.load_state_dict(context.state_dict())
    image = _image(1, 9, 9)
    image[:, :FRAMES, (0, -1)] = 0.0
    image[:, :FRAMES, :, (0, -1)] = 0.0
    torch.testing.assert_close(context(image), zero(image[..., 1:-1, 1:-1]), atol=1e-5, rtol=1e-5)
    image[:, :FRAMES, 0] = 0.4
    assert not torch.allclose(context(image), zero(image[..., 1:-1, 1:-1]), atol=1e-3)


@torch.no_grad()
def test_chosen_voxels_are_those_of_the_dense_map(network: STNet) -> None:
    image = _image(2, 14, 12)
    keep = torch.rand((2, 6, 4), generator=torch.Generator().manual_seed(2)) > 0.5
    chosen = network.estimate(image, keep, at_once=5)
    torch.testing.assert_close(chosen, network(image).permute(0, 2, 3, 1)[keep], atol=1e-5, rtol=1e-5)


def test_every_part_of_the_input_counts_and_only_the_neighbourhood(network: STNet) -> None:
    image = _image(1, 11, 11).requires_grad_()
    network(image)[0, :, 1, 1].sum().backward()
    gradient = image.grad[0].abs()
    seen = gradient[:FRAMES].amax(0) > 0
    assert seen[1:10, 1:10].all()
    assert not seen[0].any() and not seen[10].any() and not seen[:, 0].any() and not seen[:, 10].any()
    own = gradient[FRAMES:] > 0
    assert own[0, 5, 5] and own[1:, 5, 5].double().mean() > 0.9
    own[:, 5, 5] = False
    assert not own.any()


@torch.no_grad()
def test_the_answer_before_training_is_the_typical_one() -> None:
    torch.manual_seed(3)
    prediction = STNet().eval()(_image(1, 12, 12))
    torch.testing.assert_close(prediction.mean((0, 2, 3)), torch.tensor(TYPICAL), rtol=0.5, atol=0.0)


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"padding": "same"}, "padding"),
        ({"outputs": ("CBV", "MTT")}, "outputs"),
        ({"outputs": ()}, "outputs"),
        ({"channels": (8, 16)}, "channels"),
    ],
)
def test_bad_arguments_are_named(bad: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        STNet(**bad)


# --- whole series ---


def _series() -> dict[str, Any]:
    """A series ``[1, 1 + T, X, Y, Z]`` of 40 frames at 2 s with its mask and curves."""
    generator = torch.Generator().manual_seed(5)
    times = torch.arange(40) * 2.0
    bolus = ((times - 14.0).clamp_min(0) / 6.0) ** 2 * torch.exp(-(times - 14.0).clamp_min(0) / 3.0)
    amplitude = torch.rand((1, 1, 17, 14, 3), generator=generator) + 0.2
    curves = amplitude * bolus.view(1, -1, 1, 1, 1) * 0.1
    image = torch.cat([torch.ones_like(amplitude), curves], 1)
    mask = torch.rand((1, 1, 17, 14, 3), generator=generator) > 0.3
    mask[..., 2] = False
    mask[:, :, 0, 0, 0] = True
    return {"inputs": image, "mask": mask, "aif": 8.0 * bolus[None], "vof": 9.0 * bolus[None], "frame_time": 2.0}


@torch.no_grad()
def test_tiles_and_chunks_change_nothing_and_outside_is_zero(network: STNet) -> None:
    series = _series()
    whole = STNetInferer(tile=64)(network=network, **series)
    tiled = STNetInferer(tile=5, voxels_at_once=7)(network=network, **series)
    torch.testing.assert_close(tiled, whole, atol=1e-4, rtol=1e-5)
    assert whole.shape == (1, 3, 17, 14, 3)
    assert not whole[(~series["mask"]).expand_as(whole)].any()
    assert whole[series["mask"].expand_as(whole)].abs().min() > 0


@torch.no_grad()
def test_voxels_outside_of_the_mask_do_not_matter(network: STNet) -> None:
    series = _series()
    expected = STNetInferer()(network=network, **series)
    series["inputs"] = torch.where(series["mask"], series["inputs"], torch.full((), 7.0))
    torch.testing.assert_close(STNetInferer()(network=network, **series), expected)


@torch.no_grad()
def test_cbv_and_cbf_are_proportional_to_the_haematocrit_factor(network: STNet) -> None:
    series = _series()
    standard = STNetInferer()(network=network, **series)
    printed = STNetInferer(factor=haematocrit_factor(as_printed=True))(network=network, **series)
    ratio = haematocrit_factor(as_printed=True) / haematocrit_factor()
    torch.testing.assert_close(printed, standard * torch.tensor([ratio, ratio, 1.0]).view(1, 3, 1, 1, 1))


@torch.no_grad()
def test_dose_relaxivity_and_partial_volume_of_the_artery_drop_out(network: STNet) -> None:
    series = _series()
    expected = STNetInferer()(network=network, **series)
    inputs = series["inputs"].clone()
    inputs[:, 1:] *= 3.0
    changed = series | {"inputs": inputs, "vof": 3.0 * series["vof"], "aif": 1.7 * series["aif"]}
    torch.testing.assert_close(STNetInferer()(network=network, **changed), expected, rtol=1e-4, atol=1e-4)


# --- loss ---


def _label(**changes: Tensor) -> dict[str, Tensor]:
    typical = torch.tensor(TYPICAL).view(1, 3, 1, 1, 1)
    parameters = typical.expand(2, 3, 6, 6, 1).clone()
    mask = torch.ones(2, 1, 6, 6, 1, dtype=torch.bool)
    return {"parameters": parameters, "brain": mask, "area": parameters[:, :1].clone()} | changes


@pytest.mark.parametrize("output", range(3))
def test_loss_is_in_units_of_the_typical_value(output: int) -> None:
    label = _label()
    prediction = label["parameters"].clone()
    prediction[:, output] *= 1.3
    expected = 0.3 / 3 + (0.5 * 0.3 if output == 0 else 0.0)
    assert float(PerfusionLoss(physics_weight=0.5)(prediction, label)) == pytest.approx(expected, rel=1e-5)


def test_loss_counts_the_brain_alone_and_every_stride_th_voxel() -> None:
    label = _label()
    prediction = label["parameters"].clone()
    prediction[:, :, 1::2] = 99.0  # no voxel of a stride of two
    assert float(PerfusionLoss(0.0, stride=2)(prediction, label)) == 0.0
    label["brain"][:, :, 1::2] = False
    assert float(PerfusionLoss(0.0)(prediction, label)) == 0.0


def test_physical_loss_is_free_of_units_and_needs_no_truth_of_cbv() -> None:
    label = _label(area=torch.full((2, 1, 6, 6, 1), 6.0))
    loss = PerfusionLoss(physics_weight=2.0)(label["parameters"], label)
    assert float(loss) == pytest.approx(2.0 * (6.0 - TYPICAL[0]) / TYPICAL[0])


def test_loss_of_fewer_outputs() -> None:
    label = _label()
    loss = PerfusionLoss(0.0, outputs=("Tmax",))(1.2 * label["parameters"][:, 2:], label)
    assert float(loss) == pytest.approx(0.2, rel=1e-5)
    for bad in ({"physics_weight": 0.1, "outputs": ("Tmax",)}, {"physics_weight": -1.0}, {"stride": 0}):
        with pytest.raises(ValueError, match="physical|physics_weight|stride"):
            PerfusionLoss(**bad)


def test_an_empty_mask_gives_no_loss_and_no_nan() -> None:
    label = _label(brain=torch.zeros(2, 1, 6, 6, 1, dtype=torch.bool))
    assert float(PerfusionLoss(0.1)(2 * label["parameters"], label)) == 0.0


def test_standard_image_of_a_series_is_what_the_network_takes(network: STNet) -> None:
    series = _series()
    image = standardise(series["inputs"], series["aif"], series["vof"], 2.0)
    assert image.shape[1] == image_channels(network.frames) and FRAME_TIME == 1.5
