"""MAML (Finn, Abbeel & Levine 2017, arXiv:1703.03400), algorithms 1 and 2.

Adapt by gradient descent on the support, then differentiate the query loss through that descent (order 2), or
take the gradient at the adapted weights for the gradient at the initial ones (order 1, the paper's
first-order approximation). The inner loss is a mean over the support; the authors' code sums it over the N
classes (inner_loss=sum_over_classes), so that the same inner_lr moves the weights N times as far. Deviation:
none known otherwise; batch norm's statistics are model.norm_statistics.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.algorithms.base import NetworkAlgorithm
from metalearn.core import Parameters, Task, TaskSpec, class_rows, one_of, starting_with
from metalearn.functional import ANNEALS, RULES, Update, descend, optimizer, squared_distance


class MAML(NetworkAlgorithm):
    """order: 2 differentiates through the inner steps, 1 is the first-order approximation, which is also what
    the first warmup_steps updates of the outer loop take. adapts: `all`, or patterns of the parameters that
    the inner loop changes, such as [head] (ANIL) or [-head] (BOIL).

    proximal: λ of a term λ/2·‖w − start‖² of the inner loss.
    inner_optimizer: name and dials of `functional.optimizer`; None where a relative has no such key.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: TaskSpec,
        *,
        inner_lr: float,
        inner_loss: str,
        adaptation_steps: int,
        eval_adaptation_steps: int,
        order: int,
        warmup_steps: int,
        adapts: str | Sequence[str],
        proximal: float,
        inner_optimizer: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model, spec)
        one_of("algo.order", order, (1, 2))
        one_of("algo.inner_loss", inner_loss, ("mean", "sum_over_classes"))
        if order == 1 and warmup_steps:
            raise ValueError(
                f"algo.warmup_steps={warmup_steps} are of first order before second, but algo.order=1 is of "
                "first order throughout; set algo.order=2 or algo.warmup_steps=0"
            )
        if inner_loss == "sum_over_classes" and spec.kind != "classification":
            raise ValueError(
                f"algo.inner_loss=sum_over_classes needs classes, but these are tasks of {spec.kind}; choose "
                "mean"
            )
        self.adapts, self.inner_loss = adapts, inner_loss
        self.inner_lr, self.order, self.warmup_steps = inner_lr, order, warmup_steps
        self.proximal = proximal
        self.adaptation_steps, self.eval_adaptation_steps = adaptation_steps, eval_adaptation_steps
        self.adapted_names = starting_with(
            [name for name, _ in self.named_parameters()], adapts, key="algo.adapts"
        )
        if inner_optimizer is not None:
            one_of("algo.inner_optimizer.name", inner_optimizer["name"], RULES)
            one_of("algo.inner_optimizer.anneal", inner_optimizer["anneal"], ANNEALS)
        self.inner_optimizer = None if is_plain(inner_optimizer) else inner_optimizer
        if self.inner_optimizer and type(self).update is not MAML.update:
            raise ValueError(
                f"algo.inner_optimizer={dict(self.inner_optimizer)}, but {type(self).__name__} has an inner "
                "step of its own; leave name=sgd without clip, weight_decay and anneal"
            )

    def protocol(self) -> dict[str, Any]:
        further = {
            "inner_loss": self.inner_loss if self.inner_loss != "mean" else None,
            "warmup_steps": self.warmup_steps or None,
            "inner_optimizer": self.inner_optimizer and dict(self.inner_optimizer),
            "proximal": self.proximal or None,
        }
        return {
            "order": self.order,
            "inner_lr": self.inner_lr,
            "adapts": self.adapts,
            **{key: value for key, value in further.items() if value is not None},
        }

    def adapt(self, task: Task, *, steps: int) -> dict[str, Any]:
        return next(self.adapt_path(task, counts=[steps]))

    def adapt_path(self, task: Task, *, counts: Sequence[int]) -> Iterator[dict[str, Any]]:
        start = self.start(task)
        path = descend(
            lambda weights, step: self.task_inner_loss(weights, start, task, step),
            start,
            self.updates(),
            counts=counts,
            first_order=self.first_order(),
        )
        return (self.prepare(weights, task, step) for step, weights in zip(counts, path, strict=True))

    def task_inner_loss(self, weights: Parameters, start: Parameters, task: Task, step: int) -> Tensor:
        """What the inner loop descends: the support's loss and the proximal term."""
        loss = self.support_loss(weights, task.support, step)
        if self.inner_loss == "sum_over_classes":
            loss = loss * class_rows(task, self.spec).any(0).sum()
        return loss + self.proximal / 2 * squared_distance(weights, start) if self.proximal else loss

    def first_order(self) -> bool | Tensor:
        """Whether no second derivative is taken. With a warm-up it is data: one graph has both."""
        return self.outer_step < self.warmup_steps if self.warmup_steps else self.order == 1

    def start(self, task: Task) -> Parameters:
        """What the inner loop starts from."""
        return self.present(self.adapted_names)

    def updates(self) -> Update:
        """The inner steps of one descent, made anew for each, since they may remember."""
        if self.inner_optimizer is None:
            return self.update
        # The longer of the two, so that a step has one rate in training and in evaluation.
        steps = max(self.adaptation_steps, self.eval_adaptation_steps)
        return optimizer(lr=self.inner_lr, steps=steps, **self.inner_optimizer)

    def update(self, weights: Parameters, grads: Parameters, step: int) -> Parameters:
        """One inner step: w ← w − inner_lr·∇."""
        # Not torch.add(…, alpha=-lr): Inductor of torch 2.14 makes it an addmm without the rate.
        return {name: torch.sub(w, grads[name], alpha=self.inner_lr) for name, w in weights.items()}


def is_plain(dials: Mapping[str, Any] | None) -> bool:
    """Whether an inner optimizer is gradient descent at a constant rate, which is `MAML.update`."""
    return dials is None or (
        dials["name"] == "sgd"
        and not dials["weight_decay"]
        and dials["clip"] is None
        and dials["anneal"] == "constant"
    )
