"""What methods with a network and a head share: whose batch-norm statistics their predictions use."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from metalearn.core import Algorithm, Examples, Inputs, Parameters, Task, TaskSpec


class NetworkAlgorithm(Algorithm):
    """A model with a linear head of `spec.num_outputs`; `adapt` returns its weights for one task.

    model.norm_statistics: `transductive`, the query batch's own; `support`, measured on the support with the
    adapted weights; `support_and_one`, every query alone in a batch with the support (Reptile's evaluation).
    """

    handles_ragged = True

    def __init__(self, model: nn.Module, spec: TaskSpec) -> None:
        super().__init__(spec)
        self.model = model
        self.head = model.head(spec.num_outputs)
        self.norm_statistics: str = model.norm_statistics
        self.transductive = self.norm_statistics == "transductive"

    def check(self, spec: TaskSpec) -> None:
        if spec.num_outputs != self.head.out_features:
            raise ValueError(
                f"the head has {self.head.out_features} outputs but the tasks have {spec.num_outputs}: this "
                "method is bound to the way "
                f"it was trained with; set data.way={self.head.out_features}, train again, or use "
                "algo=protonet, which takes any way"
            )
        if self.norm_statistics == "running":
            raise ValueError(
                "model.norm_statistics=running leaves adapted weights with another network's statistics "
                "(accuracy falls to chance); "
                "choose transductive, support or support_and_one"
            )

    def network(
        self, x: Inputs, given: Any = None, mask: Tensor | None = None, step: int | Tensor = 0
    ) -> tuple[Tensor, Any]:
        """Predictions (n, num_outputs) and the statistics used. step: inner steps taken, for what differs
        from one to the next.
        """
        features, statistics = self.model(x, given=given, mask=mask, step=step)
        return self.head(features), statistics

    def support_loss(self, weights: Parameters, support: Examples, step: int) -> Tensor:
        """Loss of the support under these weights, with the batch's own statistics."""
        prediction, _ = self.call(weights, "network", support.x, mask=self.real(support.mask), step=step)
        return self.objective.loss(prediction, support.y, self.real(support.mask))

    def prepare(self, weights: Parameters, task: Task, step: int) -> dict[str, Any]:
        """The weights after so many steps, with whatever the protocol's predictions need beside them."""
        adapted = {"weights": weights, "step": torch.full((), step, device=task.key.device)}
        if self.norm_statistics == "support":
            return self.inductive(adapted, task)
        if self.norm_statistics == "support_and_one":
            return {**adapted, "support": task.support}
        return adapted

    def inductive(self, adapted: dict[str, Any], task: Task) -> dict[str, Any]:
        """The same weights with the statistics of the support alone."""
        if not self.transductive and self.norm_statistics != "support":
            return adapted
        _, statistics = self.adapted_network(adapted, task.support.x, task.support.mask)
        return {**adapted, "statistics": statistics}

    def predict(self, adapted: dict[str, Any], x: Inputs, mask: Tensor) -> Tensor:
        if "support" in adapted:
            return torch.vmap(lambda one: self.predict_alone(adapted, one))(x)
        prediction, _ = self.adapted_network(adapted, x, mask)
        return prediction

    def predict_alone(self, adapted: dict[str, Any], x: Inputs) -> Tensor:
        """One query's prediction (num_outputs,) from a batch of it and the whole support."""
        support = adapted["support"]
        together = tree_map(lambda rows, row: torch.cat([rows, row[None]]), support.x, x)
        prediction, _ = self.adapted_network(
            adapted, together, torch.cat([support.mask, support.mask.new_ones(1)])
        )
        return prediction[-1]

    def adapted_network(self, adapted: dict[str, Any], x: Inputs, mask: Tensor) -> tuple[Tensor, Any]:
        """`network` with what was adapted."""
        given, step = adapted.get("statistics"), adapted["step"]
        prediction: tuple[Tensor, Any] = self.call(
            adapted["weights"], "network", x, given=given, mask=self.real(mask), step=step
        )
        return prediction


def learned_beside(
    algorithm: Algorithm, learned: Iterable[nn.Parameter], *, lr: float | None
) -> list[dict[str, Any]]:
    """`parameter_groups` of a method that learns something about its inner steps beside initial weights.

    lr: the outer rate of what is learned; None takes the common one. It has no weight decay, which would pull
    rates, or matrices that begin as the identity, to zero: to no inner step at all.
    """
    beside = list(learned)
    ours = {id(p) for p in beside}
    rest = [p for p in algorithm.parameters() if p.requires_grad and id(p) not in ours]
    return [
        {"params": rest},
        {"params": beside, "weight_decay": 0.0} | ({} if lr is None else {"lr": lr}),
    ]
