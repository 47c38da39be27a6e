"""The Daubechies transform: PyWavelets, the defining equations of the filter, orthonormality, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from deepspio.wavelets import CHANNELS, LOW_PASS, WaveletTransform, analysis, synthesis
from torch import Tensor


def _image(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def _reference(image: Tensor) -> Tensor:
    import pywt

    approximation, details = pywt.dwt2(image[:, 0].double().numpy(), "db4", mode="periodization", axes=(-2, -1))
    return torch.stack([torch.from_numpy(channel) for channel in (approximation, *details)], 1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("size", [(64, 64), (36, 22), (8, 10)])
def test_pywavelets(size: tuple[int, int], dtype: torch.dtype, tolerance: float) -> None:
    image = _image(3, 1, *size, dtype=dtype)
    expected = _reference(image)
    found = analysis(image)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)

    import pywt

    coefficients = _image(3, 4, size[0] // 2, size[1] // 2, dtype=dtype)
    channels = coefficients.double().unbind(1)
    inverse = pywt.idwt2(
        (channels[0].numpy(), tuple(channel.numpy() for channel in channels[1:])), "db4", mode="periodization"
    )
    torch.testing.assert_close(
        synthesis(coefficients)[:, 0].double(), torch.from_numpy(inverse), rtol=0, atol=tolerance
    )
    torch.testing.assert_close(synthesis(found), image, rtol=0, atol=tolerance)


def test_swapped_differences_are_no_match() -> None:
    """A tolerance that let cH and cV be exchanged would be none."""
    image = _image(1, 1, 32, 32)
    found, expected = analysis(image), _reference(image)
    swapped = expected[:, [0, 2, 1, 3]]
    assert float((found - swapped).norm() / expected[:, 1:3].norm()) > 0.5
    assert not torch.allclose(synthesis(swapped), image, atol=0.1)


def test_channels_are_differences_along_their_axes() -> None:
    """A step across X is in cH alone, a step across Z in cV alone, their product in cD too."""
    step = torch.zeros(1, 1, 32, 32, dtype=torch.float64)
    step[:, :, 9:22] = 1.0
    energy = dict(zip(CHANNELS, analysis(step).square().sum((0, 2, 3)).tolist(), strict=True))
    assert energy["cH"] > 1.0
    assert max(energy["cV"], energy["cD"]) < 1e-20
    energy = dict(zip(CHANNELS, analysis(step.mT).square().sum((0, 2, 3)).tolist(), strict=True))
    assert energy["cV"] > 1.0
    assert max(energy["cH"], energy["cD"]) < 1e-20
    assert analysis(step * step.mT)[:, 3].abs().max() > 0.05


def test_filter_solves_the_equations_that_define_it() -> None:
    """Orthonormal to its even shifts, and four vanishing moments (Daubechies 1988, section 4)."""
    low = torch.tensor(LOW_PASS, dtype=torch.float64)
    for shift in range(4):
        product = (low[2 * shift :] * low[: 8 - 2 * shift]).sum()
        assert float(product) == pytest.approx(float(shift == 0), abs=1e-15)
    assert float(low.sum()) == pytest.approx(math.sqrt(2.0), abs=1e-15)
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(4)
    for power in range(4):
        moment = (signs * low * torch.arange(8, dtype=torch.float64) ** power).sum()
        assert float(moment) == pytest.approx(0.0, abs=1e-12)


def test_orthonormal() -> None:
    """Energy and inner products are kept; what is constant doubles; the adjoint is the inverse."""
    image, coefficients = _image(2, 1, 16, 24), _image(2, 4, 8, 12)
    assert float(analysis(image).square().sum()) == pytest.approx(float(image.square().sum()), rel=1e-13)
    pairing = float((analysis(image) * coefficients).sum())
    assert float((image * synthesis(coefficients)).sum()) == pytest.approx(pairing, rel=1e-12)
    constant = analysis(torch.full((1, 1, 8, 8), 5.0, dtype=torch.float64))
    torch.testing.assert_close(constant[:, 0], torch.full((1, 4, 4), 10.0, dtype=torch.float64))
    assert float(constant[:, 1:].abs().max()) < 1e-12


def test_gradients() -> None:
    assert torch.autograd.gradcheck(analysis, (_image(1, 1, 8, 6).requires_grad_(),))
    assert torch.autograd.gradcheck(synthesis, (_image(1, 4, 4, 3).requires_grad_(),))


def test_the_module_is_the_function_and_keeps_its_precision_under_autocast() -> None:
    image = _image(2, 1, 32, 16, dtype=torch.float32)
    module = WaveletTransform()
    scripted = torch.jit.script(module)
    with torch.autocast("cpu", torch.bfloat16):
        coefficients = module(image)
        again = module.synthesis(coefficients)
    torch.testing.assert_close(coefficients, analysis(image), rtol=0, atol=0)
    torch.testing.assert_close(again, synthesis(coefficients), rtol=0, atol=0)
    torch.testing.assert_close(scripted(image), coefficients, rtol=0, atol=0)
    assert not module.state_dict()  # constants are no weights


@pytest.mark.parametrize("shape", [(1, 1, 7, 8), (1, 1, 8, 7), (1, 2, 8, 8), (1, 8, 8), (1, 1, 2, 8)])
def test_wrong_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="images must be .* multiples of 2"):
        analysis(_image(*shape))


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (1, 4, 1, 8), (4, 8, 8)])
def test_wrong_coefficients_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="coefficients must be"):
        synthesis(_image(*shape))
