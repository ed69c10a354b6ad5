"""One outer update after the gradients are in place: guard, clip, step, running averages. No host sync on CUDA."""

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
    """Applies gradients to an algorithm, and refuses every update from the first non-finite one on.

    bad_step: int64 scalar on the device, the first step whose loss or gradient was not finite, HEALTHY before
    that. It is sticky, so that by the time the host reads it the weights are still those that the bad step met.
    schedule: factor on each group's learning rate, as a function of the step.
    """

    def __init__(self, algorithm: Algorithm, optimizer: torch.optim.Optimizer, schedule: Callable[[int], float], clip: Clip) -> None:
        self.algorithm = algorithm
        self.optimizer = optimizer
        self.schedule = schedule
        self.clip = clip
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.device = self.parameters[0].device
        self.bad_step = torch.full((), HEALTHY, device=self.device)
        # The fused kernels read this attribute and leave weights, moments and step counts alone when it is 1.
        self.fused = all(group.get("fused") for group in optimizer.param_groups)

    def update(self, step: int, losses: Tensor, statistics: Any = None) -> Tensor:
        """Use the gradients in `.grad`; return the 2-norm that they had before clipping.

        losses (T,): outer losses of the tasks. statistics: batch-norm statistics, averaged over tasks.
        """
        grads = [p.grad for p in self.parameters if p.grad is not None]
        norm = get_total_norm(grads, foreach=True)
        finite = torch.isfinite(norm) & torch.isfinite(losses).all()
        self.bad_step = torch.where(finite | (self.bad_step != HEALTHY), self.bad_step, step)
        # On the gradients' own norm and after the check: clipping would turn infinity into a usable number.
        if self.clip.norm is not None:
            clip_grads_with_norm_(self.parameters, self.clip.norm, norm, foreach=True)
        if self.clip.value is not None:
            clip_grad_value_(self.parameters, self.clip.value, foreach=True)
        for group, base_lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base_lr * self.schedule(step)
        self._step()
        if statistics is not None:
            self._follow(statistics)
        return norm

    def _step(self) -> None:
        bad = self.bad_step != HEALTHY
        if self.fused:
            self.optimizer.found_inf = bad.to(torch.float32)  # type: ignore[attr-defined]
            self.optimizer.step()
        elif not bad.item():  # an optimizer without fused kernels costs one host sync a step
            self.optimizer.step()

    def _follow(self, statistics: Any) -> None:
        """Let running batch-norm averages follow, unless the update was refused."""
        before = [(buffer, buffer.clone()) for buffer in self.algorithm.buffers()]
        self.algorithm.update_running(statistics)
        for buffer, old in before:
            buffer.copy_(torch.where(self.bad_step == HEALTHY, buffer, old))
