"""Tasks, the rows that they are made of, and what a source promises about them.

Shape letters: T tasks, S support rows, Q query rows, n either, W ways.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from metalearn.core.trees import leaves_of, rebuilt

Inputs = Tensor | dict[str, Tensor]
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
Kind = Literal["classification", "regression", "rating"]


class Batch(Protocol):
    """What one outer step learns from: a batch of tasks, or a flat minibatch of examples."""

    @property
    def count(self) -> int:
        """Of how many parts, each of which can be taken alone."""

    def chunks(self, size: int) -> Iterator[Batch]:
        """In its order, so many parts at a time."""

    def describe(self, numbers: Sequence[int]) -> str:
        """Parts of training by their numbers, counted from the start of a run of such batches."""


class Examples(NamedTuple):
    """Rows of inputs and targets; (n, …) for one task or a flat minibatch, (T, n, …) in a batch of tasks.

    mask is True for real rows and False for padding, and is always present.
    A flat minibatch is a `Batch` of one part, which is never split: batch-norm statistics span it.
    """

    x: Inputs
    y: Tensor
    mask: Tensor

    @property
    def count(self) -> int:  # type: ignore[override]
        return 1

    def chunks(self, size: int) -> Iterator[Examples]:
        yield self

    def describe(self, numbers: Sequence[int]) -> str:
        rows = len(self.y)
        return f"examples {rows * numbers[0]} to {rows * (numbers[-1] + 1) - 1}"


class Task(NamedTuple):
    """One learning problem: adapt on the support, be judged on the query.

    key: int64 hash of (seed, split, index), the only source of randomness of a task.
    draws: the random numbers that the algorithm asked for with `Algorithm.draws`.
    """

    support: Examples
    query: Examples
    key: Tensor
    draws: dict[str, Tensor] = {}
    unlabelled: Inputs | tuple[()] = ()


class TaskBatch(Task):
    """A `Batch` of T tasks: the same pytree with a leading dimension T on every leaf. What is mapped over it
    is given a `Task`.
    """

    __slots__ = ()

    @property
    def count(self) -> int:  # type: ignore[override]
        return len(self.key)

    def chunks(self, size: int) -> Iterator[TaskBatch]:
        if size >= self.count:
            yield self
            return
        for pieces in zip(*(torch.split(leaf, size) for leaf in leaves_of(self)), strict=True):
            yield rebuilt(self, pieces)

    def describe(self, numbers: Sequence[int]) -> str:
        if len(numbers) == 1:
            return f"task {numbers[0]}"
        if isinstance(numbers, range):
            return f"tasks {numbers[0]} to {numbers[-1]}"
        return f"tasks {', '.join(map(str, numbers))}"


class InputSpec(NamedTuple):
    """One input: the shape of a row, and the number of categories if it holds integer codes."""

    shape: tuple[int, ...]
    num_categories: int | None = None


class Draw(NamedTuple):
    """Random numbers wanted per task. A permutation permutes the last dimension of `shape`."""

    kind: Literal["normal", "uniform", "permutation"]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class MetricFormat:
    """Which way a metric is better, and how people read it.

    percent: a fraction in files, percent on screen. unit: the word behind the number.
    """

    higher_is_better: bool = False
    percent: bool = False
    unit: str = ""

    def __post_init__(self) -> None:
        if self.percent and self.unit:
            raise ValueError(
                f"a metric in percent has no other unit, but unit={self.unit!r}; leave one of them out"
            )


class Objective(Protocol):
    """What a prediction is judged by: a differentiable loss, and the metrics that are reported.

    It may have `formats`, {metric: MetricFormat}; `loss` is lower-is-better unless they say otherwise. For
    metrics that are no mean over tasks see `PooledObjective`.
    """

    primary: str
    higher_is_better: bool

    def loss(self, prediction: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        """Mean loss over the real rows of one task; a scalar. mask: None where all rows are real."""

    def metrics(self, prediction: Tensor, y: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """Scalars of one task, `primary` among them, as means over its real rows."""


@runtime_checkable
class PooledObjective(Objective, Protocol):
    """An objective with metrics that are no mean over tasks, such as a calibration error or a pooled AUC.

    The totals of all tasks are added up, and the interval is that of resampled tasks, whose totals are added
    up again.
    """

    def totals(self, prediction: Tensor, y: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """What one task adds to sums over tasks: tensors of a shape that is the same for every task."""

    def summary(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scalars from the totals summed over tasks (float64), NaN if undefined. Pure: it is mapped over
        resamples.
        """


@dataclass(frozen=True)
class TaskSpec:
    """What a source promises about the tasks of one split; static."""

    kind: Kind
    objective: Objective
    num_outputs: int  # ways, or target dimensions
    input_spec: InputSpec | dict[str, InputSpec]
    support_size: int  # rows, padding included
    query_size: int
    max_way: int = 0  # 0: no classes
    num_train_classes: int = 0  # 0: no flat minibatches of labelled examples
    ragged: bool = False  # True: the masks are not all True


def blank_query(task: Task) -> Task:
    """The task without the answers that it will be judged by."""
    return task._replace(query=task.query._replace(y=torch.zeros_like(task.query.y)))


def class_rows(task: Task, spec: TaskSpec) -> Tensor:
    """Which support row belongs to which class: bool (S, W), False on padding.

    W is max(S, spec.max_way), an upper bound on the way that is known without looking at the labels, so that
    a method that takes any way can meet tasks of another way than it was trained with. Surplus classes are
    absent.
    """
    labels = torch.arange(max(task.support.y.shape[-1], spec.max_way), device=task.support.y.device)
    return (task.support.y[:, None] == labels) & task.support.mask[:, None]
