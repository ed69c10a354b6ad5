"""One outer update after the gradients are in place: guard, clip, step, running averages. No host sync on
CUDA.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm

from metalearn.core import Algorithm

HEALTHY = -1


@dataclass(frozen=True)
class Clip:
    """norm: largest 2-norm of the whole gradient. value: largest absolute entry. None: no limit."""

    norm: float | None = None
    value: float | None = None


class Updater:
    """Applies gradients to an algorithm, and refuses every update whose loss or gradient is not finite.

    limit: after so many refusals in a row nothing is applied any more, so that by the time the host reads it
    the weights are still those that the bad steps met. 1: the first one is the last.
    schedule: factor on each group's learning rate, as a function of the step.
    bad_step, row, refused, bad: scalars on the device. The first refused step since the host last looked, or
    HEALTHY; refused updates in a row up to now, and in all; whether the last update was refused.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        optimizer: torch.optim.Optimizer,
        schedule: Callable[[int], float],
        clip: Clip,
        *,
        limit: int = 1,
    ) -> None:
        self.algorithm = algorithm
        self.optimizer = optimizer
        self.schedule = schedule
        self.clip = clip
        self.limit = limit
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.device = self.parameters[0].device
        self.count_refusals()
        # The fused kernels read this attribute and leave weights, moments and step counts alone when it is 1.
        self.fused = all(group.get("fused") for group in optimizer.param_groups)

    def update(self, step: int, losses: Tensor, statistics: Any = None) -> Tensor:
        """Use the gradients in `.grad`; return the 2-norm that they had before clipping.

        losses (T,): outer losses of the tasks. statistics: batch-norm statistics, averaged over tasks.
        """
        grads = [p.grad for p in self.parameters if p.grad is not None]
        norm = get_total_norm(grads, foreach=True)
        self._judge(step, torch.isfinite(norm) & torch.isfinite(losses).all())
        # On the gradients' own norm and after the check: clipping would turn infinity into a usable number.
        if self.clip.norm is not None:
            clip_grads_with_norm_(self.parameters, self.clip.norm, norm, foreach=True)
        if self.clip.value is not None:
            clip_grad_value_(self.parameters, self.clip.value, foreach=True)
        for group, base_lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base_lr * self.schedule(step)
        self._step()
        self.algorithm.outer_step += ~self.bad
        if statistics is not None:
            self._follow(statistics)
        return norm

    def count_refusals(self, refused: int = 0, row: int = 0) -> None:
        """Begin, or go on with the counts of a checkpoint. Its row means nothing where the first refusal is
        the last one.
        """
        row = row if self.limit > 1 else 0
        self.refused, self.row = (
            torch.full((), refused, device=self.device),
            torch.full((), row, device=self.device),
        )
        self.forget_refusals()

    def forget_refusals(self) -> None:
        """The host has looked, and the run goes on."""
        self.bad_step = torch.full((), HEALTHY, device=self.device)

    def _judge(self, step: int, finite: Tensor) -> None:
        self.bad = ~finite | (self.row >= self.limit)
        self.bad_step = torch.where(self.bad & (self.bad_step == HEALTHY), step, self.bad_step)
        self.row = torch.where(self.bad, self.row + 1, 0)
        self.refused = self.refused + self.bad

    def _step(self) -> None:
        if self.fused:
            self.optimizer.found_inf = self.bad.to(torch.float32)  # type: ignore[attr-defined]
            self.optimizer.step()
        elif not self.bad.item():  # an optimizer without fused kernels costs one host sync a step
            self.optimizer.step()

    def _follow(self, statistics: Any) -> None:
        """Let running batch-norm averages follow, unless the update was refused."""
        before = [(buffer, buffer.clone()) for buffer in self.algorithm.buffers()]
        self.algorithm.update_running(statistics)
        for buffer, old in before:
            buffer.copy_(torch.where(self.bad, old, buffer))
