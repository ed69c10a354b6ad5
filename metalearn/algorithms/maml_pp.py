"""MAML++ (Antoniou, Edwards & Storkey 2019, arXiv:1810.09502), §4.

MAML with three things of its own: a learned rate for every layer and inner step; an outer loss that begins
as the mean of the query losses after each inner step, and fades to that after the last one (eq. 4); in every
norm an affine for each inner step, which the outer loop alone changes. Statistics are the batch's own, since
the averages per step that the authors' code keeps are never read. The cosine on the outer rate is
optimizer/schedule=cosine.
A layer is a tensor of parameters here, as in the authors' code.
Deviation: the weights of the losses change with every outer step, where the authors' change once per epoch of
500; derivatives are of one order throughout, as in the authors' runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.algorithms.maml import MAML
from metalearn.core import Metrics, Parameters, Task, TaskSpec, blank_query

LEAST = 0.03  # of its first weight that a loss keeps until the end of the annealing, as in the authors' code


class MAMLpp(MAML):
    """inner_lr: what every rate starts at. multi_step_loss_steps: outer steps over which the losses after the
    earlier inner steps fade.

    Inner steps beyond adaptation_steps share the last one's rates and norms.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: TaskSpec,
        *,
        inner_lr: float,
        adaptation_steps: int,
        eval_adaptation_steps: int,
        multi_step_loss_steps: int,
        order: int,
        warmup_steps: int,
        adapts: str | Sequence[str],
    ) -> None:
        super().__init__(
            model,
            spec,
            inner_lr=inner_lr,
            adaptation_steps=adaptation_steps,
            eval_adaptation_steps=eval_adaptation_steps,
            order=order,
            adapts=adapts,
            inner_loss="mean",
            warmup_steps=warmup_steps,
            proximal=0.0,
        )
        if adaptation_steps < 1:
            raise ValueError(
                f"algo.adaptation_steps={adaptation_steps}, but MAML++ has a loss after every inner step; "
                "take 1 or more, or algo=joint"
            )
        self.multi_step_loss_steps = multi_step_loss_steps
        affines = {f"model.{name}" for name in affine_names(model)}
        self.adapted_names = [name for name in self.adapted_names if name not in affines]
        if not self.adapted_names:
            raise ValueError(
                f"algo.adapts={adapts} names norms alone, which MAML++ changes in the outer loop only; add "
                "other layers to it"
            )
        for norm in model.norms():
            norm.per_step(adaptation_steps)
        # one row per adapted tensor, one column per inner step
        self.rates = nn.Parameter(torch.full((len(self.adapted_names), adaptation_steps), inner_lr))

    def protocol(self) -> dict[str, Any]:
        return super().protocol() | {"multi_step_loss_steps": self.multi_step_loss_steps}

    def update(self, weights: Parameters, grads: Parameters, step: int) -> Parameters:
        """One inner step: w ← w − rate·∇, with the learned rate of this tensor and step (§4, LSLR)."""
        rates = self.rates[:, min(step, self.rates.shape[1] - 1)].unbind()
        return {
            name: weights[name] - rate * grads[name]
            for name, rate in zip(self.adapted_names, rates, strict=True)
        }

    def prepare(self, weights: Parameters, task: Task, step: int) -> dict[str, Any]:
        """Predictions take the affine of the last step that was taken, as in the authors' code: there are as
        many as steps.
        """
        return super().prepare(weights, task, max(step - 1, 0))

    def task_loss(self, task: Task) -> tuple[Tensor, Metrics]:
        """The weighted query losses after each inner step (eq. 4), and the metrics after the last."""
        counts = range(1, self.adaptation_steps + 1)
        judged = [
            self.judge(self.predict(adapted, task.query.x, task.query.mask), task.query)
            for adapted in self.adapt_path(blank_query(task), counts=counts)
        ]
        losses = torch.stack([loss for loss, _ in judged])
        weights = loss_weights(self.outer_step.to(losses.dtype), len(losses), self.multi_step_loss_steps)
        return (weights * losses).sum(), judged[-1][1]


def affine_names(model: nn.Module) -> set[str]:
    """The parameters of the norms of a model, by their names in it."""
    homes = {module: name for name, module in model.named_modules()}
    return {f"{homes[norm]}.{name}" for norm in model.norms() for name, _ in norm.named_parameters()}


def loss_weights(outer_step: Tensor, num_steps: int, annealed_over: int) -> Tensor:
    """Weight of the query loss after each inner step (num_steps,); they sum to 1. A function of a tensor, so
    that one compiled graph holds at every outer step.

    Each begins at 1/num_steps. All but the last fall along a line to 0.03/num_steps, and to 0 after
    `annealed_over` outer steps.
    """
    left = (1 - outer_step / max(annealed_over, 1)).clamp(min=LEAST)
    earlier = torch.where(outer_step < annealed_over, left, 0.0) / num_steps
    return torch.cat([earlier.expand(num_steps - 1), (1 - (num_steps - 1) * earlier).reshape(1)])
