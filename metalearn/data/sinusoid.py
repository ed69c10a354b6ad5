"""Sinusoids (Finn et al. 2017, section 5.1): y = A·sin(x − φ), one amplitude and phase per task, no noise.

Points and functions are drawn afresh for every task, so that there is nothing to store and no class.
Shape letters: T tasks, n points.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from metalearn.core import (
    DRAWN_WITHOUT_END,
    Examples,
    InputSpec,
    Members,
    Source,
    Split,
    TaskBatch,
    TaskSpec,
)
from metalearn.data.images import EpisodeShape, episode_shapes
from metalearn.data.sampling import task_keys
from metalearn.errors import raise_if
from metalearn.hashing import fold, uniform
from metalearn.objectives import Regression

FUNCTION_DRAW, POINT_DRAW = -1, -2


class Sinusoid(Source):
    """shot and query_shot: points of the support and of the query. amplitude, phase, interval: [low, high] of
    A, φ and x.
    """

    name = "sinusoid"

    def __init__(
        self,
        *,
        device: torch.device,
        shot: int,
        query_shot: int,
        train: Mapping[str, int | None] | None,
        amplitude: Sequence[float],
        phase: Sequence[float],
        interval: Sequence[float],
    ) -> None:
        self.device = torch.device(device)
        self.shapes: dict[Split, EpisodeShape] = episode_shapes(2, shot, query_shot, train)
        self.ranges = {"amplitude": tuple(amplitude), "phase": tuple(phase), "interval": tuple(interval)}
        raise_if(
            f"data.{key}={list(values)}; expected [low, high] with low <= high"
            for key, values in self.ranges.items()
            if len(values) != 2 or not values[0] <= values[1]
        )

    def spec(self, split: Split) -> TaskSpec:
        shape = self.shapes[split]
        return TaskSpec(
            "regression",
            Regression(),
            1,
            InputSpec((1,)),
            support_size=shape.shot,
            query_size=shape.query_shot,
        )

    def tasks(self, split: Split, *, seed: int, first: int, count: int) -> TaskBatch:
        shape = self.shapes[split]
        key = task_keys(seed, split, first=first, count=count, device=self.device)
        function = uniform(fold(key, FUNCTION_DRAW), (2,))
        amplitude, phase = self._scaled(function[:, :1], "amplitude"), self._scaled(function[:, 1:], "phase")
        x = self._scaled(uniform(fold(key, POINT_DRAW), (shape.per_class,)), "interval")
        y = amplitude * torch.sin(x - phase)
        return TaskBatch(
            support=_rows(x[:, : shape.shot], y[:, : shape.shot]),
            query=_rows(x[:, shape.shot :], y[:, shape.shot :]),
            key=key,
        )

    def members(self, split: Split) -> Members:
        return DRAWN_WITHOUT_END

    def protocol(self, split: Split) -> dict[str, Any]:
        shape = self.shapes[split]
        sizes = {"way": None, "shot": shape.shot, "query_shot": shape.query_shot}
        return {
            "data": self.name,
            "split": split,
            **sizes,
            "partition": "none",
            "augmentation": "none",
            **self._ranges(),
        }

    def fingerprint(self) -> str:
        return hashlib.sha256(
            json.dumps({"source": self.name, **self._ranges()}, sort_keys=True).encode()
        ).hexdigest()

    def _ranges(self) -> dict[str, list[float]]:
        return {key: list(values) for key, values in self.ranges.items()}

    def _scaled(self, unit: Tensor, key: str) -> Tensor:
        low, high = self.ranges[key]
        return low + (high - low) * unit.to(torch.get_default_dtype())


def _rows(x: Tensor, y: Tensor) -> Examples:
    return Examples(x[..., None], y[..., None], torch.ones_like(x, dtype=torch.bool))
