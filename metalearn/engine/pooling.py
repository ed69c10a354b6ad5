"""Metrics that are no mean over tasks: from the totals of all tasks, with an interval from resampled tasks.

One task's totals are tensors of a fixed shape, kept per task. Their sum gives the value. The interval is that
of the bootstrap over tasks: as many tasks are drawn with replacement and their totals are added up again,
RESAMPLES times. The draws are counter-based, so that equal totals give equal bytes. Efron & Tibshirani 1993,
chapter 13.
Shape letters: T tasks, R resamples, K numbers of a task.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from metalearn.core import Objective, PooledObjective
from metalearn.errors import ConfigError
from metalearn.hashing import fold, uniform

RESAMPLES = 2000
BOOTSTRAP = 0xB007  # keeps these draws apart from those of tasks
DRAWN_AT_ONCE = 2**20


def scalars(owner: object, method: str, values: dict[str, Any]) -> dict[str, Tensor]:
    """The values that a method returned; ConfigError if one of them is no tensor without dimensions."""
    for name, value in values.items():
        if not isinstance(value, Tensor) or value.dim() > 0:
            kind = (
                f"tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            )
            source = f"{type(owner).__name__}.{method}"
            raise ConfigError(f"{source} gives {name} as a {kind}; a metric is a tensor without dimensions")
    return values


def pooled_part(objective: Objective) -> PooledObjective | None:
    """The objective if it has metrics that are pooled over tasks."""
    if isinstance(objective, PooledObjective):
        return objective
    for there, missing in (("totals", "summary"), ("summary", "totals")):
        if hasattr(objective, there):
            name = type(objective).__name__
            raise ConfigError(
                f"{name} has {there}() but no {missing}(); a pooled metric needs both, so define {missing}()"
            )
    return None


def pooled(objective: PooledObjective, totals: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """{metric: {mean, ci95, std}} from the totals of T tasks, (T, …) each.

    mean: the metric of all tasks. ci95: half of what lies between the 2.5% and the 97.5% quantile of the
    metric over 2,000 resamples. std: standard deviation over the resamples times √T, so that ci95 is about
    1.96·std/√T, as for a mean over tasks. All three are NaN if the metric is undefined for the tasks or for a
    resample.
    """
    totals = {name: values.detach().cpu().double() for name, values in totals.items()}
    count = len(next(iter(totals.values())))
    found = scalars(
        objective, "summary", objective.summary({name: values.sum(0) for name, values in totals.items()})
    )
    again = resampled(objective, totals, count)
    return {name: _interval(value, again[name], count) for name, value in found.items()}


def resampled(objective: PooledObjective, totals: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """The metrics (R,) of resampled tasks."""
    parts = []
    for weights in draw_weights(count):
        sums = {name: torch.tensordot(weights, values, dims=1) for name, values in totals.items()}
        parts.append(torch.vmap(objective.summary)(sums))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def worst_decile(values: Tensor, *, higher_is_better: bool) -> dict[str, float]:
    """{mean, ci95, std} of the mean over the worst tenth of tasks, from their scores float64 (T,); a part of
    a task counts where a tenth is no whole number.
    """
    values = values.sort(descending=not higher_is_better).values
    count = len(values)
    parts = []
    for weights in draw_weights(count):
        before = weights.cumsum(1) - weights
        share = (count / 10 - before).clamp(min=0).minimum(weights)
        parts.append(share @ values / (count / 10))
    own = (count / 10 - torch.arange(count)).clamp(0, 1).double()
    return _interval(own @ values / (count / 10), torch.cat(parts), count)


def draw_weights(count: int) -> Iterator[Tensor]:
    """How often each of so many tasks is in each resample: float64 (r, T), R rows altogether."""
    size = max(1, DRAWN_AT_ONCE // count)
    for first in range(0, RESAMPLES, size):
        key = fold(BOOTSTRAP, torch.arange(first, min(first + size, RESAMPLES)))
        task = (uniform(key, (count,)).double() * count).long()
        weights = torch.zeros(len(key), count, dtype=torch.float64)
        yield weights.scatter_add_(1, task, torch.ones_like(weights))


def _interval(value: Tensor, again: Tensor, count: int) -> dict[str, float]:
    if not (value.isfinite() and again.isfinite().all()):
        return {"mean": math.nan, "ci95": math.nan, "std": math.nan}
    low, high = again.quantile(torch.tensor([0.025, 0.975], dtype=again.dtype)).tolist()
    return {"mean": value.item(), "ci95": (high - low) / 2, "std": again.std().item() * math.sqrt(count)}
