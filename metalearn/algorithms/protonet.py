"""Prototypical networks (Snell, Swersky & Zemel 2017, arXiv:1703.05175), algorithm 1.

A class is the mean of its support embeddings; a query belongs to the nearest one. In training, support and
query pass through the network as one batch, as in the authors' code. Train way and shot may differ from the
test's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from metalearn.core import Algorithm, Inputs, Metrics, Task, TaskSpec, class_rows, one_of

# S support rows, Q query rows, W ways, D features


class ProtoNet(Algorithm):
    """distance: `euclidean` (squared, as in the paper) or `cosine`, whose similarities are multiplied by
    `scale`.
    """

    kinds = ("classification",)

    def __init__(self, model: nn.Module, spec: TaskSpec, *, distance: str, scale: float) -> None:
        super().__init__(spec)
        one_of("algo.distance", distance, ("euclidean", "cosine"))
        self.model, self.distance, self.scale = model, distance, scale
        self.norm_statistics: str = model.norm_statistics
        self.transductive = self.norm_statistics == "transductive"

    def check(self, spec: TaskSpec) -> None:
        if self.norm_statistics == "support_and_one":
            raise ValueError(
                "algo=protonet takes model.norm_statistics=running, support or transductive, not "
                "support_and_one"
            )

    def protocol(self) -> dict[str, Any]:
        return {"distance": self.distance}

    def embed(self, x: Inputs, given: Any = None) -> tuple[Tensor, Any]:
        """Embeddings (n, D) and the statistics used."""
        running = self.model.running() if self.norm_statistics == "running" else None
        return self.model(x, given=running if given is None else given)

    def update_running(self, statistics: Any) -> None:
        self.model.update_running(statistics)

    def adapt(self, task: Task, *, steps: int) -> dict[str, Any]:
        z_SD, statistics = self.embed(task.support.x)
        adapted = self.prototypes(z_SD, task)
        return adapted | {"statistics": statistics} if self.norm_statistics == "support" else adapted

    def inductive(self, adapted: dict[str, Any], task: Task) -> dict[str, Any]:
        return adapted if not self.transductive else adapted | {"statistics": self.embed(task.support.x)[1]}

    def predict(self, adapted: dict[str, Any], x: Inputs, mask: Tensor) -> Tensor:
        z_QD, _ = self.embed(x, adapted.get("statistics"))
        return self.logits(adapted, z_QD)

    def task_loss(self, task: Task) -> tuple[Tensor, Metrics]:
        together = tree_map(lambda s, q: torch.cat([s, q]), task.support.x, task.query.x)
        z_nD, statistics = self.model(together)
        num_support = len(task.support.y)
        logits = self.logits(self.prototypes(z_nD[:num_support], task), z_nD[num_support:])
        loss, metrics = self.judge(logits, task.query)
        return loss, metrics | {"statistics": statistics}

    def prototypes(self, z_SD: Tensor, task: Task) -> dict[str, Tensor]:
        """Class means of the support embeddings (W, D), eq. 1, and which classes are present (W,)."""
        member_SW = class_rows(task, self.spec).to(z_SD.dtype)
        count_W = member_SW.sum(0)
        return {"prototypes": member_SW.T @ z_SD / count_W.clamp(min=1)[:, None], "present": count_W > 0}

    def logits(self, adapted: dict[str, Tensor], z_QD: Tensor) -> Tensor:
        """Negative squared distances or scaled cosines (Q, W), eq. 2; absent classes get the lowest
        number.
        """
        p_WD = adapted["prototypes"]
        if self.distance == "cosine":
            scores = self.scale * F.normalize(z_QD, dim=-1) @ F.normalize(p_WD, dim=-1).T
        else:
            scores = 2 * z_QD @ p_WD.T - p_WD.square().sum(-1) - z_QD.square().sum(-1, keepdim=True)
        return torch.where(adapted["present"], scores, torch.finfo(scores.dtype).min)
