"""An algorithm on a source, as the checks of the contract try it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metalearn.core import Algorithm, Batch, Examples, Source, Split, Task, TaskBatch, blank_query
from metalearn.engine.evaluate import draw_tasks, frozen
from metalearn.engine.executor import TaskPlan
from metalearn.testing.checking import (
    NotApplicable,
)

LOOP = TaskPlan("loop")
TASKS, ROWS = 4, 12  # of a batch of tasks, of a flat minibatch


@dataclass(frozen=True)
class Trial:
    """An algorithm on a source.

    plans: those that it is to be mapped by; by default the ones that it declares. compiles: whether it may be
    compiled.
    """

    algorithm: Algorithm
    source: Source
    plans: Sequence[str] = ()
    compiles: bool = True

    @property
    def parts(self) -> tuple[Any, ...]:
        return self.algorithm, self.source

    @property
    def vmaps(self) -> bool:
        return "vmap" in (self.plans or self.algorithm.plans)

    @property
    def plan(self) -> TaskPlan:
        return TaskPlan("vmap") if self.vmaps else LOOP

    def tasks(self, count: int = TASKS, split: Split = "val") -> TaskBatch:
        return draw_tasks(self.algorithm, self.source, split, seed=7, first=3, count=count)

    def batch(self) -> Batch:
        """What it learns from in one outer step."""
        if self.algorithm.trains_on == "examples":
            return self.source.examples(seed=0, first=0, count=ROWS)
        return self.tasks(split="train")

    def predictions(
        self, tasks: TaskBatch, plan: TaskPlan | None = None, *, inductive: bool = False
    ) -> Tensor:
        """Predictions (T, Q, num_outputs) of all queries."""

        def one(task: Task) -> Tensor:
            return self.predict(task, task.query, inductive=inductive)

        with frozen(self.algorithm), torch.no_grad():
            found: Tensor = (plan or self.plan).map(one, tasks)
        return found

    def predict(self, task: Task, rows: Examples, *, inductive: bool) -> Tensor:
        """Predictions of these rows, from an adaptation to one task."""
        algorithm, blank = self.algorithm, blank_query(task)
        adapted = algorithm.adapt(blank, steps=algorithm.eval_adaptation_steps)
        adapted = algorithm.inductive(adapted, blank) if inductive else adapted
        return algorithm.predict(adapted, rows.x, rows.mask)

    def must_train(self) -> None:
        if self.algorithm.trains_on is None:
            raise NotApplicable("trains_on=None: there is nothing to train")
