"""FOML (Nichol, Achiam & Schulman 2018, arXiv:1803.02999, §6.3): Reptile that learns from its last minibatch
alone, which is first-order MAML to its authors, as their code has it with `--foml`.

The outer gradient is what the last inner step took off the weights: with plain gradient descent inside,
inner_lr times the gradient of the last minibatch, at the weights that the others led to. The last minibatch
may be held out (`--foml-tail`): so many rows of every class, which no other step of that task has seen.
Deviation: that of Reptile, task_order.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.algorithms.reptile import Reptile, Rows, minibatches
from metalearn.core import Draw, Parameters, Task, TaskSpec, one_of
from metalearn.functional import Update


class FOML(Reptile):
    """tail_shots: rows of each class that the last minibatch is made of, where a task has classes, and rows
    elsewhere; null: it is one like the others. inner_optimizer: its name, `adam` or `sgd`.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: TaskSpec,
        *,
        tail_shots: int | None,
        inner_optimizer: Mapping[str, Any],
        **dials: Any,
    ) -> None:
        super().__init__(model, spec, **dials)
        one_of("algo.inner_optimizer.name", inner_optimizer["name"], ("adam", "sgd"))
        if self.adaptation_steps < 1:
            raise ValueError(
                f"algo.adaptation_steps={self.adaptation_steps}, but algo=foml learns from the last inner "
                "step; set it to 1 or more"
            )
        self.tail_shots, self.inner_optimizer = tail_shots, inner_optimizer
        shot = spec.support_size // num_classes(spec)
        if tail_shots is not None and self.adaptation_steps > 1 and tail_shots >= shot:
            raise ValueError(
                f"algo.tail_shots={tail_shots} leaves none of {shot} support rows of a class to the other "
                f"minibatches; set it to {shot - 1} or less, or raise data.train.shot"
            )

    def protocol(self) -> dict[str, Any]:
        name = self.inner_optimizer["name"]
        return {**super().protocol(), "tail_shots": self.tail_shots, "inner_optimizer": name}

    def draws(self, spec: TaskSpec) -> dict[str, Draw]:
        found, tail = super().draws(spec), self.tail_size(spec)
        left = spec.support_size - tail
        if not tail or left < 1:  # the tasks of a test may be smaller: they have no tail
            return found
        epochs = ceil((self.adaptation_steps - 1) * self.inner_batch_size / left)
        order = Draw("permutation", (max(epochs, found["order"].shape[0]), spec.support_size))
        return {"order": order, "tail": Draw("permutation", (spec.support_size,))}

    def tail_size(self, spec: TaskSpec) -> int:
        return (self.tail_shots or 0) * num_classes(spec)

    def update(self, second: Parameters, taken: Tensor) -> Update:
        return self.descend if self.inner_optimizer["name"] == "sgd" else super().update(second, taken)

    def descend(self, weights: Parameters, grads: Parameters, step: int) -> Parameters:
        return {name: torch.sub(w, grads[name], alpha=self.inner_lr) for name, w in weights.items()}

    def steps_before(self) -> int:
        return self.adaptation_steps - 1

    def training_rows(self, task: Task) -> Rows:
        if not self.tail_shots:
            return super().training_rows(task)
        tail, others = self.parted(task)
        rows = minibatches(others.flatten(), min(self.inner_batch_size, others.shape[-1]))
        return lambda step: tail if step == self.adaptation_steps - 1 else rows(step)

    def parted(self, task: Task) -> tuple[Tensor, Tensor]:
        """Rows of the support: those of the tail, and epochs of the shuffled others (epochs, S − tail)."""
        order, count = task.draws["order"], self.tail_size(self.spec)
        number = torch.arange(order.shape[-1], device=order.device)
        label = task.support.y if self.spec.max_way else torch.zeros_like(number)
        # Of every class the first rows of a shuffled support.
        by_class = (label * len(number) + task.draws["tail"]).argsort().view(num_classes(self.spec), -1)
        tail = by_class[:, : self.tail_shots].flatten()
        held_out = (order[..., None] == tail).any(-1)
        others_first = (held_out * len(number) + number).argsort(-1)
        return tail, order.gather(-1, others_first)[..., : len(number) - count]


def num_classes(spec: TaskSpec) -> int:
    """Of a task; 1 where it has none."""
    return spec.max_way or 1
