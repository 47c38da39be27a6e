"""View Line images against the sequence's equations: places, widths, mass and losses of the lines."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from physics.viewline import GYROMAGNETIC_RATIO, MILLIMOLAR, ViewLineSequence, excitation_position, view_line_image

STEP = 50.0 / 256.0
PIXEL = (STEP, STEP)
PAPER = ViewLineSequence()
# No loss of signal, no shift by the readout, or none by the excitation.
LOSSLESS = replace(PAPER, relaxivity=0.0, diffusivity=0.0)
ONLY_EXCITATION = replace(LOSSLESS, readout_bandwidth=1e15)
ONLY_READOUT = replace(LOSSLESS, rf_bandwidth=1e15)


def _image(field: Tensor, sequence: ViewLineSequence = LOSSLESS, oversampling: int = 2) -> Tensor:
    """Lines in a uniform object without iron of its own."""
    return view_line_image(torch.ones_like(field), torch.zeros_like(field), field, PIXEL, sequence, oversampling)


def _z(pixels: int = 256) -> Tensor:
    return (torch.arange(pixels, dtype=torch.float64) - (pixels - 1) / 2) * STEP


def _field(rows: int = 3) -> Tensor:
    return torch.zeros(rows, 256, dtype=torch.float64)


def _line(image: Tensor, number: int, place: float, reach: float = 0.9) -> tuple[float, float]:
    """Mean place [mm] and mass [mm] of a line that lies around a place, in the middle row."""
    z = _z()
    row = image[number % 2, image.shape[1] // 2]
    near = (z - place).abs() < reach
    mass = float(row[near].sum())
    return float((row * z)[near].sum()) / mass, mass * STEP


def test_lines_without_a_field() -> None:
    image = _image(_field())
    assert image.shape == (2, 3, 256)
    for number in range(25):
        stated = (number - 12) * 2.0
        place, width = _line(image, number, stated)
        assert place == pytest.approx(stated, abs=1e-3)
        assert width == pytest.approx(1.0, abs=1e-3)
        assert float(image[(number + 1) % 2, 1][(_z() - stated).abs() < 0.5].max()) < 1e-6  # in its channel alone
    assert float(image.max()) == pytest.approx(1.0, abs=1e-3)
    assert torch.equal(image[:, 0], image[:, 1])  # straight
    # 13 even and 12 odd lines hold what 25 mm of 50 mm hold.
    assert (image.sum((1, 2)) * STEP / 3).tolist() == pytest.approx([13.0, 12.0], abs=1e-3)


def test_full_width_at_half_maximum() -> None:
    row = _image(_field(), oversampling=8)[0, 0]
    middle = (_z().abs() < 0.9).nonzero()[:, 0]
    z, values = _z()[middle], row[middle]
    edge = int((values > 0.5).nonzero()[0])
    low = z[edge - 1] + (0.5 - values[edge - 1]) / (values[edge] - values[edge - 1]) * STEP
    assert float(low) == pytest.approx(-0.5, abs=0.01)


@pytest.mark.parametrize("readout_sign", [1, -1])
@pytest.mark.parametrize("strength", [-60.0, 8.0, 90.0])
def test_uniform_field_shifts_the_lines(strength: float, readout_sign: int) -> None:
    for sequence, per_field in (
        (ONLY_EXCITATION, -1 / LOSSLESS.slice_gradient),
        (ONLY_READOUT, readout_sign / LOSSLESS.readout_gradient),
        (LOSSLESS, readout_sign / LOSSLESS.readout_gradient - 1 / LOSSLESS.slice_gradient),
    ):
        chosen = replace(sequence, readout_sign=readout_sign)
        image = _image(_field() + strength, chosen)
        for number in (7, 12, 16):
            stated = (number - 12) * 2.0 + strength * per_field
            place, width = _line(image, number, stated)
            assert place == pytest.approx(stated, abs=0.01 * STEP)
            assert width == pytest.approx(1.0, abs=2e-3)
        if sequence is LOSSLESS:
            assert per_field == pytest.approx(chosen.net_shift)


def test_gradients_of_the_sequence() -> None:
    """5.4 kHz over 1 mm and 500 kHz over 50 mm: mT/m are uT/mm."""
    assert PAPER.slice_gradient == pytest.approx(126.83, rel=1e-4)
    assert PAPER.readout_gradient == pytest.approx(234.86, rel=1e-4)
    assert float(excitation_position(torch.tensor(3.0), torch.tensor(126.83), PAPER)) == pytest.approx(4.0, rel=1e-4)
    # One bandwidth of the excitation is one line's width, whatever it is.
    wide = replace(PAPER, line_width=2.0)
    shift = excitation_position(torch.tensor(0.0), torch.tensor(5400 / GYROMAGNETIC_RATIO), wide)
    assert float(shift) == pytest.approx(2.0, rel=1e-6)


@pytest.mark.parametrize("slope", [-0.5, -0.2, 0.3, 1.0])
def test_linear_field_changes_the_width(slope: float) -> None:
    """By the excitation width / |1 + g / Gz|; the readout then stretches it and keeps its mass."""
    excited = _image(_field() + slope * LOSSLESS.slice_gradient * _z(), ONLY_EXCITATION, oversampling=8)
    for number in (11, 12, 13):
        place, width = _line(excited, number, (number - 12) * 2.0 / (1 + slope), reach=1.5)
        assert width == pytest.approx(1 / (1 + slope), rel=5e-3)
        assert place == pytest.approx((number - 12) * 2.0 / (1 + slope), abs=0.01)
    stretched = _image(_field() + slope * LOSSLESS.readout_gradient * _z(), ONLY_READOUT, oversampling=8)
    factor = 1 - slope  # the readout's sign is negative
    if factor > 0:
        z, row = _z(), stretched[0, 1]
        near = z.abs() < max(1.5 * factor, 0.6)
        mass = row[near].sum()
        # The second moment of a box with edges of 0.1 mm, and that of the points' share between two pixels.
        spread = float((row * z.square())[near].sum() / mass) - STEP**2 / 6
        # Two lines of a channel are 4 mm apart, so even stretched ones stay apart.
        assert float(mass) * STEP == pytest.approx(1.0, rel=5e-3)
        assert spread == pytest.approx((1 / 12 + 0.1**2) * factor**2, rel=0.01)
        assert float(row[z.abs() < 0.2 * factor].mean()) == pytest.approx(1 / factor, rel=0.01)


def _smooth_bodies(rows: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Density, concentration and a field of up to 400 uT, none of them near the borders."""
    generator = torch.Generator().manual_seed(3)
    z, x = _z(), torch.linspace(-1, 1, rows, dtype=torch.float64)[:, None]
    field = torch.zeros(rows, 256, dtype=torch.float64)
    for place, strength in zip((-9.0, 2.0, 8.0), (300.0, -400.0, 250.0), strict=True):
        field += strength * (1 - x.square()) * torch.exp(-((z - place - x) / 2.0).square())
    density = (1.0 - (z / 18.0) ** 8).clamp(min=0) * (
        0.7 + 0.3 * torch.rand(rows, 256, generator=generator, dtype=torch.float64)
    )
    concentration = 0.3 * (field.abs() > 150.0).double()
    return density, concentration, field


@pytest.mark.parametrize("sequence", [PAPER, LOSSLESS, replace(PAPER, readout_sign=1)])
def test_readout_keeps_the_signal(sequence: ViewLineSequence) -> None:
    density, concentration, field = _smooth_bodies()
    image = view_line_image(density, concentration, field, PIXEL, sequence)
    unmoved = view_line_image(density, concentration, field, PIXEL, replace(sequence, readout_bandwidth=1e15))
    assert float((image - unmoved).abs().max()) > 0.1
    assert torch.allclose(image.sum(-1), unmoved.sum(-1), rtol=1e-5)  # of each row and channel
    single = view_line_image(density.float(), concentration.float(), field.float(), PIXEL, sequence)
    assert single.dtype == torch.float32
    assert float((single.sum() - image.sum()).abs() / image.sum()) < 1e-5
    assert float((single - image).abs().max()) < 1e-3


def test_signal_pushed_out_of_the_image_is_lost() -> None:
    image = _image(_field() + 1e5, ONLY_READOUT)
    assert float(image.abs().max()) == 0.0
    image = _image(_field() - 1e5, ONLY_READOUT)
    assert float(image.abs().max()) == 0.0


def test_no_line_beyond_the_stated_ones() -> None:
    few = replace(LOSSLESS, lines=5)
    image = _image(_field(), few)
    assert float(image[..., _z().abs() > 5.0].max()) < 1e-6
    assert (image.sum((1, 2)) * STEP / 3).tolist() == pytest.approx([3.0, 2.0], abs=1e-3)
    # A field that moves all spins away from the lines leaves none to excite.
    far = _image(_field() + 60.0 * PAPER.slice_gradient, replace(ONLY_EXCITATION, lines=25))
    assert float(far.max()) < 1e-6
    # Where there are more lines, the first keeps its place and its channel.
    more = _image(_field(), replace(LOSSLESS, lines=7))
    assert float(more[0, 1][(_z() + 6.0).abs() < 0.3].min()) > 0.95


def test_relaxation_among_the_particles() -> None:
    field = _field()
    density = torch.ones_like(field)
    for concentration in (0.22, 1.0, 3.49):
        image = view_line_image(density, torch.full_like(field, concentration), field, PIXEL, PAPER)
        expected = math.exp(-8.7e-3 * 150.0 * concentration * MILLIMOLAR)
        assert float(image.sum() / _image(field).sum()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("slope", [20.0, 80.0])
def test_diffusion_in_a_gradient(slope: float) -> None:
    """The spin echo's loss exp(-(gamma G)^2 D TE^3 / 12), here in SI units."""
    field = slope * STEP * torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)[:, None] + _field()
    lossy = replace(PAPER, diffusivity=5e-3)
    image = view_line_image(torch.ones_like(field), torch.zeros_like(field), field, PIXEL, lossy)
    gamma, gradient = 2.6752218744e8, slope * 1e-3  # [rad/s/T], [T/m]
    expected = math.exp(-((gamma * gradient) ** 2) * 5e-9 * 8.7e-3**3 / 12)
    assert expected < 0.995
    assert float(image.sum() / _image(field).sum()) == pytest.approx(expected, rel=1e-6)


def test_gradient_of_the_field_along_z_dims_as_well() -> None:
    field = 30.0 * _z() + _field()
    lossy = replace(LOSSLESS, diffusivity=5e-3)
    ratio = _image(field, lossy).sum() / _image(field).sum()
    gamma = 2.6752218744e8
    assert float(ratio) == pytest.approx(math.exp(-((gamma * 0.03) ** 2) * 5e-9 * 8.7e-3**3 / 12), rel=1e-4)


def test_density_scales_the_image_and_rows_do_not_mix() -> None:
    density, concentration, field = _smooth_bodies()
    image = view_line_image(density, concentration, field, PIXEL, LOSSLESS)
    assert torch.allclose(view_line_image(3.0 * density, concentration, field, PIXEL, LOSSLESS), 3.0 * image)
    assert torch.allclose(
        view_line_image(density.flip(0), concentration.flip(0), field.flip(0), PIXEL, LOSSLESS), image.flip(1)
    )
    alone = density.clone()
    alone[5:] = 0
    assert float(view_line_image(alone, concentration, field, PIXEL, LOSSLESS)[:, 5:].abs().max()) == 0.0


def test_mirror_image_along_z() -> None:
    """A mirrored object in a mirrored field of opposite sign: the 25 lines are symmetric."""
    density, concentration, field = _smooth_bodies()
    image = view_line_image(density, concentration, field, PIXEL, PAPER)
    mirrored = view_line_image(density.flip(1), concentration.flip(1), -field.flip(1), PIXEL, PAPER)
    assert torch.allclose(mirrored, image.flip(2), atol=1e-9)


def test_batch_equals_its_parts() -> None:
    density, concentration, field = (part.float() for part in _smooth_bodies())
    parts = [torch.stack([part, part.flip(0), 0.5 * part]).unsqueeze(1) for part in (density, concentration, field)]
    batch = view_line_image(*parts, PIXEL, PAPER)
    assert batch.shape == (3, 1, 2, 12, 256)
    for k in range(3):
        alone = view_line_image(*(part[k, 0] for part in parts), PIXEL, PAPER)
        assert torch.allclose(batch[k, 0], alone, atol=1e-6)


def test_oversampling_converges() -> None:
    density, concentration, field = _smooth_bodies()
    images = [view_line_image(density, concentration, field, PIXEL, LOSSLESS, factor) for factor in (1, 2, 4, 16)]
    errors = [float((image - images[-1]).norm() / images[-1].norm()) for image in images[:-1]]
    assert errors[0] > errors[1] > errors[2]
    assert errors[1] < 0.05


def test_gradients() -> None:
    generator = torch.Generator().manual_seed(9)
    coarse = ViewLineSequence(line_width=3.0, line_pitch=5.0, lines=3, field_of_view=16.0, edge=0.5)

    def random(scale: float) -> Tensor:
        return (scale * torch.rand(3, 8, generator=generator, dtype=torch.float64)).requires_grad_()

    inputs = (random(1.0), random(0.05), random(40.0))
    assert torch.autograd.gradcheck(lambda d, c, f: view_line_image(d, c, f, (2.0, 2.0), coarse), inputs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"line_width": 0.0}, "line_width"),
        ({"line_pitch": -2.0}, "line_pitch"),
        ({"lines": 0}, "lines"),
        ({"lines": 2.5}, "lines"),
        ({"rf_bandwidth": math.inf}, "rf_bandwidth"),
        ({"readout_sign": 0}, "readout_sign"),
        ({"echo_time": -1e-3}, "echo_time"),
        ({"diffusivity": math.nan}, "diffusivity"),
        ({"edge": 0.0}, "edge"),
    ],
)
def test_unusable_sequences(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViewLineSequence(**changes)  # type: ignore[arg-type]


def test_unusable_arguments() -> None:
    plane = torch.zeros(4, 8)
    with pytest.raises(ValueError, match="one shape"):
        view_line_image(plane, plane, torch.zeros(8, 4), PIXEL, PAPER)
    with pytest.raises(ValueError, match="one shape"):
        view_line_image(torch.zeros(1, 8), torch.zeros(1, 8), torch.zeros(1, 8), PIXEL, PAPER)
    with pytest.raises(ValueError, match="pixel_size"):
        view_line_image(plane, plane, plane, (0.2, 0.0), PAPER)
    with pytest.raises(ValueError, match="pixel_size"):
        view_line_image(plane, plane, plane, (0.2, 0.2, 0.2), PAPER)
    with pytest.raises(ValueError, match="oversampling"):
        view_line_image(plane, plane, plane, PIXEL, PAPER, oversampling=0)


@pytest.mark.parametrize("strength", [0.0, 37.0])
def test_lines_as_wide_as_their_pitch_leave_no_gap(strength: float) -> None:
    """The soft edges of neighbours complement each other, the last ones end at half the width of all."""
    dense = replace(LOSSLESS, line_pitch=1.0)
    image = _image(_field() + strength, dense)
    inside = (_z() - strength * dense.net_shift).abs() < 12.0
    whole = image.sum(0)[:, inside]
    torch.testing.assert_close(whole, torch.ones_like(whole), atol=1e-5, rtol=0)
    assert float(image.sum() / 3 * STEP) == pytest.approx(25.0, abs=1e-4)
