"""Reptile (Nichol, Achiam & Schulman 2018, arXiv:1803.02999), algorithm 1, with the authors' inner Adam.

Adapt by minibatch Adam (beta1 = 0) on the support; the outer "gradient" is the mean of initial minus adapted
weights, so that outer SGD with lr = epsilon is the paper's update. Adam's second moment is learned across
tasks, as in the authors' code: with beta1 = 0 and a second moment of zero, the first inner step would be the
sign of a noisy gradient.
Deviation: every task of an outer step starts from the same second moment, and the mean of what the tasks end
with is where the next step starts; the original takes one task after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from metalearn.algorithms.base import NetworkAlgorithm
from metalearn.core import Batch, Draw, Examples, Metrics, Parameters, Plan, Task, TaskSpec
from metalearn.functional import Adam, descend


class Reptile(NetworkAlgorithm):
    """inner_batch_size and eval_inner_batch_size: support rows per inner step."""

    handles_ragged = False  # minibatches are of a support of fixed size
    order_matters = True

    second_moment: Tensor  # of the inner Adam, all parameters in one row
    inner_steps: Tensor  # that the second moment has seen

    def __init__(
        self,
        model: nn.Module,
        spec: TaskSpec,
        *,
        inner_lr: float,
        adaptation_steps: int,
        eval_adaptation_steps: int,
        inner_batch_size: int,
        eval_inner_batch_size: int,
    ) -> None:
        super().__init__(model, spec)
        self.inner_lr = inner_lr
        self.adaptation_steps, self.eval_adaptation_steps = adaptation_steps, eval_adaptation_steps
        self.inner_batch_size, self.eval_inner_batch_size = inner_batch_size, eval_inner_batch_size
        self.register_buffer("second_moment", torch.zeros(sum(p.numel() for p in self.parameters())))
        self.register_buffer("inner_steps", torch.zeros((), dtype=torch.int64))

    def protocol(self) -> dict[str, Any]:
        return {
            "inner_lr": self.inner_lr,
            "inner_batch_size": self.inner_batch_size,
            "eval_inner_batch_size": self.eval_inner_batch_size,
        }

    def draws(self, spec: TaskSpec) -> dict[str, Draw]:
        rows = max(
            self.adaptation_steps * self.inner_batch_size,
            self.eval_adaptation_steps * self.eval_inner_batch_size,
        )
        return {"order": Draw("permutation", (ceil(rows / spec.support_size), spec.support_size))}

    def descent(
        self, task: Task, counts: Sequence[int], batch_size: int, adam: Adam, losses: list[Tensor]
    ) -> Iterator[Parameters]:
        """The weights after each of `counts` minibatches of the shuffled support; the loss of each goes into
        `losses`.
        """
        order = task.draws["order"].flatten()
        batch_size = min(batch_size, len(task.support.y))

        def loss(weights: Parameters, step: int) -> Tensor:
            rows = order[step * batch_size : (step + 1) * batch_size]
            return self.support_loss(
                weights, Examples(*tree_map(lambda leaf: leaf[rows], tuple(task.support))), step
            )

        return descend(
            loss, dict(self.named_parameters()), adam, counts=counts, first_order=True, losses=losses
        )

    def adam(self) -> Adam:
        """The inner Adam, with the second moment of the tasks so far."""
        weights = dict(self.named_parameters())
        parts = self.second_moment.split([w.numel() for w in weights.values()])
        second = {name: part.view_as(w) for (name, w), part in zip(weights.items(), parts, strict=True)}
        return Adam(second, self.inner_steps, lr=self.inner_lr)

    def adapt(self, task: Task, *, steps: int) -> dict[str, Any]:
        return next(self.adapt_path(task, counts=[steps]))

    def adapt_path(self, task: Task, *, counts: Sequence[int]) -> Iterator[dict[str, Any]]:
        path = self.descent(task, counts, self.eval_inner_batch_size, self.adam(), [])
        return (self.prepare(weights, task, step) for step, weights in zip(counts, path, strict=True))

    def trained(self, task: Task) -> tuple[Parameters, Parameters, Tensor]:
        """What training comes to on a task: weights, the second moment behind them, and the mean loss on the
        way.
        """
        adam = self.adam()
        losses: list[Tensor] = []
        weights = next(self.descent(task, [self.adaptation_steps], self.inner_batch_size, adam, losses))
        return (
            weights,
            adam.second,
            torch.stack(losses).mean() if losses else self.second_moment.new_zeros(()),
        )

    def gradient(self, params: Parameters, tasks: Batch, how: Plan) -> tuple[Parameters, Tensor, Metrics]:
        def displacement(task: Task) -> tuple[Parameters, Parameters, Tensor]:
            weights, second, loss = self.call(params, "trained", task)
            return {name: params[name] - weights[name] for name in params}, second, loss

        moved, second, losses = how.map(displacement, tasks)
        return {name: move.sum(0) for name, move in moved.items()}, losses, {"statistics": second}

    @torch.no_grad()
    def update_running(self, statistics: Parameters) -> None:
        self.second_moment.copy_(
            torch.cat([statistics[name].flatten() for name, _ in self.named_parameters()])
        )
        self.inner_steps += self.adaptation_steps
