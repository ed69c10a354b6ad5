"""What methods with a network and a head share: whose batch-norm statistics their predictions use."""

from __future__ import annotations

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
                f"the head has {self.head.out_features} outputs but the tasks have {spec.num_outputs}: this method is bound to the way "
                f"it was trained with; set data.way={self.head.out_features}, train again, or use algo=protonet, which takes any way"
            )
        if self.norm_statistics == "running":
            raise ValueError(
                "model.norm_statistics=running leaves adapted weights with another network's statistics (accuracy falls to chance); "
                "choose transductive, support or support_and_one"
            )

    def network(self, x: Inputs, given: Any = None, mask: Tensor | None = None, step: int = 0) -> tuple[Tensor, Any]:
        """Predictions (n, num_outputs) and the statistics used. step: inner steps taken, for what differs from one to the next."""
        features, statistics = self.model(x, given=given, mask=mask, step=step)
        return self.head(features), statistics

    def support_loss(self, weights: Parameters, support: Examples, step: int) -> Tensor:
        """Loss of the support under these weights, with the batch's own statistics."""
        prediction, _ = self.call(weights, "network", support.x, mask=self.real(support.mask), step=step)
        return self.objective.loss(prediction, support.y, self.real(support.mask))

    def prepare(self, weights: Parameters, task: Task) -> dict[str, Any]:
        """The adapted weights with whatever the protocol's predictions need beside them."""
        if self.norm_statistics == "support":
            return self.inductive({"weights": weights}, task)
        if self.norm_statistics == "support_and_one":
            return {"weights": weights, "support": task.support}
        return {"weights": weights}

    def inductive(self, adapted: dict[str, Any], task: Task) -> dict[str, Any]:
        """The same weights with the statistics of the support alone."""
        if not self.transductive and self.norm_statistics != "support":
            return adapted
        _, statistics = self.call(adapted["weights"], "network", task.support.x, mask=self.real(task.support.mask))
        return {"weights": adapted["weights"], "statistics": statistics}

    def predict(self, adapted: dict[str, Any], x: Inputs, mask: Tensor) -> Tensor:
        if "support" in adapted:
            return torch.vmap(lambda one: self.predict_alone(adapted, one))(x)
        prediction, _ = self.call(adapted["weights"], "network", x, given=adapted.get("statistics"), mask=self.real(mask))
        return prediction

    def predict_alone(self, adapted: dict[str, Any], x: Inputs) -> Tensor:
        """One query's prediction (num_outputs,) from a batch of it and the whole support."""
        support = adapted["support"]
        together = tree_map(lambda rows, row: torch.cat([rows, row[None]]), support.x, x)
        mask = torch.cat([support.mask, support.mask.new_ones(1)])
        prediction, _ = self.call(adapted["weights"], "network", together, mask=self.real(mask))
        return prediction[-1]
