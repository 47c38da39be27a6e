"""One step of WGAN-GP training beside the supervised loss, for MONAI's SupervisedTrainer."""

from __future__ import annotations

import math
from typing import Any

import torch
from monai.engines import SupervisedTrainer
from monai.utils.enums import CommonKeys
from torch import Tensor

from shared_transforms.distributed import (
    average_gradients,
    batch_mean,
    count_of_batch,
    of_first_process,
    own_rows,
)

from .loss import gradient_penalty
from .network import Critic


class AdversarialUpdate:
    """``iteration_update`` of a SupervisedTrainer: the critic learns in every iteration, the generator in every k-th.

    The trainer's network, optimizer, inferer and loss are the generator's. The output holds, beside MONAI's own,
    ``critic_distance`` (mean score of true minus generated maps, an estimate of the Wasserstein distance),
    ``gradient_penalty``, ``critic_loss``, ``supervised_loss``, ``adversarial_loss`` and ``gradient_norm`` (of the
    generator before clipping): numbers that trackers record.

    Args:
        critic: scores maps and fields, see :class:`.network.Critic`.
        critic_optimizer: its optimizer.
        adversarial_weight: of the critic's score in the generator's loss.
        penalty_weight: of the gradient penalty in the critic's loss.
        critic_steps: iterations of the critic to one of the generator.
        field_channel: channel of the image that holds the field.
        crop: voxels cut off the field at each side, as the generator does.

    Source: Gulrajani et al., Improved training of Wasserstein GANs (2017), algorithm 1.
    """

    def __init__(
        self,
        critic: Critic,
        critic_optimizer: torch.optim.Optimizer,
        adversarial_weight: float = 0.01,
        penalty_weight: float = 10.0,
        critic_steps: int = 5,
        field_channel: int = 0,
        crop: int = 8,
    ) -> None:
        if critic_steps < 1:
            raise ValueError(f"critic_steps must be at least 1, got {critic_steps}")
        self.critic, self.critic_optimizer = critic, critic_optimizer
        self.adversarial_weight, self.penalty_weight = adversarial_weight, penalty_weight
        self.critic_steps = critic_steps
        self.field_channel, self.crop = field_channel, crop
        for values in critic.state_dict().values():  # processes of one training start with one critic
            of_first_process(values)

    def __call__(self, engine: SupervisedTrainer, batch: dict[str, Any]) -> dict[str, Any]:
        """Train on one batch; returns the output of the engine."""
        image, label, args, kwargs = engine.prepare_batch(batch, engine.state.device, engine.non_blocking)
        engine.network.train()
        self.critic.train()
        updates_generator = engine.state.iteration % self.critic_steps == 0
        with torch.set_grad_enabled(updates_generator):
            made = engine.inferer(image, engine.network, *args, **kwargs)
        inside = label["mask"].to(made)
        field, c = image[:, self.field_channel : self.field_channel + 1], self.crop
        field = field[:, :, c : field.shape[2] - c, c : field.shape[3] - c, c : field.shape[4] - c] * inside
        true = label["parameters"] * inside
        output = {CommonKeys.IMAGE: image, CommonKeys.LABEL: label, CommonKeys.PRED: made.detach()}
        output |= self._train_critic(true, (made * inside).detach(), field)
        if updates_generator:
            output |= self._train_generator(engine, made, made * inside, label, field)
        else:
            with torch.no_grad():
                output[CommonKeys.LOSS] = engine.loss_function(made, label)
        return output

    def _train_critic(self, true: Tensor, made: Tensor, field: Tensor) -> dict[str, Tensor]:
        self.critic.requires_grad_(True)
        share = own_rows(of_first_process(torch.rand(count_of_batch(true), device=true.device)))
        distance = batch_mean(self.critic(true, field)) - batch_mean(self.critic(made, field))
        penalty = gradient_penalty(self.critic, true, made, field, share)
        loss = self.penalty_weight * penalty - distance
        self.critic_optimizer.zero_grad()
        loss.backward()
        average_gradients(self.critic)
        self.critic_optimizer.step()
        return {
            "critic_distance": distance.detach(),
            "gradient_penalty": penalty.detach(),
            "critic_loss": loss.detach(),
        }

    def _train_generator(
        self, engine: SupervisedTrainer, made: Tensor, inside: Tensor, label: dict[str, Tensor], field: Tensor
    ) -> dict[str, Tensor]:
        self.critic.requires_grad_(False)
        supervised = engine.loss_function(made, label)
        adversarial = -batch_mean(self.critic(inside, field))
        engine.optimizer.zero_grad()
        (supervised + self.adversarial_weight * adversarial).backward()
        norm = torch.nn.utils.clip_grad_norm_(engine.network.parameters(), math.inf)  # measured, not clipped
        engine.optimizer.step()
        return {
            CommonKeys.LOSS: supervised.detach(),
            "supervised_loss": supervised.detach(),
            "adversarial_loss": adversarial.detach(),
            "gradient_norm": norm.detach(),
        }
