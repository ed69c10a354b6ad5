"""Finding out which tasks of a step gave a loss or gradient that is not finite, and saying so."""

from __future__ import annotations

from pathlib import Path

import torch

from metalearn.core import Algorithm, Examples, TaskBatch
from metalearn.engine.execution import TaskPlan, execute
from metalearn.errors import MetalearnError


class NonFiniteError(MetalearnError):
    """A loss or gradient was not finite; the weights are those from before that step."""


def describe(algorithm: Algorithm, batch: TaskBatch | Examples, step: int, last_good: Path) -> str:
    """What happened, where, and what to change. The algorithm must still hold the weights that the step met."""
    dials = [f"algo.inner_lr={algorithm.inner_lr}"] if hasattr(algorithm, "inner_lr") else []
    where = ", ".join([f"step {step} (counted from 0)", culprits(algorithm, batch, step), *dials])
    return (
        f"the loss or its gradient is not finite at {where}. The weights were not changed by it; last good checkpoint: {last_good}. "
        "Lower algo.inner_lr or optimizer.lr, or set optimizer.clip.norm, and start again"
    )


def culprits(algorithm: Algorithm, batch: TaskBatch | Examples, step: int) -> str:
    """The bad tasks by number, counted from the start of the run, found by running each alone."""
    if isinstance(batch, Examples):
        first = step * len(batch.y)
        return f"in examples {first} to {first + len(batch.y) - 1}"
    first = step * len(batch.key)
    bad = [first + i for i, one in enumerate(TaskPlan("loop").chunks(batch)) if not is_finite(algorithm, one)]
    if not bad:
        return f"train tasks {first} to {first + len(batch.key) - 1} (each alone is finite, their sum is not)"
    return f"train task{'s' if len(bad) > 1 else ''} {', '.join(map(str, bad))}"


def is_finite(algorithm: Algorithm, task: TaskBatch) -> bool:
    losses, _ = execute(algorithm, task, TaskPlan("loop"))
    values = [losses, *(p.grad for p in algorithm.parameters() if p.grad is not None)]
    return all(bool(torch.isfinite(value).all()) for value in values)
