"""Signal models of T1 and T2 relaxometry, with analytic Jacobians and Cramer-Rao bounds.

A model holds the acquisition (times in seconds); tissue parameters are given in the call, each a tensor of any
voxel shape. Signals have the acquisition as their first axis: ``[N, *voxels]``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from physics.noise import check_noise_model, rician_information

__all__ = ["InversionRecovery", "LookLocker", "SignalModel", "SpinEcho", "T2Preparation"]


def _as_times(values: Tensor | Sequence[float], name: str) -> Tensor:
    times = values.detach().clone() if isinstance(values, Tensor) else torch.tensor(list(values))
    times = times if times.is_floating_point() else times.to(torch.get_default_dtype())
    if times.ndim == 0 or times.shape[0] == 0:
        raise ValueError(f"{name} must be a list of times in seconds, got shape {tuple(times.shape)}")
    if not bool(torch.isfinite(times).all()) or bool((times < 0).any()):
        raise ValueError(f"{name} must be finite and not negative [s], got {times.flatten().tolist()}")
    return times


class SignalModel(nn.Module):
    r"""Magnitude signal of one voxel as a function of its tissue parameters, :math:`s_n = |A f(t_n; \ldots)|`.

    Subclasses define :meth:`signed`, the signal before the modulus with its derivatives. The amplitude A is always
    the first parameter and enters linearly.

    Attributes:
        parameter_names: names in the order of the call.
        units: their units.
    """

    parameter_names: tuple[str, ...]
    units: tuple[str, ...]
    times: Tensor

    @property
    def n_images(self) -> int:
        """Number of images N in the series."""
        return int(self.times.shape[0])  # a trace would make a tensor of it

    def signed(self, *parameters: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Signal before the modulus ``[N, *voxels]`` and its derivative by each parameter, each ``[N, *voxels]``."""
        raise NotImplementedError

    def _per_image(self, values: Tensor, parameter: Tensor) -> Tensor:
        """Times shaped so that they broadcast against ``parameter``: [N] becomes [N, 1, ..., 1]."""
        values = values.to(parameter)
        return values.reshape(-1, *[1] * parameter.ndim) if values.ndim == 1 else values

    def _check(self, parameters: Sequence[Tensor]) -> None:
        if len(parameters) != len(self.parameter_names):
            raise ValueError(
                f"{type(self).__name__} takes the parameters {self.parameter_names}, got {len(parameters)} tensors"
            )

    def forward(self, *parameters: Tensor) -> Tensor:
        """Magnitude signal.

        Args:
            parameters: tissue parameters in the order of :attr:`parameter_names`, each ``[*voxels]``.

        Returns:
            Signal ``[N, *voxels]`` in the unit of A.

        Raises:
            ValueError: if the number of parameters is not that of the model.
        """
        self._check(parameters)
        return self.signed(*parameters)[0].abs()

    def signal_and_jacobian(self, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Magnitude signal ``[N, *voxels]`` and its Jacobian ``[Q, N, *voxels]``, sharing their exponentials.

        The derivative of the modulus at a null of the signal is taken as 0.
        """
        self._check(parameters)
        signal, derivatives = self.signed(*parameters)
        sign = torch.sign(signal)
        return signal * sign, torch.stack([derivative * sign for derivative in derivatives])

    def jacobian(self, *parameters: Tensor) -> Tensor:
        """Derivative of the magnitude signal by each parameter, ``[Q, N, *voxels]``."""
        return self.signal_and_jacobian(*parameters)[1]

    def cramer_rao_bound(
        self, *parameters: Tensor, sigma: Tensor | float, noise: str = "gaussian", known: Sequence[str] = ()
    ) -> Tensor:
        r"""Smallest standard deviation that an unbiased estimator can reach.

        .. math:: F_{qr} = \sum_{n=1}^{N} \frac{w(s_n / \sigma)}{\sigma^2} \,
            \frac{\partial s_n}{\partial p_q} \frac{\partial s_n}{\partial p_r}, \qquad
            \mathrm{sd}(\hat p_q) \ge \sqrt{(F^{-1})_{qq}}

        over the parameters that are not known; w is 1 for Gaussian noise, and :func:`physics.noise.rician_information`
        for Rician noise.

        Args:
            parameters: tissue parameters, each ``[*voxels]``.
            sigma: noise standard deviation, in the unit of A.
            noise: ``"gaussian"`` or ``"rician"``.
            known: names of parameters that need not be estimated; their bound is 0.

        Returns:
            Standard deviations ``[Q, *voxels]`` in the units of the parameters; infinite where the Fisher matrix
            is singular.

        Raises:
            ValueError: for an unknown noise model or name in ``known``.
        """
        check_noise_model(noise)
        unknown = set(known) - set(self.parameter_names)
        if unknown:
            raise ValueError(f"known must name parameters of {self.parameter_names}, got {sorted(unknown)}")
        signal, jacobian = self.signal_and_jacobian(*parameters)
        weight = rician_information(signal / sigma) if noise == "rician" else torch.ones_like(signal)
        free = [q for q, name in enumerate(self.parameter_names) if name not in known]
        wide = jacobian[free].double()
        fisher = torch.einsum("qn...,n...,rn...->...qr", wide, weight.double(), wide) / torch.as_tensor(sigma) ** 2
        scale = fisher.diagonal(dim1=-2, dim2=-1).clamp(min=1e-300).rsqrt()
        scaled = fisher * scale[..., :, None] * scale[..., None, :]
        eigenvalues, vectors = torch.linalg.eigh(scaled)
        regular = eigenvalues[..., :1] > 1e-12
        variance = (vectors**2 / eigenvalues.clamp(min=1e-12)[..., None, :]).sum(-1) * scale**2
        deviation = torch.where(regular, variance.sqrt(), math.inf)
        bound = torch.zeros((len(self.parameter_names), *signal.shape[1:]), dtype=signal.dtype, device=signal.device)
        bound[free] = deviation.movedim(-1, 0).to(signal.dtype)
        return bound


class InversionRecovery(SignalModel):
    r"""Inversion recovery.

    .. math:: s = \left| A \left(1 - B e^{-TI / T_1} + (B - 1) e^{-TR / T_1}\right) \right|

    with TI, TR and T1 in s, B without unit, A in the unit of the images. Without a repetition time the last term is
    absent (full recovery; Sabidussi et al. 2021, section 4.1). B is the inversion factor, 1 - cos(inversion angle): 2
    for a perfect inversion.

    Args:
        inversion_times: TI [s], ``[N]`` or broadcastable ``[N, *voxels]``.
        repetition_time: TR [s], one value or one for each inversion time; None for full recovery.

    Raises:
        ValueError: if a time is negative or not finite, if TR does not match TI in number or is not longer.
    """

    parameter_names = ("A", "B", "T1")
    units = ("a.u.", "1", "s")
    repetition_time: Tensor | None

    def __init__(
        self, inversion_times: Tensor | Sequence[float], repetition_time: Tensor | Sequence[float] | float | None = None
    ) -> None:
        super().__init__()
        times = _as_times(inversion_times, "inversion_times")
        self.register_buffer("times", times, persistent=False)
        recovery = None
        if repetition_time is not None:
            scalar = isinstance(repetition_time, int | float) or getattr(repetition_time, "ndim", 1) == 0
            recovery = _as_times([float(repetition_time)] if scalar else repetition_time, "repetition_time").to(times)  # type: ignore[arg-type]
            if recovery.shape[0] not in (1, times.shape[0]):
                raise ValueError(
                    f"repetition_time must be one value or one for each of the {times.shape[0]} inversion times, "
                    f"got {recovery.shape[0]}"
                )
            if recovery.ndim == times.ndim and bool((recovery <= times).any()):
                raise ValueError("repetition_time must be longer than every inversion time")
        self.register_buffer("repetition_time", recovery, persistent=False)

    def signed(self, *parameters: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Signal before the modulus and its derivatives by A, B and T1."""
        amplitude, inversion, t1 = parameters
        rate = 1.0 / t1
        times = self._per_image(self.times, t1)
        decay = torch.exp(-times * rate)
        shape = 1.0 - inversion * decay
        by_inversion = -decay
        by_t1 = -inversion * decay * times
        if self.repetition_time is not None:
            recovery = self._per_image(self.repetition_time, t1)
            rest = torch.exp(-recovery * rate)
            shape = shape + (inversion - 1.0) * rest
            by_inversion = by_inversion + rest
            by_t1 = by_t1 + (inversion - 1.0) * rest * recovery
        return amplitude * shape, (shape, amplitude * by_inversion, amplitude * rate**2 * by_t1)


class LookLocker(SignalModel):
    r"""Look-Locker: inversion, then a train of small flip angles whose readouts drive the recovery.

    The signal relaxes with T1* to A*:

    .. math:: s = \left| A^* \left(1 - B^* e^{-t / T_1^*}\right) \right|, \qquad
        \frac{1}{T_1^*} = \frac{1}{T_1} - \frac{\ln \cos \alpha}{\Delta t}, \qquad
        A^* = A \frac{1 - E_1}{1 - E_1 \cos \alpha}, \quad E_1 = e^{-\Delta t / T_1}, \qquad
        B^* = 1 + (B - 1) \frac{A}{A^*}

    with times in s. Source: Look and Locker, Rev. Sci. Instrum. 41:250 (1970); Deichmann and Haase, J. Magn. Reson.
    96:608 (1992).

    Args:
        inversion_times: t [s] from the inversion to each readout, ``[N]`` or broadcastable ``[N, *voxels]``.
        flip_angle: a [degrees], between 0 and 90.
        readout_interval: dt [s] between two readouts.

    Raises:
        ValueError: if a time is negative or the flip angle out of range.
    """

    parameter_names = ("A", "B", "T1")
    units = ("a.u.", "1", "s")

    def __init__(self, inversion_times: Tensor | Sequence[float], flip_angle: float, readout_interval: float) -> None:
        super().__init__()
        if not 0.0 < flip_angle < 90.0:
            raise ValueError(f"flip_angle must lie between 0 and 90 degrees, got {flip_angle}")
        if not readout_interval > 0.0:
            raise ValueError(f"readout_interval must be positive [s], got {readout_interval}")
        self.register_buffer("times", _as_times(inversion_times, "inversion_times"), persistent=False)
        self.cosine = math.cos(math.radians(flip_angle))
        self.readout_interval = float(readout_interval)

    @staticmethod
    def corrected_t1(t1_star: Tensor, b_star: Tensor) -> Tensor:
        """T1 [s] from the apparent T1* [s] and B*, for perfect inversion and a small flip angle.

        .. math:: T_1 = T_1^* (B^* - 1)
        """
        return t1_star * (b_star - 1.0)

    def apparent(self, amplitude: Tensor, inversion: Tensor, t1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A*, B* and T1* [s] of the three-parameter recovery, each ``[*voxels]``."""
        e1 = torch.exp(-self.readout_interval / t1)
        steady = (1.0 - e1) / (1.0 - e1 * self.cosine)
        t1_star = 1.0 / (1.0 / t1 - math.log(self.cosine) / self.readout_interval)
        return amplitude * steady, 1.0 + (inversion - 1.0) / steady, t1_star

    def signed(self, *parameters: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Signal before the modulus and its derivatives by A, B and T1."""
        amplitude, inversion, t1 = parameters
        times = self._per_image(self.times, t1)
        e1 = torch.exp(-self.readout_interval / t1)
        steady = (1.0 - e1) / (1.0 - e1 * self.cosine)
        decay = torch.exp(-times * (1.0 / t1 - math.log(self.cosine) / self.readout_interval))
        shape = steady - (steady + inversion - 1.0) * decay
        e1_by_t1 = e1 * self.readout_interval / t1**2
        steady_by_t1 = e1_by_t1 * (self.cosine - 1.0) / (1.0 - e1 * self.cosine) ** 2
        by_t1 = steady_by_t1 * (1.0 - decay) - (steady + inversion - 1.0) * decay * times / t1**2
        return amplitude * shape, (shape, -amplitude * decay, amplitude * by_t1)


class _Decay(SignalModel):
    parameter_names = ("A", "T2")
    units = ("a.u.", "s")

    def signed(self, *parameters: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Signal and its derivatives by A and T2."""
        amplitude, t2 = parameters
        times = self._per_image(self.times, t2)
        decay = torch.exp(-times / t2)
        return amplitude * decay, (decay, amplitude * decay * times / t2**2)


class T2Preparation(_Decay):
    r"""T2-prepared sequence (Sabidussi et al. 2021, section 4.1).

    .. math:: s = \left| A e^{-\tau / T_2} \right|

    with both times in s, A in the unit of the images.

    Args:
        preparation_times: tau [s], ``[N]`` or broadcastable ``[N, *voxels]``.

    Raises:
        ValueError: if a time is negative or not finite.
    """

    def __init__(self, preparation_times: Tensor | Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("times", _as_times(preparation_times, "preparation_times"), persistent=False)


class SpinEcho(_Decay):
    r"""Spin echo or multi-echo spin echo with perfect refocusing.

    .. math:: s = \left| A e^{-TE / T_2} \right|

    with both times in s, A in the unit of the images. Source: Hahn, Phys. Rev. 80:580 (1950).

    Args:
        echo_times: TE [s], ``[N]`` or broadcastable ``[N, *voxels]``.

    Raises:
        ValueError: if a time is negative or not finite.
    """

    def __init__(self, echo_times: Tensor | Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("times", _as_times(echo_times, "echo_times"), persistent=False)
