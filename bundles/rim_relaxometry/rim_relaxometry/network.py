"""Recurrent inference machine and ResNet for relaxometry (Sabidussi et al., Med. Image Anal. 2021).

Every network here, and every baseline, is called as ``network(image, times, repetition_time, noise)`` and returns
``[batch, 2 Q, H, W]``: the Q parameter maps in their units, then their standard errors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from physics.noise import NOISE_MODELS, check_noise_model
from physics.relaxometry import InversionRecovery, SignalModel, T2Preparation

from .curvature import Likelihood, Steps, evaluate_likelihood, gauss_newton_steps, neighbourhood_mean, plain_physics
from .start import dictionary_start, flat_start

PARAMETERS = {"T1": ("A", "B", "T1"), "T2": ("A", "T2")}
# Range of each parameter, A as a fraction of the scale of the series.
BOUNDS = {"A": (1e-3, 20.0), "B": (1.2, 2.15), "T1": (0.05, 6.0), "T2": (0.003, 4.0)}
CHOICES = {
    "domain": ("log", "linear"),
    "gradient": ("gauss_newton", "raw"),
    "start": ("dictionary", "flat"),
    "activation": ("tanh", "relu"),
    "gru_kernel": (1, 3),
}


def make_signal_model(
    parameter: str, times: Tensor | Sequence[float], repetition_time: Tensor | Sequence[float] | float | None = None
) -> SignalModel:
    """Signal model of a mapping task.

    Args:
        parameter: ``"T1"`` (inversion recovery) or ``"T2"`` (monoexponential decay).
        times: inversion times or echo times [s], ``[N]``.
        repetition_time: TR [s], one value or one for each image; None for full recovery. Ignored for T2.

    Raises:
        ValueError: for another parameter.
    """
    if parameter not in PARAMETERS:
        raise ValueError(f"parameter must be one of {sorted(PARAMETERS)}, got {parameter!r}")
    return InversionRecovery(times, repetition_time) if parameter == "T1" else T2Preparation(times)


def series_scale(image: Tensor) -> Tensor:
    """Amplitude of the bright voxels of a series ``[batch, N, H, W]`` as ``[batch, 1, 1, 1]``.

    A power mean rather than a quantile: smooth, the same for any share of background, and exportable.
    """
    energy = image.square().mean(1, keepdim=True)
    mean = energy.square().mean((-2, -1), keepdim=True) / energy.mean((-2, -1), keepdim=True).clamp(min=1e-30)
    return 1.5 * mean.clamp(min=1e-30).sqrt()


class RelaxometryEstimator(nn.Module):
    """What every network and baseline here has: a task, and the acquisition used where a call gives none.

    Args:
        parameter: ``"T1"`` for (A, B, T1) or ``"T2"`` for (A, T2).
        times: inversion or echo times [s] of that acquisition.
        repetition_time: its TR [s], one value or one for each image; None for full recovery.
        noise: its noise model, ``"gaussian"`` or ``"rician"``.

    Raises:
        ValueError: for an unknown parameter or noise model, or times that cannot be.
    """

    def __init__(
        self,
        parameter: str,
        times: Sequence[float],
        repetition_time: Sequence[float] | float | None,
        noise: str,
    ) -> None:
        super().__init__()
        self.signal_model = make_signal_model(parameter, times, repetition_time)
        self.parameter, self.names, self.noise = parameter, PARAMETERS[parameter], check_noise_model(noise)

    def model_of(self, image: Tensor, times: Tensor | None, repetition_time: Tensor | None) -> SignalModel:
        """Signal model of a call; ValueError if its times are not as many as the images ``[batch, N, H, W]``."""
        model = self.signal_model if times is None else make_signal_model(self.parameter, times, repetition_time)
        if model.n_images != image.shape[1]:
            raise ValueError(f"image has {image.shape[1]} volumes, but {model.n_images} times are given")
        return model


class ConvGRU(nn.Module):
    """Gated recurrent unit whose matrices are convolutions; ``kernel_size`` 1 acts on each voxel alone."""

    def __init__(self, features: int, kernel_size: int) -> None:
        super().__init__()
        self.from_input = nn.Conv2d(features, 3 * features, kernel_size, padding=kernel_size // 2)
        self.from_state = nn.Conv2d(features, 3 * features, kernel_size, padding=kernel_size // 2)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """New state ``[batch, F, H, W]`` from an input and a state of that shape."""
        input_reset, input_update, input_new = self.from_input(x).chunk(3, 1)
        state_reset, state_update, state_new = self.from_state(state).chunk(3, 1)
        update = torch.sigmoid(input_update + state_update)
        new = torch.tanh(input_new + torch.sigmoid(input_reset + state_reset) * state_new)
        return new + update * (state - new)


class RNNCell(nn.Module):
    """Cell of figure 1a: convolution, GRU, two convolutions, GRU, pointwise convolution."""

    def __init__(self, inputs: int, outputs: int, features: int, gru_kernel: int, activation: str) -> None:
        super().__init__()
        self.features = features
        self.first = nn.Conv2d(inputs, features, 3, padding=1)
        self.gru1 = ConvGRU(features, gru_kernel)
        self.second = nn.Conv2d(features, features, 3, padding=1)
        self.third = nn.Conv2d(features, features, 3, padding=1)
        self.gru2 = ConvGRU(features, gru_kernel)
        self.last = nn.Conv2d(features, outputs, 1)
        self.activation = torch.tanh if activation == "tanh" else torch.relu

    def forward(self, x: Tensor, states: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Output ``[batch, outputs, H, W]`` and the two new states."""
        act = self.activation
        state1 = self.gru1(act(self.first(x)), states[0])
        state2 = self.gru2(act(self.third(act(self.second(state1)))), states[1])
        return self.last(state2), (state1, state2)


class RecurrentInferenceMachine(RelaxometryEstimator):
    """Learned iterative maximum-likelihood estimation of relaxation maps, for any number of images.

    Each step shows the cell the present estimate and its likelihood; the cell answers with a correction, and with a
    gate for each parameter on the Gauss-Newton step. Untrained it is a damped Gauss-Newton method with a smooth B.

    Args:
        parameter: ``"T1"`` for (A, B, T1) or ``"T2"`` for (A, T2).
        times: protocol used where the call gives none: inversion or echo times [s].
        repetition_time: its TR [s], one value or one for each image; None for full recovery.
        noise: noise model where the call gives none, ``"gaussian"`` or ``"rician"``.
        steps: J (paper: 6).
        features: width of the cell (paper: 36).
        gru_kernel: 1 for a pointwise GRU (the paper's package), 3 for a convolutional one.
        activation: ``"tanh"`` (paper) or ``"relu"`` (its package).
        domain: ``"log"`` for log A and log T, or ``"linear"`` (paper).
        gradient: ``"gauss_newton"`` for scaled steps, or ``"raw"`` (paper).
        start: ``"dictionary"`` or ``"flat"`` (paper).

    Raises:
        ValueError: if an option is none of its choices.
    """

    def __init__(
        self,
        parameter: str = "T1",
        times: Sequence[float] = (),
        repetition_time: Sequence[float] | float | None = None,
        noise: str = "rician",
        steps: int = 4,
        features: int = 32,
        gru_kernel: int = 1,
        activation: str = "tanh",
        domain: str = "log",
        gradient: str = "gauss_newton",
        start: str = "dictionary",
    ) -> None:
        super().__init__(parameter, times, repetition_time, noise)
        options = {"domain": domain, "gradient": gradient, "start": start, "activation": activation}
        for name, value in {**options, "gru_kernel": gru_kernel}.items():
            if value not in CHOICES[name]:
                raise ValueError(f"{name} must be one of {CHOICES[name]}, got {value!r}")
        self.steps, self.has_b = steps, parameter == "T1"
        self.scaled, self.logarithmic = gradient == "gauss_newton", domain == "log"
        self.dictionary = start == "dictionary"
        count = len(self.names)
        inputs = (18 if self.has_b else 12) + 1 if self.scaled else 2 * count + 1
        self.cell = RNNCell(inputs, 2 * count if self.scaled else count, features, gru_kernel, activation)
        self.error_head = nn.Conv2d(features, count, 1)
        nn.init.zeros_(self.error_head.weight)
        nn.init.zeros_(self.error_head.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.cell.last.weight)
        nn.init.zeros_(self.cell.last.bias)  # type: ignore[arg-type]
        if self.scaled:
            nn.init.ones_(self.cell.last.bias[count:])  # type: ignore[index]

    def forward(
        self,
        image: Tensor,
        times: Tensor | None = None,
        repetition_time: Tensor | None = None,
        noise: str | None = None,
    ) -> Tensor:
        """Estimate the maps.

        Args:
            image: magnitude series ``[batch, N, H, W]``, any positive scale.
            times: inversion or echo times [s] of this series, ``[N]``; the constructor's if absent.
            repetition_time: its TR [s], ``[N]`` or one value; only with ``times``.
            noise: ``"gaussian"`` or ``"rician"``; the constructor's if absent.

        Returns:
            In evaluation ``[batch, 2 Q, H, W]``: maps (A in the unit of ``image``, B, T1 or T2 [s]), then their
            standard errors. In training ``[batch, J, 2 Q, H, W]``: the maps of every step, then the logarithms of
            the standard errors of the last, relative for A, T1 and T2.

        Raises:
            ValueError: if the number of times is not that of the images.
        """
        model = self.model_of(image, times, repetition_time)
        rician = check_noise_model(noise or self.noise) == NOISE_MODELS[1]
        scale = series_scale(image)
        with plain_physics(image):
            data = (image / scale).movedim(1, 0).contiguous()
            if self.dictionary:
                begin = dictionary_start(model, data, self.has_b, rician)
            else:
                begin = flat_start(data, self.has_b)
            estimate = self.to_working_domain(torch.stack(begin, 1))
            log_energy = torch.log(data.square().mean(0).clamp(min=1e-12))
        state = image.new_zeros((image.shape[0], self.cell.features, *image.shape[2:]))
        states = (state, state)
        unit = torch.cat([scale, torch.ones_like(scale).expand(-1, len(self.names) - 1, -1, -1)], 1)
        trace = []
        for _ in range(self.steps):
            estimate = estimate.detach()
            with plain_physics(image):
                inputs, newton, deviation = self._look(model, data, estimate, log_energy, rician)
            answer, states = self.cell(inputs, states)
            estimate = self._clamp(estimate + self._correction(answer, newton))
            trace.append(self.from_working_domain(estimate) * unit)
        slopes = self._slopes(trace[-1].detach())
        relative = deviation if self.logarithmic else deviation * unit / slopes
        log_error = torch.log(relative) + self.error_head(states[1].detach())
        if self.training:
            return torch.stack([torch.cat([maps, log_error], 1) for maps in trace], 1)
        return torch.cat([trace[-1], torch.exp(log_error) * slopes], 1)

    def _correction(self, answer: Tensor, newton: Tensor) -> Tensor:
        if not self.scaled:
            return answer
        delta, gate = answer.chunk(2, 1)
        return 0.5 * delta + torch.sigmoid(gate) * newton

    def _look(
        self, model: SignalModel, data: Tensor, estimate: Tensor, log_energy: Tensor, rician: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Input of the cell, smooth Gauss-Newton step and working-domain deviation, each ``[batch, C, H, W]``."""
        maps = self.from_working_domain(estimate)
        slopes: list[Tensor | float] = (
            list(self._slopes(maps).unbind(1)) if self.logarithmic else [1.0] * len(self.names)
        )
        likelihood = evaluate_likelihood(model, data, list(maps.unbind(1)), slopes, rician)
        steps = gauss_newton_steps(likelihood, self.has_b)
        flag = torch.full_like(log_energy, float(rician))
        seen = [flag, *self._centred(estimate)]
        seen += self._scaled_view(estimate, likelihood, steps, log_energy) if self.scaled else likelihood.gradient
        return torch.stack(seen, 1), torch.stack(steps.smooth, 1), torch.stack(steps.deviation, 1)

    def _scaled_view(self, estimate: Tensor, likelihood: Likelihood, steps: Steps, log_energy: Tensor) -> list[Tensor]:
        """Channels of the scaled gradient, each of order one."""
        shared = [steps.smooth[0], steps.smooth[-1]] if self.has_b else []
        towards = [
            neighbourhood_mean(estimate[:, -1], steps.log_information[0], width) - estimate[:, -1] for width in (3, 7)
        ]
        moves = [step / (0.1 + step.abs()) for step in [*steps.voxelwise, *steps.pooled_b, *shared, *towards]]
        log_variance = torch.log(likelihood.variance).expand_as(log_energy)
        levels = [
            *[0.2 * (level - 6.0) for level in steps.log_information],
            torch.log(likelihood.chi2.clamp(min=1e-3)),
            0.2 * (log_variance + 6.0),
            0.2 * (log_energy - log_variance - 4.0),
        ]
        if not self.has_b:
            levels += [torch.log(steps.deviation[0]) + 3.0, torch.log(steps.deviation[-1]) + 3.0]
        return moves + levels

    def _centred(self, estimate: Tensor) -> list[Tensor]:
        if not self.logarithmic:
            return list(estimate.unbind(1))
        middle = {"A": 0.0, "B": 1.8, "T1": 0.0, "T2": -2.3}
        return [channel - middle[name] for name, channel in zip(self.names, estimate.unbind(1), strict=True)]

    def _slopes(self, maps: Tensor) -> Tensor:
        """Derivative of each parameter by its logarithm, B kept linear; ``[batch, Q, H, W]``."""
        return torch.stack(
            [torch.ones_like(m) if name == "B" else m for name, m in zip(self.names, maps.unbind(1), strict=True)], 1
        )

    def to_working_domain(self, maps: Tensor) -> Tensor:
        """Maps ``[batch, Q, ...]``, A relative to the series scale, to what the network works on."""
        channels = []
        for name, channel in zip(self.names, maps.unbind(1), strict=True):
            bounded = channel.clamp(*BOUNDS[name])
            channels.append(bounded.log() if self.logarithmic and name != "B" else bounded)
        return torch.stack(channels, 1)

    def from_working_domain(self, estimate: Tensor) -> Tensor:
        """Inverse of :meth:`to_working_domain`."""
        if not self.logarithmic:
            return estimate
        return torch.stack(
            [c if name == "B" else c.exp() for name, c in zip(self.names, estimate.unbind(1), strict=True)], 1
        )

    def _clamp(self, estimate: Tensor) -> Tensor:
        """Keep the estimate within its bounds; gradients pass, or a voxel at a bound would never learn to leave it."""
        channels = []
        for name, channel in zip(self.names, estimate.detach().unbind(1), strict=True):
            low, high = BOUNDS[name]
            logarithmic = self.logarithmic and name != "B"
            channels.append(channel.clamp(math.log(low), math.log(high)) if logarithmic else channel.clamp(low, high))
        return estimate + (torch.stack(channels, 1) - estimate.detach())


RESNET_WIDTHS = (24, 24, 32, 32, 40, 40, 40, 40, 32, 32, 24, 24)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with batch normalisation; a 1 x 1 convolution on the shortcut where the width changes."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.shortcut = nn.Identity() if inputs == width else nn.Conv2d(inputs, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Features ``[batch, width, H, W]``."""
        return torch.relu(self.body(x) + self.shortcut(x))


class ResNet(RelaxometryEstimator):
    """Direct mapping from a series to maps by G = 12 residual blocks (section 4.4.3), for one protocol only.

    The paper lists eleven widths for twelve blocks, up to 320; the default here is narrower, for training on a CPU.

    Args:
        parameter: ``"T1"`` or ``"T2"``.
        times: the protocol [s]; the network knows no other.
        repetition_time: its TR [s]; None for full recovery.
        noise: noise model of the training, for the record; the network does not use it.
        widths: features of each block.
    """

    def __init__(
        self,
        parameter: str = "T1",
        times: Sequence[float] = (),
        repetition_time: Sequence[float] | float | None = None,
        noise: str = "rician",
        widths: Sequence[int] = RESNET_WIDTHS,
    ) -> None:
        super().__init__(parameter, times, repetition_time, noise)
        self.first = nn.Sequential(
            nn.Conv2d(self.signal_model.n_images, widths[0], 1), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        self.blocks = nn.Sequential(*map(ResidualBlock, (widths[0], *widths[:-1]), widths))
        self.last = nn.Conv2d(widths[-1], 2 * len(self.names), 1)
        middle = {"A": -0.3, "B": 1.8, "T1": 0.0, "T2": -2.3}
        with torch.no_grad():
            self.last.bias.copy_(torch.tensor([middle[n] for n in self.names] + [-2.0] * len(self.names)))  # type: ignore[union-attr]

    def forward(
        self,
        image: Tensor,
        times: Tensor | None = None,
        repetition_time: Tensor | None = None,
        noise: str | None = None,
    ) -> Tensor:
        """Estimate the maps; arguments and result as for :class:`RecurrentInferenceMachine`, with one step.

        Raises:
            ValueError: if the protocol is not the one of the training, to 1 ms.
        """
        own = self.signal_model.times
        if times is not None and (times.shape != own.shape or bool(((times.to(own) - own).abs() > 1e-3).any())):
            raise ValueError(
                f"this ResNet was trained for the times {[round(t, 4) for t in own.tolist()]} s only, got "
                f"{[round(t, 4) for t in times.tolist()]} s: train it for them, or use the recurrent inference machine"
            )
        scale = series_scale(image)
        out, log_error = self.last(self.blocks(self.first(image / scale))).chunk(2, 1)
        channels = []
        for name, channel in zip(self.names, out.unbind(1), strict=True):
            low, high = BOUNDS[name]
            positive = channel if name == "B" else channel.clamp(math.log(low) - 1.0, math.log(high) + 1.0).exp()
            channels.append(positive * scale[:, 0] if name == "A" else positive)
        maps = torch.stack(channels, 1)
        if self.training:
            return torch.cat([maps, log_error], 1)[:, None]
        slopes = torch.stack(
            [torch.ones_like(m) if n == "B" else m for n, m in zip(self.names, channels, strict=True)], 1
        )
        return torch.cat([maps, log_error.clamp(-9.0, 3.0).exp() * slopes], 1)
