"""Nearest neighbour on raw pixels (the `Pixels` rows of Vinyals et al. 2016, table 1). Nothing is learned.

A check of the data pipeline: a wrong split, resize or label order shows here before any training.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.core import Algorithm, Inputs, Task, TaskSpec, class_rows, one_of


class PixelNN(Algorithm):
    """distance: `cosine`, as in the table, or `euclidean`. The model is not used."""

    kinds = ("classification",)
    handles_ragged = True
    trains_on = None

    def __init__(self, model: nn.Module, spec: TaskSpec, *, distance: str) -> None:
        super().__init__(spec)
        one_of("algo.distance", distance, ("cosine", "euclidean"))
        self.distance = distance

    def check(self, spec: TaskSpec) -> None:
        if isinstance(spec.input_spec, dict):
            raise ValueError(
                "algo=pixel_nn compares one tensor with another, but an input is a mapping of "
                f"{', '.join(sorted(spec.input_spec))}; "
                "choose other data"
            )

    def protocol(self) -> dict[str, Any]:
        return {"distance": self.distance}

    def adapt(self, task: Task, *, steps: int) -> dict[str, Any]:
        return {"rows": self.vectors(task.support.x), "class_rows": class_rows(task, self.spec)}

    def predict(self, adapted: dict[str, Any], x: Inputs, mask: Tensor) -> Tensor:
        queries, rows = self.vectors(x), adapted["rows"]
        similarity = queries @ rows.T if self.distance == "cosine" else -torch.cdist(queries, rows)
        lowest = torch.finfo(similarity.dtype).min
        return torch.where(adapted["class_rows"], similarity[:, :, None], lowest).amax(1)

    def vectors(self, x: Inputs) -> Tensor:
        assert isinstance(x, Tensor)
        return F.normalize(x.flatten(1), dim=-1) if self.distance == "cosine" else x.flatten(1)
