"""Whole volumes through the training frame: the same map in world space, whatever grid the field came on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from bundle_files import REPOSITORY
from qsmgan.inferer import FrameInferer
from qsmgan.network import Generator
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from physics.dipole import field_from_susceptibility
from shared_transforms.errors import QMRIError
from shared_transforms.metrics import nrmse
from shared_transforms.weights import load_weights

EXTENT, HEAD = 32, 13  # [mm], side of the volume and radius of the mask
BODIES = [(0, 0, 0, 9, 0.03), (4, 3, -4, 3.5, 0.08), (-5, 4, 2, 3, -0.06), (2, -6, 4, 2.5, 0.1), (-3, -5, -5, 3, 0.07)]


def world(size, rotation) -> torch.Tensor:
    """Positions [mm] in the room of the voxels of a grid that is turned by a rotation."""
    axes = [(np.arange(round(EXTENT / s)) - (round(EXTENT / s) - 1) / 2) * s for s in size]
    return torch.from_numpy(np.stack(np.meshgrid(*axes, indexing="ij"), -1) @ rotation.as_matrix().T)


def scene(size=(1, 1, 1), rotation=None):
    """Inputs of the inferer, truth and mask; B0 along the third axis of the room."""
    rotation = Rotation.identity() if rotation is None else rotation
    position = world(size, rotation)
    chi = sum(
        value * torch.sigmoid((radius - (position - torch.tensor([x, y, z])).norm(dim=-1)) / 0.8)
        for x, y, z, radius, value in BODIES
    )
    mask = position.norm(dim=-1) < HEAD
    b0 = rotation.inv().apply([0.0, 0.0, 1.0]).tolist()
    field = field_from_susceptibility(chi.float(), size, b0)
    bright = (1 + 0.3 * position[..., 0] / EXTENT) * (1 - 5 * chi)  # bodies show, under a gradient
    magnitude = bright * ((position - 4).norm(dim=-1) > 2)  # and a black spot
    inputs = torch.stack([field, magnitude.float()])[None]
    return inputs, {"mask": mask[None, None], "voxel_size": size, "b0_direction": b0}, chi


class Channel(torch.nn.Module):
    """Says one of its channels again; it cuts off a border as the generator does."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.channels = (name,)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image[:, :, 8:-8, 8:-8, 8:-8]


@pytest.fixture(scope="module")
def networks() -> dict[str, torch.nn.Module]:
    generator = load_weights(Generator(), REPOSITORY / "bundles/qsmgan/models/unet.pt").eval().requires_grad_(False)
    return {"field": Channel("field"), "start": Channel("start"), "generator": generator}


def inferer(**options) -> FrameInferer:
    return FrameInferer(**{"tile": None, "context": 16, "progress": False, "bfloat16": False, **options})


@pytest.fixture(scope="module")
def axial(networks) -> dict[str, torch.Tensor]:
    inputs, keywords, _ = scene()
    return {name: inferer()(inputs, network, **keywords) for name, network in networks.items()}


def test_it_is_the_map_that_explains_the_field(axial):
    _, keywords, chi = scene()
    found, mask = axial["start"][0, 0], keywords["mask"][0, 0]
    assert nrmse(found, chi, mask).item() < 40 and (found[~mask] == 0).all()
    assert axial["generator"].shape == (1, 1, EXTENT, EXTENT, EXTENT)
    assert nrmse(axial["generator"][0, 0], found, mask).item() > 1  # the network says something


@pytest.mark.parametrize("order, flips", [((2, 1, 0), (0,)), ((0, 2, 1), ()), ((1, 0, 2), (0, 1, 2))])
def test_flips_and_permutations_of_the_axes(networks, axial, order, flips):
    """A scanner's other order of the axes: nothing to total variation, little to a trained network."""
    inputs, keywords, _ = scene()
    dims = (0, 1, *(2 + axis for axis in order))

    def moved(volume: torch.Tensor) -> torch.Tensor:
        return volume.permute(dims).flip([2 + flip for flip in flips])

    b0 = [keywords["b0_direction"][axis] * (-1 if dim in flips else 1) for dim, axis in enumerate(order)]
    mask = moved(keywords["mask"])
    for name, bound in (("field", 1e-4), ("start", 1e-2), ("generator", 10)):
        found = inferer()(moved(inputs), networks[name], mask, b0_direction=b0)
        value = nrmse(found[0, 0], moved(axial[name])[0, 0], mask[0, 0]).item()
        assert value < bound, name


@pytest.mark.parametrize(
    "size, degrees, bound", [((1, 1, 1), 30, 15), ((1, 1, 1), 75, 15), ((1, 1, 2), 0, 15), ((1, 1.5, 1), 30, 15)]
)
def test_oblique_and_anisotropic_grids_give_the_same_map(networks, axial, size, degrees, bound):
    rotation = Rotation.from_rotvec(math.radians(degrees) * np.array([0.6, 0.8, 0.0]))
    inputs, keywords, chi = scene(size, rotation)
    index = np.moveaxis(world(size, rotation).numpy() + (EXTENT - 1) / 2, -1, 0)
    inner = world(size, rotation).norm(dim=-1) < HEAD - 2
    for name in ("start", "generator"):
        found = inferer()(inputs, networks[name], **keywords)[0, 0]
        there = torch.from_numpy(map_coordinates(axial[name][0, 0].numpy(), index, order=3))
        assert nrmse(found, there, inner).item() < bound, name
        assert nrmse(found, chi, inner).item() < 1.2 * nrmse(there, chi, inner).item()
    if degrees:  # with B0 taken to be along an axis
        wrong = inferer()(inputs, networks["start"], mask=keywords["mask"])[0, 0]
        assert nrmse(wrong, chi, inner).item() > 1.5 * nrmse(there, chi, inner).item()


def test_no_scale(networks):
    """The same numbers on voxels of 0.7 mm: left as they are where that is asked for, the map is the same."""
    inputs, keywords, _ = scene()
    keywords["voxel_size"] = (0.7, 0.7, 0.7)
    one = inferer()(inputs, networks["start"], keywords["mask"])
    kept = inferer(sides=(0.5, 1.5))(inputs, networks["start"], **keywords)
    assert torch.allclose(one, kept, atol=1e-5)


def test_tiles_are_the_whole_volume(networks, axial):
    inputs, keywords, _ = scene()
    mask = keywords["mask"]
    parts = inferer(tile=16)(inputs, networks["generator"], **keywords)
    difference = (axial["generator"] - parts)[mask].square().mean().sqrt()
    assert 0 < difference < 0.01 * parts[mask].std()


def test_nan_outside_of_the_mask_does_not_matter(networks, axial):
    inputs, keywords, _ = scene()
    spoilt = torch.where(keywords["mask"], inputs, torch.nan)
    assert torch.allclose(inferer()(spoilt, networks["start"], **keywords), axial["start"], atol=1e-6)


def test_the_magnitude_may_have_any_unit(networks, axial):
    inputs, keywords, _ = scene()
    inputs[:, 1] *= 700
    assert torch.allclose(inferer()(inputs, networks["generator"], **keywords), axial["generator"], atol=1e-5)


def test_bad_input_is_refused(networks):
    inputs, keywords, _ = scene()
    call, network = inferer(), networks["start"]
    spoilt, negative, mask = inputs.clone(), inputs.clone(), keywords["mask"]
    spoilt[0, 0, 16, 16, 16] = math.nan
    negative[0, 1, 16, 16, 16] = -1
    wrong = {
        "image, mask": (inputs[:, :1], mask),
        "mask": (inputs, mask & False),
        "image": (spoilt, mask),
        "magnitude": (negative, mask),
    }
    for field, (volume, inside) in wrong.items():
        with pytest.raises(QMRIError) as raised:
            call(volume, network, inside)
        assert raised.value.field == field
    with pytest.raises(ValueError, match="unit length"):
        call(inputs, network, keywords["mask"], b0_direction=(0, 0, 1.1))
    with pytest.raises(ValueError, match="voxel_size"):
        call(inputs, network, keywords["mask"], voxel_size=(1, 1, -1))
