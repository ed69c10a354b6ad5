"""Task batches and flat minibatches are both batches, and what is mapped over tasks is given a task."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metalearn.core import Batch, Examples, Task, TaskBatch
from metalearn.engine.evaluate import draw_tasks
from metalearn.engine.executor import TaskPlan
from tests.engine.toy import ToyAlgorithm, ToySource


def tasks(count: int = 5) -> TaskBatch:
    return ToySource().tasks("train", seed=0, first=0, count=count)


def rows() -> Examples:
    return Examples(torch.arange(4.0), torch.arange(4), torch.ones(4, dtype=torch.bool))


def test_tasks_are_taken_by_chunks_in_their_order() -> None:
    chunks = list(tasks().chunks(2))
    assert [chunk.count for chunk in chunks] == [2, 2, 1]
    assert all(type(chunk) is TaskBatch for chunk in chunks)
    assert torch.equal(torch.cat([chunk.query.y for chunk in chunks]), tasks().query.y)
    batch = tasks()
    assert next(iter(batch.chunks(5))) is batch, "nothing is copied where all are taken at once"


def test_a_flat_minibatch_is_one_part_and_never_split() -> None:
    batch = rows()
    assert batch.count == 1
    assert [chunk is batch for chunk in batch.chunks(1)] == [True]


@pytest.mark.parametrize(
    ("batch", "numbers", "text"),
    [
        (tasks(), [7], "task 7"),
        (tasks(), [7, 9], "tasks 7, 9"),
        (tasks(), range(5, 10), "tasks 5 to 9"),
        (rows(), range(3, 4), "examples 12 to 15"),
    ],
)
def test_parts_are_named_by_their_numbers(batch: Batch, numbers: list[int], text: str) -> None:
    assert batch.describe(numbers) == text


@pytest.mark.parametrize("plan", [TaskPlan("loop"), TaskPlan("vmap")], ids=str)
def test_a_mapped_function_is_given_a_task(plan: TaskPlan) -> None:
    def shape(task: Task) -> torch.Tensor:
        assert type(task) is Task
        assert task.key.dim() == 0
        return task.query.y.sum()

    assert torch.allclose(plan.map(shape, tasks()), tasks().query.y.flatten(1).sum(1))


def test_a_source_that_gives_a_plain_task_with_a_leading_dimension_is_understood() -> None:
    class Plain(ToySource):
        def tasks(self, *args: Any, **numbers: Any) -> Task:  # type: ignore[override]
            return Task(*super().tasks(*args, **numbers))

    batch = draw_tasks(ToyAlgorithm(), Plain(), "train", seed=0, first=0, count=3)
    assert type(batch) is TaskBatch
    assert batch.count == 3
