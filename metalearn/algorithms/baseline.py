"""Baseline of "A closer look at few-shot classification" (Chen et al. 2019, arXiv:1904.04232), §3.2.

Train an ordinary classifier over all base classes on flat minibatches; per test task, freeze the features and
fit a new linear head by SGD (lr 0.01, momentum 0.9, dampening 0.9, weight decay 0.001, batches of 4, 100
epochs).
Deviation: the new head starts at zero instead of at random.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.core import (
    Algorithm,
    Batch,
    Draw,
    Examples,
    Inputs,
    Metrics,
    Parameters,
    Plan,
    Task,
    TaskSpec,
    class_rows,
    map_leaves,
)
from metalearn.functional import Momentum, descend


class Baseline(Algorithm):
    """eval_adaptation_steps: epochs over the support when a task's head is fitted."""

    kinds = ("classification",)
    order_matters = True
    trains_on = "examples"

    def __init__(
        self,
        model: nn.Module,
        spec: TaskSpec,
        *,
        inner_lr: float,
        momentum: float,
        dampening: float,
        weight_decay: float,
        inner_batch_size: int,
        eval_adaptation_steps: int,
    ) -> None:
        super().__init__(spec)
        self.model = model
        self.norm_statistics: str = model.norm_statistics
        self.classifier = model.head(max(spec.num_train_classes, 1))
        self.sgd = {
            "lr": inner_lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
        }
        self.inner_batch_size, self.eval_adaptation_steps = inner_batch_size, eval_adaptation_steps

    def check(self, spec: TaskSpec) -> None:
        if self.norm_statistics not in ("running", "none"):
            raise ValueError(
                f"model.norm_statistics={self.norm_statistics}, but algo=baseline tests with running "
                "averages; set it to running"
            )

    def protocol(self) -> dict[str, Any]:
        return {**self.sgd, "inner_batch_size": self.inner_batch_size, "adaptation_unit": "epochs"}

    def draws(self, spec: TaskSpec) -> dict[str, Draw]:
        return {"order": Draw("permutation", (self.eval_adaptation_steps, spec.support_size))}

    def losses(self, tasks: Batch, how: Plan) -> tuple[Tensor, Metrics]:
        assert isinstance(tasks, Examples)
        features, statistics = self.model(tasks.x)
        logits = self.classifier(features)
        loss, metrics = self.judge(logits, tasks)
        return loss[None], map_leaves(lambda leaf: leaf[None], metrics | {"statistics": statistics})

    def update_running(self, statistics: Any) -> None:
        self.model.update_running(statistics)

    def adapt(self, task: Task, *, steps: int) -> dict[str, Any]:
        return next(self.adapt_path(task, counts=[steps]))

    def adapt_path(self, task: Task, *, counts: Sequence[int]) -> Iterator[dict[str, Any]]:
        features_SD, _ = self.model(task.support.x, given=self.model.running())
        num_rows, size = len(task.support.y), self.inner_batch_size
        per_epoch = ceil(num_rows / size)
        present = class_rows(task, self.spec).any(0)
        logits_of_absent = features_SD.new_zeros(()).fill_(-1e9)

        def loss(head: Parameters, step: int) -> Tensor:
            epoch, batch = divmod(step, per_epoch)
            rows = task.draws["order"][epoch, batch * size : (batch + 1) * size]
            logits = F.linear(features_SD[rows], head["weight"], head["bias"])
            return F.cross_entropy(logits.where(present, logits_of_absent), task.support.y[rows])

        head = {
            "weight": features_SD.new_zeros(len(present), features_SD.shape[-1]),
            "bias": features_SD.new_zeros(len(present)),
        }
        path = descend(
            loss, head, Momentum(**self.sgd), counts=[count * per_epoch for count in counts], first_order=True
        )
        return ({"head": head, "present": present} for head in path)

    def predict(self, adapted: dict[str, Any], x: Inputs, mask: Tensor) -> Tensor:
        features_QD, _ = self.model(x, given=self.model.running())
        logits = F.linear(features_QD, adapted["head"]["weight"], adapted["head"]["bias"])
        return logits.where(adapted["present"], logits.new_zeros(()).fill_(-1e9))
