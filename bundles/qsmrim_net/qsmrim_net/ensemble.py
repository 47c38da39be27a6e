"""Networks of several seeds as one: calibrated probabilities and the thresholds that go with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

__all__ = ["RimEnsemble"]


class RimEnsemble(nn.Module):
    """Calibrated rim probabilities of each of several networks.

    A network's logit z becomes ``sigmoid(a z + b)`` (Platt), with slope and intercept of its own. What reads the
    probabilities needs the thresholds, which are therefore part of the weights:

    * ``calibration`` ``[seeds, 2]``: slope a and intercept b; 1 and 0 until they are set.
    * ``thresholds`` ``[2]``: of the mean probability, for the best F1 and for high sensitivity; 0.5 until set.
    * ``seed_thresholds`` ``[seeds]``: of each network's probability, for its vote; 0.5 until set.

    Args:
        members: the networks, called as ``member(image, radiomics)``; they must be objects of their own.

    Raises:
        ValueError: without members, or where two are the same object.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        if not members or len({id(member) for member in members}) < len(members):
            raise ValueError(f"members must be different networks, at least one, got {len(members)} with repetition")
        self.members = nn.ModuleList(members)
        self.register_buffer("calibration", torch.tensor([[1.0, 0.0]]).repeat(len(members), 1))
        self.register_buffer("thresholds", torch.full((2,), 0.5))
        self.register_buffer("seed_thresholds", torch.full((len(members),), 0.5))

    @classmethod
    def from_members(cls, network: nn.Module, states: Sequence[Mapping[str, Tensor]]) -> RimEnsemble:
        """Copies of one network with the weights of trained ones, in evaluation mode.

        Args:
            network: of the architecture that was trained; left as it is.
            states: a ``state_dict`` for each member.

        Raises:
            ValueError: without states.
            RuntimeError: for weights of another architecture.
        """
        members = [deepcopy(network) for _ in states]
        for member, state in zip(members, states, strict=True):
            member.load_state_dict(state)
        return cls(members).eval()

    @torch.jit.unused
    def set_calibration(self, calibration: Tensor, thresholds: Tensor, seed_thresholds: Tensor) -> None:
        """Set slopes and intercepts ``[seeds, 2]``, thresholds ``[2]`` and thresholds of the votes ``[seeds]``.

        Raises:
            ValueError: for another shape, a value that is not finite, a slope that is not positive (it would turn the
                order round) or a threshold outside of 0 to 1.
        """
        given = {"calibration": calibration, "thresholds": thresholds, "seed_thresholds": seed_thresholds}
        for name, value in given.items():
            buffer = self.get_buffer(name)
            if value.shape != buffer.shape or not bool(value.isfinite().all()):
                shapes = f"{tuple(buffer.shape)}, got shape {tuple(value.shape)}, values {value.tolist()}"
                raise ValueError(f"{name} must be finite, of shape {shapes}")
            if name != "calibration" and not bool(((value >= 0) & (value <= 1)).all()):
                raise ValueError(f"{name} must be between 0 and 1, got {value.tolist()}")
        if not bool((calibration[:, 0] > 0).all()):
            raise ValueError(f"calibration must have positive slopes, got {calibration[:, 0].tolist()}")
        for name, value in given.items():
            self.get_buffer(name).copy_(value)

    def forward(self, image: Tensor, radiomics: Tensor | None = None) -> Tensor:
        """Calibrated probabilities of a batch of lesions.

        Args:
            image: patches ``[N, 2, X, Y, Z]``, QSM [50 ppb] and normalised FLAIR, 0 outside of the lesion.
            radiomics: raw features ``[N, 527]``, NaN where there is none; without, every lesion has the mean's.

        Returns:
            ``[N, seeds]``.

        Raises:
            ValueError: for another shape.
        """
        logits: list[Tensor] = []
        for member in self.members:
            logits.append(member(image, radiomics))
        calibration = torch.jit.annotate(Tensor, self.calibration)  # TorchScript reads no annotation of the class
        scores = torch.stack(logits, 1).to(calibration.dtype)
        return torch.sigmoid(calibration[:, 0] * scores + calibration[:, 1])
