"""Reptile (Nichol, Achiam & Schulman 2018, arXiv:1803.02999), algorithm 1, with the authors' inner Adam.

Adapt by minibatch Adam (beta1 = 0) on the support; the outer "gradient" is the mean of initial minus adapted
weights, so that outer SGD with lr = epsilon is the paper's update. Adam's second moment is learned across
tasks, as in the authors' code: with beta1 = 0 and a second moment of zero, the first inner step would be the
sign of a noisy gradient.
Deviation: every task of an outer step starts from the same second moment, and the mean of what the tasks end
with is where the next step starts; the original takes one task after the other, as task_order=sequential.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from metalearn.algorithms.base import NetworkAlgorithm
from metalearn.core import Batch, Draw, Examples, Metrics, Parameters, Plan, Task, TaskSpec, one_of
from metalearn.functional import Adam, Update, descend

Rows = Callable[[int], Tensor]  # of the support, by the inner step that learns from them


class Reptile(NetworkAlgorithm):
    """inner_batch_size and eval_inner_batch_size: support rows per inner step. task_order: `together`, tasks
    of an outer step start from one second moment; `sequential`, each from that of the one before.
    """

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
        task_order: str,
    ) -> None:
        super().__init__(model, spec)
        one_of("algo.task_order", task_order, ("together", "sequential"))
        self.task_order = task_order
        if task_order == "sequential":
            self.plans, self.tasks_independent = ("loop",), False
        self.inner_lr = inner_lr
        self.adaptation_steps, self.eval_adaptation_steps = adaptation_steps, eval_adaptation_steps
        self.inner_batch_size, self.eval_inner_batch_size = inner_batch_size, eval_inner_batch_size
        self.register_buffer("second_moment", torch.zeros(sum(p.numel() for p in self.parameters())))
        self.register_buffer("inner_steps", torch.zeros((), dtype=torch.int64))

    def protocol(self) -> dict[str, Any]:
        order = {} if self.task_order == "together" else {"task_order": self.task_order}
        return {
            "inner_lr": self.inner_lr,
            "inner_batch_size": self.inner_batch_size,
            "eval_inner_batch_size": self.eval_inner_batch_size,
            **order,
        }

    def draws(self, spec: TaskSpec) -> dict[str, Draw]:
        rows = max(
            self.adaptation_steps * self.inner_batch_size,
            self.eval_adaptation_steps * self.eval_inner_batch_size,
        )
        return {"order": Draw("permutation", (ceil(rows / spec.support_size), spec.support_size))}

    def descent(
        self, task: Task, counts: Sequence[int], rows: Rows, update: Update, losses: list[Tensor]
    ) -> Iterator[Parameters]:
        """The weights after each of `counts` minibatches of the support; the loss of each goes into
        `losses`.
        """

        def loss(weights: Parameters, step: int) -> Tensor:
            chosen = rows(step)
            return self.support_loss(
                weights, Examples(*tree_map(lambda leaf: leaf[chosen], tuple(task.support))), step
            )

        return descend(
            loss, dict(self.named_parameters()), update, counts=counts, first_order=True, losses=losses
        )

    def update(self, second: Parameters, taken: Tensor) -> Update:
        """One descent's inner Adam, with the second moment of the tasks so far and the steps behind it."""
        return Adam(second, taken, lr=self.inner_lr)

    def remembered(self) -> Parameters:
        """The second moment of the tasks so far."""
        weights = dict(self.named_parameters())
        parts = self.second_moment.split([w.numel() for w in weights.values()])
        return {name: part.view_as(w) for (name, w), part in zip(weights.items(), parts, strict=True)}

    def adapt(self, task: Task, *, steps: int) -> dict[str, Any]:
        return next(self.adapt_path(task, counts=[steps]))

    def adapt_path(self, task: Task, *, counts: Sequence[int]) -> Iterator[dict[str, Any]]:
        rows = minibatches(
            task.draws["order"].flatten(), min(self.eval_inner_batch_size, len(task.support.y))
        )
        path = self.descent(task, counts, rows, self.update(self.remembered(), self.inner_steps), [])
        return (self.prepare(weights, task, step) for step, weights in zip(counts, path, strict=True))

    def training_rows(self, task: Task) -> Rows:
        """What an inner step of training learns from: minibatches of the shuffled support."""
        return minibatches(task.draws["order"].flatten(), min(self.inner_batch_size, len(task.support.y)))

    def steps_before(self) -> int:
        """Inner steps that are no part of the displacement."""
        return 0

    def trained(self, task: Task, update: Update) -> tuple[Parameters, Tensor]:
        """What training on a task comes to: the displacement of the weights, backwards, and the mean loss on
        the way.
        """
        losses: list[Tensor] = []
        counts = [self.steps_before(), self.adaptation_steps]
        before, after = self.descent(task, counts, self.training_rows(task), update, losses)
        loss = torch.stack(losses).mean() if losses else self.second_moment.new_zeros(())
        return {name: before[name] - after[name] for name in after}, loss

    def gradient(self, params: Parameters, tasks: Batch, how: Plan) -> tuple[Parameters, Tensor, Metrics]:
        second, taken = self.remembered(), self.inner_steps
        if self.task_order == "together":
            moved, losses, second = self.displacement(params, tasks, how, second, taken)
            return moved, losses, statistics(second, losses.new_full(losses.shape, self.adaptation_steps))
        totals, found = {name: torch.zeros_like(p) for name, p in params.items()}, []
        for task in tasks.chunks(1):
            moved, loss, ends = self.displacement(params, task, how, second, taken)
            totals = {name: total + moved[name] for name, total in totals.items()}
            second, taken = {name: s[0] for name, s in ends.items()}, taken + self.adaptation_steps
            found.append(loss)
        count, losses = len(found), torch.cat(found)
        # The mean over the tasks is what the last one ended with.
        second = {name: s.expand(count, *s.shape) for name, s in second.items()}
        return totals, losses, statistics(second, losses.new_full((count,), count * self.adaptation_steps))

    def displacement(
        self, params: Parameters, tasks: Batch, how: Plan, second: Parameters, taken: Tensor
    ) -> tuple[Parameters, Tensor, Parameters]:
        """Summed over tasks that start from the same second moment; their losses, and the second moment that
        each of them ends with.
        """

        def one(task: Task) -> tuple[Parameters, Tensor, Parameters]:
            update = self.update(second, taken)
            moved, loss = self.call(params, "trained", task, update)
            return {name: moved[name] for name in params}, loss, getattr(update, "second", {})

        moved, losses, ends = how.map(one, tasks)
        return {name: move.sum(0) for name, move in moved.items()}, losses, ends

    @torch.no_grad()
    def update_running(self, statistics: Parameters) -> None:
        self.second_moment.copy_(
            torch.cat([statistics[name].flatten() for name, _ in self.named_parameters()])
        )
        self.inner_steps += statistics[STEPS].round().long()


STEPS = "inner_steps"  # beside the names of parameters


def statistics(second: Parameters, steps: Tensor) -> Metrics:
    """What is remembered, with the inner steps of this outer one; nothing if the inner loop remembers
    nothing.
    """
    return {"statistics": {**second, STEPS: steps}} if second else {}


def minibatches(order: Tensor, size: int) -> Rows:
    """So many of the rows at a time, in this order."""
    return lambda step: order[step * size : (step + 1) * size]
