"""Proto-MAML (Triantafillou et al. 2020, arXiv:1903.03096, §3): MAML whose head starts from class means.

The linear head that a prototypical network is: with c the mean of a class's support features, its weight is
2c and its bias -|c|². The outer gradient flows through that start too. Deviation: none known.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from metalearn.algorithms.maml import MAML
from metalearn.core import Parameters, Task, TaskSpec, class_rows

LOWEST = -1e9  # bias of a class that is absent: finite, and no softmax ever sees it


class ProtoMAML(MAML):
    """The head has no parameters of its own, and takes any way."""

    kinds = ("classification",)

    def __init__(self, model: nn.Module, spec: TaskSpec, **dials: Any) -> None:
        super().__init__(model, spec, **dials)
        self.head.requires_grad_(False)
        if "head.weight" not in self.adapted_names:
            raise ValueError(
                f"algo.adapts={self.adapts} leaves out the head, which is made for each task anew; add head "
                "to it"
            )

    def check(self, spec: TaskSpec) -> None:
        super().check(self.spec)

    def start(self, task: Task) -> Parameters:
        features_SD, _ = self.model(task.support.x, mask=self.real(task.support.mask))
        member_SW = class_rows(task, self.spec).to(features_SD.dtype)
        count_W = member_SW.sum(0)
        mean_WD = member_SW.T @ features_SD / count_W.clamp(min=1)[:, None]
        bias_W = torch.where(count_W > 0, -mean_WD.square().sum(-1), LOWEST)
        return {**super().start(task), "head.weight": 2 * mean_WD, "head.bias": bias_W}
