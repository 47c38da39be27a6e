"""How a volume goes through a network."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from shared_transforms.inferers import AutocastInferer, ContextTileInferer, bfloat16_device


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 3, 8, 8, 8)], ids=["images", "volumes"])
def test_autocast_is_the_network_at_bfloat16(shape):
    network = torch.nn.Conv2d(3, 2, 3) if len(shape) == 4 else torch.nn.Conv3d(3, 2, 3)
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    exact = network(inputs)
    seen = []
    network.register_forward_hook(lambda module, given, output: seen.append(output.dtype))

    reduced = AutocastInferer(enabled=True)(inputs, network)

    assert seen == [torch.bfloat16] and reduced.dtype == torch.float32
    assert 0 < (reduced - exact).abs().max() < 2**-6 * exact.abs().max()  # 8 bits of mantissa
    assert torch.allclose(AutocastInferer(enabled=False)(inputs, network), exact, atol=1e-6)


def test_autocast_gives_gradients_in_float32_and_a_plain_tensor():
    network = torch.nn.Conv3d(1, 1, 3)
    output = AutocastInferer(enabled=True)(MetaTensor(torch.randn(1, 1, 4, 4, 4)), network)
    output.square().mean().backward()
    assert type(output) is torch.Tensor and network.weight.grad.dtype == torch.float32


def test_autocast_asks_the_device_and_passes_arguments_on():
    def network(inputs, scale, *, offset):
        weight = torch.eye(2)
        return (inputs @ weight) * scale + offset, torch.is_autocast_enabled("cpu")

    class First(torch.nn.Module):
        def forward(self, *args, **kwargs):
            output, First.enabled = network(*args, **kwargs)
            return output

    output = AutocastInferer()(torch.ones(2, 2), First(), 3, offset=1)
    assert torch.equal(output, torch.full((2, 2), 4.0)) and First.enabled == bfloat16_device("cpu")
    assert not bfloat16_device("meta")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tiles(**options) -> ContextTileInferer:
    return ContextTileInferer(**{"progress": False, **options})


class Cropped(torch.nn.Module):
    """Convolutions that see 3 voxels at each side, and one pooling, and cut off ``crop`` voxels."""

    def __init__(self, crop: int) -> None:
        super().__init__()
        self.first, self.second, self.crop = (
            torch.nn.Conv3d(2, 3, 3, padding=1),
            torch.nn.Conv3d(3, 1, 3, padding=1),
            crop,
        )

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        low = torch.nn.functional.avg_pool3d(self.first(volume), 2)
        output = self.second(torch.nn.functional.interpolate(low, scale_factor=2))
        c = self.crop
        return output[:, :, c:-c, c:-c, c:-c] if c else output


@pytest.mark.parametrize("crop", [0, 2, 4])
@pytest.mark.parametrize("shape", [(24, 24, 24), (17, 30, 9), (5, 3, 33)])
def test_tiles_are_the_volume_where_the_context_covers_the_receptive_field(crop, shape):
    network, volume = Cropped(crop).double(), draw(2, 2, *shape).double()
    whole = tiles(tile=None, context=8, blend=0, alignment=2)(volume, network)
    with torch.no_grad():
        padded = torch.nn.functional.pad(volume, (8,) * 6)
        extra = [n % 2 for n in shape]
        padded = torch.nn.functional.pad(padded, [v for e in reversed(extra) for v in (0, e)])
        direct = network(padded)
    s = 8 - crop
    direct = direct[:, :, s : s + shape[0], s : s + shape[1], s : s + shape[2]]
    assert torch.allclose(whole, direct, atol=1e-12)
    for size, at_once in ((8, 1), (12, 3)):
        parts = tiles(tile=size, context=8, blend=8 if crop < 4 else 0, tiles_at_once=at_once, alignment=2)(
            volume, network
        )
        assert parts.shape == (2, 1, *shape) and torch.allclose(parts, whole, atol=1e-12)


class UNet(torch.nn.Module):
    """Four levels, three poolings, random weights that keep the variance from level to level."""

    def __init__(self, width: int = 4, crop: int = 8) -> None:
        super().__init__()
        widths, self.crop = [width * 2**level for level in range(4)], crop
        pairs = zip([1, *widths], widths, strict=False)
        self.down = torch.nn.ModuleList(torch.nn.Conv3d(a, b, 3, padding=1) for a, b in pairs)
        self.inner = torch.nn.ModuleList(torch.nn.Conv3d(w, w, 3, padding=1) for w in widths)
        self.up = torch.nn.ModuleList(torch.nn.ConvTranspose3d(2 * w, w, 2, stride=2) for w in widths[:-1])
        self.merge = torch.nn.ModuleList(torch.nn.Conv3d(2 * w, w, 3, padding=1) for w in widths[:-1])
        self.last = torch.nn.Conv3d(width, 1, 1)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                torch.nn.init.kaiming_normal_(parameter)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        passed = []
        for level in range(4):
            x = torch.nn.functional.avg_pool3d(x, 2) if level else x
            x = self.inner[level](self.down[level](x).relu()).relu()
            passed.append(x)
        passed.pop()
        for level in (2, 1, 0):
            x = self.merge[level](torch.cat([passed.pop(), self.up[level](x)], 1)).relu()
        c = self.crop
        return self.last(x)[:, :, c:-c, c:-c, c:-c]


@pytest.fixture(scope="module")
def deep() -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """A network, a volume, and what the one says of the other."""
    torch.manual_seed(0)
    network = UNet().eval().requires_grad_(False)
    volume = torch.nn.functional.interpolate(draw(1, 1, 24, 10, 11), scale_factor=4, mode="trilinear")
    volume += 0.2 * draw(1, 1, 96, 40, 44, seed=1)
    return network, volume, tiles(tile=None, context=40, blend=0)(volume, network)


def test_tiles_of_a_deep_network_leave_no_seam(deep):
    """Four levels see farther than the context, so tiles differ from the volume, but by little and smoothly."""
    network, volume, whole = deep
    result = tiles(tile=48, context=24, blend=16)(volume, network)
    error = (result - whole) / whole.std()
    assert 0 < error.square().mean().sqrt() < 0.01
    steps = error.diff(dim=2).square().mean((0, 1, 3, 4)).sqrt()
    seam, natural = steps[47].item(), (whole / whole.std()).diff(dim=2).square().mean().sqrt().item()
    assert seam < 0.05 * natural  # what is left of the seam drowns in the structure of the map

    side_by_side = tiles(tile=48, context=24, blend=0)(volume, network)
    hard = ((side_by_side - whole) / whole.std()).diff(dim=2).square().mean((0, 1, 3, 4)).sqrt()
    assert seam < 0.8 * hard[47] and hard[47] > 2 * hard[40]  # there is one where tiles stand side by side


def test_poolings_off_the_grid_would_not_agree(deep):
    """Why tiles are aligned: a volume that begins 3 voxels later is another volume to the poolings."""
    network, volume, whole = deep
    shifted = tiles(tile=None, context=40, blend=0)(volume[:, :, 3:], network)
    assert (shifted - whole[:, :, 3:]).std() > 0.02 * whole.std()


def test_only_tiles_of_the_mask_are_computed(deep):
    network, volume, whole = deep
    mask = torch.zeros(1, 1, 96, 40, 44)
    mask[:, :, 3:20, 5:30, 5:30] = 1
    mask[:, :, 70:90, 5:30, 5:30] = 1
    seen = []
    hook = network.register_forward_hook(lambda module, given, output: seen.append(tuple(given[0].shape)))
    result = tiles(tile=16, context=24, blend=16)(volume, network, mask=mask)
    hook.remove()
    assert seen == [(1, 1, 64, 64, 64)] * 16  # 2 x 2 of the 6 rows of tiles that the box of the mask has, 4 rows
    assert (result[mask == 0] == 0).all()
    inside = mask != 0
    assert (result - whole)[inside].square().mean().sqrt() < 0.05 * whole[inside].std()


def test_arguments_and_the_inferer_of_the_tiles_are_used(deep):
    _, volume, _ = deep

    def network(part, gain, *, offset):
        assert torch.is_autocast_enabled("cpu")
        return torch.cat([gain * part, part + offset], 1)

    inferer = tiles(tile=32, inferer=AutocastInferer(enabled=True), tiles_at_once=4)
    result = inferer(MetaTensor(volume), network, 2.0, offset=1.0)
    assert type(result) is torch.Tensor
    assert torch.allclose(result, torch.cat([2 * volume, volume + 1], 1), atol=1e-5)


def test_tiles_refuse_what_does_not_fit(deep):
    network, volume, _ = deep
    for options, text in [
        ({"tile": 60}, "multiples"),
        ({"context": 12}, "multiples"),
        ({"blend": 15}, "even"),
        ({"blend": 34}, "2 context"),
        ({"tiles_at_once": 0}, "at least 1"),
    ]:
        with pytest.raises(ValueError, match=text):
            tiles(**options)
    with pytest.raises(ValueError, match="X, Y, Z"):
        tiles()(volume[0], network)
    with pytest.raises(ValueError, match="mask must"):
        tiles()(volume, network, mask=torch.ones(1, 1, 4, 4, 4))
    with pytest.raises(ValueError, match="empty"):
        tiles()(volume, network, mask=torch.zeros_like(volume))
    with pytest.raises(ValueError, match="cut off at most 4 voxels"):
        tiles(tile=32, context=8, blend=8)(volume, network)
