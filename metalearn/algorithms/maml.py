"""MAML (Finn, Abbeel & Levine 2017, arXiv:1703.03400), algorithms 1 and 2.

Adapt by gradient descent on the support, then differentiate the query loss through that descent (order 2), or
take the gradient at the adapted weights for the gradient at the initial ones (order 1, the paper's
first-order approximation). The inner loss is a mean over the support, where the authors' code sums over the N
classes: the same inner_lr moves the weights N times less here. Deviation: none known otherwise; batch norm's
statistics are model.norm_statistics.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.algorithms.base import NetworkAlgorithm
from metalearn.core import Examples, Parameters, Task, TaskSpec, one_of, starting_with
from metalearn.functional import descend, squared_distance


class MAML(NetworkAlgorithm):
    """order: 2 differentiates through the inner steps, 1 is the first-order approximation. adapts: `all`, or
    prefixes of the parameters that the inner loop changes, such as [head] (ANIL). proximal: λ of a term
    λ/2·‖w − start‖² of the inner loss.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: TaskSpec,
        *,
        inner_lr: float,
        adaptation_steps: int,
        eval_adaptation_steps: int,
        order: int,
        adapts: str | Sequence[str],
        proximal: float,
    ) -> None:
        super().__init__(model, spec)
        one_of("algo.order", order, (1, 2))
        self.adapts = adapts
        self.inner_lr, self.order, self.proximal = inner_lr, order, proximal
        self.adaptation_steps, self.eval_adaptation_steps = adaptation_steps, eval_adaptation_steps
        self.adapted_names = starting_with(
            [name for name, _ in self.named_parameters()], adapts, key="algo.adapts"
        )

    def protocol(self) -> dict[str, Any]:
        proximal = {"proximal": self.proximal} if self.proximal else {}
        return {"order": self.order, "inner_lr": self.inner_lr, "adapts": self.adapts, **proximal}

    def adapt(self, task: Task, *, steps: int) -> dict[str, Any]:
        return next(self.adapt_path(task, counts=[steps]))

    def adapt_path(self, task: Task, *, counts: Sequence[int]) -> Iterator[dict[str, Any]]:
        start = self.start(task)
        path = descend(
            lambda weights, step: self.inner_loss(weights, start, task.support, step),
            start,
            self.update,
            counts=counts,
            first_order=self.order == 1,
        )
        return (self.prepare(weights, task, step) for step, weights in zip(counts, path, strict=True))

    def start(self, task: Task) -> Parameters:
        """What the inner loop starts from."""
        return self.present(self.adapted_names)

    def inner_loss(self, weights: Parameters, start: Parameters, support: Examples, step: int) -> Tensor:
        """What the inner loop descends: the support's loss and the proximal term."""
        loss = self.support_loss(weights, support, step)
        return loss + self.proximal / 2 * squared_distance(weights, start) if self.proximal else loss

    def update(self, weights: Parameters, grads: Parameters, step: int) -> Parameters:
        """One inner step: w ← w − inner_lr·∇."""
        # Not torch.add(…, alpha=-lr): Inductor of torch 2.14 makes it an addmm without the rate.
        return {name: torch.sub(w, grads[name], alpha=self.inner_lr) for name, w in weights.items()}
