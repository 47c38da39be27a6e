"""Indicator dilution: arterial input, vascular transport and tissue, from analytic spectra.

Times in s, concentrations in mM, CBF in ml/100 g/min. Time is the last axis. A spectrum is the integral of
c(t) exp(-i omega t).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from physics.perfusion.residues import LONGEST_MTT, RESIDUES, MixtureSpectrum, check_weights
from physics.perfusion.spectral import complex_of, frequency_grid, synthesis_matrix, synthesise

__all__ = ["ArterialInput", "gamma_variate", "haematocrit_factor", "tissue_concentration"]

# What may be left of the bolus's spectrum at the band limit, for the arterial curve and for tissue (smoother).
_LEFT_ARTERIAL = {torch.float32: 2e-7, torch.float64: 1e-9}
_LEFT_TISSUE = {torch.float32: 3e-4, torch.float64: 1e-8}
_ROWS_CPU, _ROWS_DEVICE = 1024, 65536  # voxels at a time: what a cache holds, what a device's memory holds


def haematocrit_factor(
    large: float = 0.45, small: float = 0.25, density: float = 1.04, as_printed: bool = False
) -> float:
    r"""Haematocrit factor, .7051 ml/g by default.

    .. math:: \kappa = \frac{1 - H_{large}}{(1 - H_{small}) \, \rho}

    Source: Rempp et al., Radiology 193:637 (1994).

    Args:
        large: haematocrit of large vessels.
        small: haematocrit of capillaries.
        density: of brain [g/ml].
        as_printed: the ratio upside down, (1 - small) / (1 - large) / density = 1.3112, as the ST-Net paper prints it.

    Raises:
        ValueError: if a haematocrit is not in [0, 1) or the density not positive.
    """
    if not (0 <= large < 1 and 0 <= small < 1):
        raise ValueError(f"large and small must lie in [0, 1), got {large} and {small}")
    if not density > 0:
        raise ValueError(f"density must be positive [g/ml], got {density}")
    ratio = (1 - large) / (1 - small)
    return (1 / ratio if as_printed else ratio) / density


def gamma_variate(times: Tensor, arrival: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    r"""Gamma-variate bolus of peak 1.

    .. math:: g(t) = \left(x e^{1 - x}\right)^{\alpha}, \qquad x = \frac{t - t_0}{\alpha \beta} > 0

    with times in s. Source: Madsen, Phys. Med. Biol. 37:1597 (1992).

    Args:
        times: ``[T]`` [s].
        arrival: ``[...]`` [s], broadcast with the next two.
        alpha: shape, positive.
        beta: scale [s], positive. The peak is alpha beta after the arrival.

    Returns:
        ``[..., T]``, 0 before the arrival.
    """
    x = (times - arrival[..., None]) / (alpha * beta)[..., None]
    after = x > 0
    inside = torch.where(after, x, torch.ones_like(x))
    return torch.where(after, torch.exp(alpha[..., None] * (inside.log() + 1 - inside)), torch.zeros_like(x))


@dataclass(frozen=True)
class ArterialInput:
    r"""Arterial concentration: a gamma-variate first pass, a broader second pass, and a tail of mixed contrast agent.

    .. math:: \hat c_a(\omega) = \frac{e^{-s t_0}}{\prod_j (1 + s \theta_j)} \left[
        \frac{a}{(1 + s \beta)^{\alpha + 1}} + \frac{\rho \, a \, e^{-s \delta}}{(1 + s (\beta + w))^{\alpha + 1}}
        + \frac{h \, p \, \tau}{(1 + s \tau) (1 + s \beta)^{\alpha + 1}} \right], \qquad
        s = i \omega, \quad a = p \, \beta \left(\frac{e}{\alpha}\right)^{\alpha} \Gamma(\alpha + 1)

    with p the peak, rho, delta and w the recirculation with its delay and width, h and tau the tail with its time, and
    theta the dispersions. All fields are tensors (or numbers) of one batch shape ``[...]`` after broadcasting, of one
    dtype and device.

    Attributes:
        arrival: of the first pass [s].
        alpha: shape of the first pass.
        beta: scale of the first pass [s].
        peak: height of the first pass alone [mM].
        recirculation: area of the second pass over that of the first.
        recirculation_delay: of the second pass against the first [s].
        recirculation_width: by which the scale of the second pass is larger than ``beta`` [s].
        tail: height of the tail over ``peak``; it builds up as the first pass comes in (its area so far, over its
            whole area), and decays from then on.
        tail_time: time constant of that decay [s].
        dispersions: time constants [s] of exponential vascular transport functions of unit area, each one in series.
    """

    arrival: Tensor
    alpha: Tensor
    beta: Tensor
    peak: Tensor
    recirculation: Tensor | float = 0.0
    recirculation_delay: Tensor | float = 0.0
    recirculation_width: Tensor | float = 0.0
    tail: Tensor | float = 0.0
    tail_time: Tensor | float = 100.0
    dispersions: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        names = [field.name for field in fields(self) if field.name != "dispersions"]
        values = [getattr(self, name) for name in names]
        like = next((value for value in values if isinstance(value, Tensor)), torch.zeros(()))
        tensors = [
            torch.as_tensor(value, dtype=like.dtype, device=like.device) for value in (*values, *self.dispersions)
        ]
        tensors = list(torch.broadcast_tensors(*tensors))
        for name, tensor in zip(names, tensors, strict=False):
            object.__setattr__(self, name, tensor)
        object.__setattr__(self, "dispersions", tuple(tensors[len(names) :]))

    @property
    def shape(self) -> torch.Size:
        """Batch shape."""
        return self.arrival.shape

    def delayed(self, delay: Tensor | float, dispersion: Tensor | float = 0.0) -> ArterialInput:
        """The same curve later and broader, of the same area: as in a vein, or in a territory with collateral flow.

        Args:
            delay: ``[...]`` [s], negative for earlier.
            dispersion: time constant ``[...]`` [s] of an exponential transport function; 0 for none.
        """
        wide = torch.as_tensor(dispersion, dtype=self.arrival.dtype, device=self.arrival.device)
        return replace(self, arrival=self.arrival + delay, dispersions=(*self.dispersions, wide))

    def _first_area(self) -> Tensor:
        """Area of the first pass [mM s]."""
        logarithm = self.alpha - self.alpha * self.alpha.log() + torch.lgamma(self.alpha + 1)
        return self.peak * self.beta * torch.exp(logarithm)

    def area(self) -> Tensor:
        r"""Area of the whole curve to infinity ``[...]`` [mM s], :math:`a (1 + \rho) + h \, p \, \tau`."""
        return self._first_area() * (1 + self.recirculation) + self.peak * self.tail * self.tail_time

    def double_spectrum(self, omega: Tensor) -> Tensor:
        """As :meth:`spectrum`, but complex128 for any dtype."""
        s = 1j * omega.to(torch.complex128)

        def column(name: str) -> Tensor:
            return getattr(self, name).to(s.device, torch.float64)[..., None]

        beta, power = column("beta"), -(column("alpha") + 1)
        area = self._first_area().to(s.device, torch.float64)[..., None]
        tail = column("tail") * column("peak") / (s + 1 / column("tail_time"))
        second = torch.exp(
            power * torch.log1p(s * (beta + column("recirculation_width"))) - s * column("recirculation_delay")
        )
        total = torch.exp(power * torch.log1p(s * beta)) * (area + tail) + column("recirculation") * area * second
        total = total * torch.exp(-s * column("arrival"))
        for dispersion in self.dispersions:
            total = total / (1 + s * dispersion.to(s.device, torch.float64)[..., None])
        return total

    def spectrum(self, omega: Tensor) -> Tensor:
        """Spectrum of the curve.

        Args:
            omega: ``[F]`` [rad/s]; complex with a negative imaginary part for the spectrum of c(t) exp(-damping t).

        Returns:
            Complex ``[..., F]`` [mM s], on the device of ``omega``.
        """
        return self.double_spectrum(omega).to(complex_of(self.arrival.dtype))

    def band(self, left: float) -> float:
        """Angular frequency [rad/s] beyond which every bolus of the batch has less than ``left`` of its area."""
        alpha, beta = self.alpha.detach().double(), self.beta.detach().double()
        return float((left ** (-1 / (alpha + 1)) / beta).max())

    def concentration(self, times: Tensor) -> Tensor:
        """Concentration at any times, to about 1e-6 of the peak (float64: 1e-8).

        Args:
            times: ``[T]`` [s].

        Returns:
            ``[..., T]`` [mM], on the device of ``times``.

        Raises:
            ValueError: if alpha, beta or tail_time is not positive, or a dispersion negative.
        """
        self.check()
        dtype = self.arrival.dtype
        grid = frequency_grid(times, self.band(_LEFT_ARTERIAL.get(dtype, 2e-7)), dtype)
        spectrum = self.double_spectrum(grid.omega(times.device))
        return synthesise(spectrum, synthesis_matrix(grid, times, torch.float64)).to(dtype)

    def check(self) -> None:
        """See that the curve can be evaluated.

        Raises:
            ValueError: if alpha, beta or tail_time is not positive, or a dispersion negative.
        """
        for name in ("alpha", "beta", "tail_time"):
            lowest = _lowest(getattr(self, name))
            if not lowest > 0:
                raise ValueError(f"{name} must be positive, got {lowest}")
        for dispersion in self.dispersions:
            _check_dispersion(dispersion)


def _lowest(values: Tensor) -> float:
    return float(values.detach().min()) if values.numel() else math.inf


def _check_dispersion(dispersion: Tensor) -> None:
    if not _lowest(dispersion) >= 0:
        raise ValueError(f"dispersion must not be negative [s], got {_lowest(dispersion)}")


def _check_transit(mtt: Tensor) -> None:
    lowest, highest = _lowest(mtt), -_lowest(-mtt)
    if not (lowest >= 0 and highest <= LONGEST_MTT):
        raise ValueError(f"mtt must lie between 0 and {LONGEST_MTT} s, got {lowest} to {highest}")


def _delay_spectrum(omega: Tensor, delay: Tensor) -> Tensor:
    """exp(-i omega delay) ``[N, F]`` for delays ``[N]``."""
    real, imaginary = omega.real.to(delay), omega.imag.to(delay)
    return torch.polar(torch.exp(imaginary * delay[:, None]), -real * delay[:, None])


def _dispersion_denominator(omega: Tensor, dispersion: Tensor) -> Tensor:
    """1 + i omega dispersion ``[N, F]`` for time constants ``[N]``."""
    real, imaginary = omega.real.to(dispersion), omega.imag.to(dispersion)
    return torch.complex(1 - imaginary * dispersion[:, None], real * dispersion[:, None])


def _rows(aif: ArterialInput, values: list[Tensor]) -> tuple[Tensor, list[Tensor], torch.Size]:
    """Index of each voxel's arterial input, the flattened voxel values, and the shape of the voxels.

    The batch of the arterial input is aligned with the leading axes of the voxels.
    """
    voxels = torch.broadcast_shapes(*(value.shape for value in values))
    batch = aif.shape + (1,) * max(0, len(voxels) - len(aif.shape))
    shape = torch.broadcast_shapes(batch, voxels)
    index = torch.arange(aif.shape.numel(), device=values[0].device).reshape(batch).expand(shape).flatten()
    return index, [value.expand(shape).flatten() for value in values], shape


def tissue_concentration(
    aif: ArterialInput,
    times: Tensor,
    cbf: Tensor,
    mtt: Tensor,
    delay: Tensor | float = 0.0,
    dispersion: Tensor | float = 0.0,
    weights: Tensor | None = None,
    gamma_shape: float | Tensor = 3.0,
    factor: float | None = None,
) -> Tensor:
    r"""Concentration in tissue.

    .. math:: c(t) = \frac{CBF}{6000 \, \kappa} \int_0^\infty c_{local}(t - u) \, R(u) \, du, \qquad
        c_{local}(t) = \int_0^\infty c_a(t - \delta - v) \, \frac{e^{-v / \theta}}{\theta} \, dv

    with kappa of :func:`haematocrit_factor` [ml/g], delay delta and dispersion theta [s]. Source: Meier and Zierler, J.
    Appl. Physiol. 6:731 (1954). The local arterial curve is ``aif`` delayed and dispersed; R has R(0) = 1 and the
    integral MTT. The curve is a Fourier series of analytic spectra with a period of at least 256 s (it outlasts a scan
    2.5 times) up to the frequency at which the sharpest bolus of the batch has lost all but 3e-4 (float64: 1e-8) of its
    spectrum; the residue, another 1/(omega MTT), makes of it about 1e-5 of the peak. Times need no common spacing.

    Args:
        aif: true arterial curve, its batch aligned with the LEADING axes of the voxels.
        times: ``[T]`` [s].
        cbf: ``[...]`` [ml/100 g/min].
        mtt: ``[...]`` [s], 0 to 200; below .1 s tissue counts as an impulse of the same volume.
        delay: ``[...]`` [s], may be negative.
        dispersion: ``[...]`` [s], time constant of an exponential vascular transport function of unit area.
        weights: ``[..., 5]`` of the residues, in the order of ``RESIDUES``; None for the exponential alone.
        gamma_shape: shape of the gamma residue, one positive number; it is not differentiated.
        factor: haematocrit factor [ml/g]; None for :func:`haematocrit_factor`.

    Returns:
        ``[..., T]`` [mM], in the dtype of ``cbf``.

    Raises:
        ValueError: for MTT out of range, weights of other length, alpha, beta,
            tail_time, gamma_shape or factor not positive, or a dispersion negative.
    """
    aif.check()
    factor = haematocrit_factor() if factor is None else factor
    if not factor > 0:
        raise ValueError(f"factor must be positive [ml/g], got {factor}")
    _check_transit(mtt)
    delay, dispersion, mtt = (
        torch.as_tensor(value, dtype=cbf.dtype, device=cbf.device) for value in (delay, dispersion, mtt)
    )
    _check_dispersion(dispersion)
    weights = torch.eye(len(RESIDUES)).to(cbf)[0] if weights is None else check_weights(weights).to(cbf)
    used = (weights.detach() != 0).reshape(-1, len(RESIDUES)).any(0).tolist()
    delayed, dispersed = (bool(value.detach().any()) or value.requires_grad for value in (delay, dispersion))

    index, values, shape = _rows(aif, [cbf / (6000 * factor), mtt, delay, dispersion, *weights.unbind(-1)])
    flow, transit, shift, wide, *mixed = values
    mixture = torch.stack(mixed, -1)
    grid = frequency_grid(times, aif.band(_LEFT_TISSUE.get(cbf.dtype, 3e-4)), cbf.dtype)
    omega = grid.omega(cbf.device)
    arterial = aif.double_spectrum(omega).reshape(-1, grid.count).to(complex_of(cbf.dtype))
    residues = MixtureSpectrum(grid, used, gamma_shape, cbf)
    matrix = synthesis_matrix(grid, times.to(cbf.device), cbf.dtype)
    curves = [flow.new_zeros((0, times.shape[0]))]
    rows = _ROWS_CPU if cbf.device.type == "cpu" else _ROWS_DEVICE
    for start in range(0, flow.shape[0], rows):
        part = slice(start, start + rows)
        spectrum = residues(transit[part], mixture[part])
        spectrum = spectrum * (arterial if arterial.shape[0] == 1 else arterial[index[part]])
        if delayed:
            spectrum = spectrum * _delay_spectrum(omega, shift[part])
        if dispersed:
            spectrum = spectrum / _dispersion_denominator(omega, wide[part])
        curves.append(synthesise(spectrum, matrix) * flow[part, None])
    return torch.cat(curves).reshape(*shape, times.shape[0])
