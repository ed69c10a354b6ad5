"""The words of the house: examples, tasks, objectives, algorithms and the sources that tasks come from.

Everything else leans on these types and imports them from here; this file imports nothing of ours.
Shape letters: T tasks, S support rows, Q query rows, n either, W ways.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

Inputs = Tensor | dict[str, Tensor]
Metrics = dict[str, Any]  # per-task scalars, averaged over tasks; "statistics" may hold batch-norm statistics
Parameters = dict[str, Tensor]
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
DRAWN_WITHOUT_END: Literal["drawn without end"] = "drawn without end"
Kind = Literal["classification", "regression", "rating"]


class Examples(NamedTuple):
    """Rows of inputs and targets; (n, …) for one task, (T, n, …) in a batch.

    mask is True for real rows and False for padding, and is always present.
    """

    x: Inputs
    y: Tensor
    mask: Tensor


class Task(NamedTuple):
    """One learning problem: adapt on the support, be judged on the query.

    A batch of tasks is the same pytree with a leading task dimension T on every leaf.
    key: int64 hash of (seed, split, index), the only source of randomness of a task.
    draws: the random numbers that the algorithm asked for with `Algorithm.draws`.
    """

    support: Examples
    query: Examples
    key: Tensor
    draws: dict[str, Tensor] = {}
    unlabelled: Inputs | tuple[()] = ()


TaskBatch = Task


class InputSpec(NamedTuple):
    """One input: the shape of a row, and the number of categories if it holds integer codes."""

    shape: tuple[int, ...]
    num_categories: int | None = None


class Member(NamedTuple):
    """A class, user or group that tasks are made from.

    source: the data that it is of, as in `data=NAME`. name: within that, whatever is done to its inputs.
    sha256: over what it is made of, before anything is done to it; None where nothing lies on a disk.
    """

    source: str
    name: str
    sha256: str | None = None


Members = Sequence[Member] | Literal["drawn without end"] | None


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


class Location(NamedTuple):
    """A key of a source's YAML that says where something lies, not what it is.

    key: its value is a path, or null. words: values of it that are no path.
    made: what is not there is made anew, as a cache is.
    """

    key: str
    words: tuple[str, ...] = ()
    made: bool = False

    def holds(self, value: Any) -> bool:
        """Whether this value of the key is a path, or null."""
        return value is None or (isinstance(value, str) and value not in self.words)


class Source(ABC):
    """Where tasks come from. Holds its data as tensors on one device and draws without any state.

    name: as in `data=NAME`. locations: a run goes on from other places as long as `fingerprint` is equal.
    """

    name: str
    locations: tuple[Location, ...] = ()

    def prepare(self) -> None:  # noqa: B027 - a source that computes its tasks has nothing to fetch
        """Fetch, verify and cache the data now rather than on first use."""

    def check(self, splits: Sequence[Split]) -> None:  # noqa: B027 - a source that draws without end has enough of everything
        """Raise ConfigError if the data cannot give the tasks of these splits: all of them before training,
        one before it is judged.
        """

    @abstractmethod
    def spec(self, split: Split) -> TaskSpec:
        """What the tasks of this split look like. No `check` of any split: judging one must not fail for want
        of another.
        """

    @abstractmethod
    def tasks(self, split: Split, *, seed: int, first: int, count: int) -> TaskBatch:
        """Tasks number first … first+count-1 of (seed, split): a pure function of these, on the device."""

    def examples(self, *, seed: int, first: int, count: int) -> Examples:
        """Rows first … first+count-1 of an endless stream of shuffled epochs over the train split.

        y: class numbers 0 … num_train_classes-1, int64 (count,).
        """
        raise ValueError(
            f"data={self.name} has no labelled classes to draw flat minibatches from; choose an algorithm "
            "that learns from tasks"
        )

    def num_tasks(self, split: Split) -> int | None:
        """How many different tasks the split holds (users, say); None when they are drawn without end."""
        return None

    def members(self, split: Split) -> Members:
        """Who is in the split, so that nobody is judged on what was trained on, whatever other data an
        evaluation takes.

        DRAWN_WITHOUT_END where no two tasks share anything. None: the source does not say, and a run on it
        can only be judged on data of the same fingerprint.
        """
        return None

    @abstractmethod
    def protocol(self, split: Split) -> dict[str, Any]:
        """Facts that a result must state: way, shot, query_shot, partition, augmentation, … JSON values."""

    @abstractmethod
    def fingerprint(self) -> str:
        """sha256 over the data that tasks are drawn from, their division into splits, and what lies at its
        `locations`.
        """

    def preprocessing(self) -> dict[str, Any]:
        """What was done to inputs, to be done to a person's own: JSON values. Empty: they come as the model
        takes them.

        Of images: resize (nearest, area or lanczos) and invert (bool). Size and channels are those of the
        specification.
        """
        return {}


class Plan(Protocol):
    """How the tasks of a chunk are mapped; see `metalearn.engine.executor`."""

    def map(self, function: Callable[..., Any], *batches: Any) -> Any:
        """function applied to every task of the batches (leading dimension), results stacked."""


class Algorithm(nn.Module):
    """A meta-learning method, written for one task as pure functions of (parameters, task).

    Everything that is learned across tasks is a parameter of this module. The executor swaps the
    parameters with `call`, maps `task_loss` over tasks, and is the only writer of `.grad`.
    Subclasses define `adapt` and `predict`, or override what they need further up.
    """

    kinds: tuple[Kind, ...] = ("classification", "regression", "rating")  # of the tasks that it takes
    handles_ragged: bool = False  # True: padded rows, which the masks hide, never count
    order_matters: bool = (
        False  # True: predictions depend on the order of the support's rows, as with minibatches
    )
    plans: tuple[Literal["loop", "vmap"], ...] = ("loop", "vmap")  # by which its tasks can be mapped
    trains_on: Literal["tasks", "examples"] | None = "tasks"  # None: nothing to train
    adaptation_steps: int = 0
    eval_adaptation_steps: int = 0  # 0: adaptation is not a number of steps
    transductive: bool = False  # True: the query batch influences its own predictions
    norm_statistics: str = "none"  # whose batch-norm statistics predictions use
    formats: Mapping[str, MetricFormat] = {}  # of what `report` returns

    outer_step: (
        Tensor  # int64: updates of the outer loop that were applied, for what changes as training goes on
    )

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__()
        self.spec = spec
        self.objective = spec.objective
        self.register_buffer("outer_step", torch.zeros((), dtype=torch.int64))

    def protocol(self) -> dict[str, Any]:
        """The dials without which a result of this method cannot be read; JSON values."""
        return {}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the outer optimizer is given, as `torch.optim` wants it; every trainable parameter is in one
        group, once.

        A group may bring dials of its own, such as `lr`, which the schedule then scales like the common one.
        """
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def check(self, spec: TaskSpec) -> None:
        """Raise ValueError, with the reason and the way out, if tasks like these are beyond the method.

        Only for what `kinds`, `handles_ragged` and `trains_on` do not say: these are judged before, and
        without any code.
        """

    def draws(self, spec: TaskSpec) -> dict[str, Draw]:
        """Random numbers wanted for each task, enough for training and for evaluation."""
        return {}

    def adapt(self, task: Task, *, steps: int) -> Any:
        """What was learned from one task's support, as a pytree of tensors. Pure; query.y is blank."""
        raise NotImplementedError(f"{type(self).__name__} must define adapt(task, *, steps)")

    def adapt_path(self, task: Task, *, counts: Sequence[int]) -> Iterator[Any]:
        """`adapt` with each of these numbers of steps, ascending. Override where more steps can go on from
        fewer.

        Lazy: it must be used up while the parameters are those that it is to start from.
        """
        return (self.adapt(task, steps=steps) for steps in counts)

    def predict(self, adapted: Any, x: Inputs, mask: Tensor) -> Tensor:
        """Predictions (Q, num_outputs) for all queries of one task."""
        raise NotImplementedError(f"{type(self).__name__} must define predict(adapted, x, mask)")

    def inductive(self, adapted: Any, task: Task) -> Any:
        """The same adaptation, made so that no query can influence another. Identity if it is so already."""
        return adapted

    def report(self, adapted: Any, task: Task) -> Metrics:
        """Further scalars of one task in evaluation, such as robust accuracy; the query has its answers
        here.
        """
        return {}

    def task_loss(self, task: Task) -> tuple[Tensor, Metrics]:
        """Outer loss and metrics of one task."""
        adapted = self.adapt(blank_query(task), steps=self.adaptation_steps)
        prediction = self.predict(adapted, task.query.x, task.query.mask)
        return self.judge(prediction, task.query)

    def judge(self, prediction: Tensor, rows: Examples) -> tuple[Tensor, Metrics]:
        """The objective's loss, and its metrics, of which no gradient is taken."""
        mask = self.real(rows.mask)
        return self.objective.loss(prediction, rows.y, mask), dict(
            self.objective.metrics(prediction.detach(), rows.y, mask)
        )

    def real(self, mask: Tensor) -> Tensor | None:
        """The mask where tasks are ragged; None elsewhere, which says that all rows are real and is
        faster.
        """
        return mask if self.spec.ragged else None

    def losses(self, tasks: TaskBatch | Examples, how: Plan) -> tuple[Tensor, Metrics]:
        """Losses (C,) and metrics {name: (C, …)} of a chunk of C tasks."""
        losses, metrics = how.map(self.task_loss, tasks)
        return losses, metrics

    def gradient(
        self, params: Parameters, tasks: TaskBatch | Examples, how: Plan
    ) -> tuple[Parameters, Tensor, Metrics]:
        """Gradient summed over the chunk, its losses (C,) and metrics {name: (C, …)}. Pure."""

        def total(params: Parameters) -> tuple[Tensor, tuple[Tensor, Metrics]]:
            losses, metrics = self.call(params, "losses", tasks, how)
            return losses.sum(), (losses, metrics)

        if torch.compiler.is_compiling():
            grads, (losses, metrics) = grad(total, has_aux=True)(params)
            return grads, losses, metrics
        # Ordinary autograd gives the same as one more level of `torch.func.grad`, without its price for every
        # operation.
        leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
        with torch.enable_grad():
            summed, (losses, metrics) = total(leaves)
            found = (
                torch.autograd.grad(summed, list(leaves.values()), materialize_grads=True)
                if summed.requires_grad
                else ()
            )
        grads = (
            dict(zip(leaves, found, strict=True))
            if found
            else {name: torch.zeros_like(p) for name, p in leaves.items()}
        )
        return grads, losses.detach(), map_leaves(Tensor.detach, metrics)

    def update_running(self, statistics: Any) -> None:
        """Let running batch-norm averages follow; called once per outer step if the metrics hold
        `statistics`.

        statistics: as the metrics had them, averaged over tasks.
        """
        raise NotImplementedError(
            f"{type(self).__name__} returns statistics, so it must say what follows them"
        )

    def call(self, params: Parameters, method: str, *args: Any, **kwargs: Any) -> Any:
        """self.<method>(…) with some or all parameters replaced. Nests: the rest keep their present
        values.
        """
        if torch.compiler.is_compiling():
            return functional_call(self, params, (method, *args), kwargs, tie_weights=False)
        # What `functional_call` does, whose walk through all modules costs as much as a small network.
        homes = self._homes_of(params)
        before = {name: homes[name][0][homes[name][1]] for name in params}
        try:
            for name, value in params.items():
                home, key = homes[name]
                home[key] = value
            return getattr(self, method)(*args, **kwargs)
        finally:
            for name, value in before.items():
                home, key = homes[name]
                home[key] = value

    def present(self, names: Iterable[str]) -> Parameters:
        """The present values of these parameters: what `call` has put in their place."""
        if torch.compiler.is_compiling():
            parameters = dict(self.named_parameters())
            return {name: parameters[name] for name in names}
        names = list(names)
        homes = self._homes_of(names)
        return {name: home[key] for name in names for home, key in [homes[name]]}

    def _homes_of(self, names: Iterable[str]) -> dict[str, tuple[dict[str, Any], str]]:
        """Where the parameters of these names live: the dictionary of their module, and their key in it."""
        family, homes = self._family
        if not all(
            children.get(name) is child for children, name, child in family
        ) or not homes.keys() >= set(names):
            del self._family  # modules were replaced since, or parameters added
            _, homes = self._family
        return homes

    @cached_property
    def _family(self) -> tuple[list[tuple[dict[str, Any], str, Any]], dict[str, tuple[dict[str, Any], str]]]:
        """Every module as a child of another, and the homes of all parameters, while these are its
        children.
        """
        modules = list(self.named_modules())
        family = [
            (parent._modules, name, child) for _, parent in modules for name, child in parent._modules.items()
        ]
        homes = {
            f"{prefix}.{key}" if prefix else key: (module._parameters, key)
            for prefix, module in modules
            for key, p in module._parameters.items()
            if p is not None
        }
        return family, homes

    def forward(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The door for `functional_call`, which can only enter a module through `forward`."""
        return getattr(self, method)(*args, **kwargs)


def is_transformed() -> bool:
    """Whether a compiler or a transform of `torch.func` sees these operations, rather than ordinary autograd
    alone.
    """
    return torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None


def map_leaves(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """The same tree of tuples and dictionaries with the function applied to every tensor; a tenth of what a
    general pytree costs.
    """
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {name: map_leaves(function, value) for name, value in tree.items()}
    parts = (map_leaves(function, value) for value in tree)
    return type(tree)._make(parts) if hasattr(tree, "_make") else type(tree)(parts)


def leaves_of(tree: Any) -> Iterator[Tensor]:
    """The tensors of such a tree, in the order of `map_leaves`."""
    if isinstance(tree, Tensor):
        yield tree
    else:
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from leaves_of(value)


def rebuilt(tree: Any, leaves: Iterable[Tensor]) -> Any:
    """A tree like this one with other tensors, given in the order of `leaves_of`."""
    following = iter(leaves)
    return map_leaves(lambda leaf: next(following), tree)


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


def starting_with(names: Sequence[str], prefixes: str | Sequence[str], *, key: str) -> list[str]:
    """The names that begin with one of the prefixes, in their order. `all` means all of them.

    key: the dial that holds the prefixes. Raises ValueError naming every prefix that no name begins with.
    """
    if prefixes == "all":
        return list(names)
    wanted = [prefixes] if isinstance(prefixes, str) else list(prefixes)
    idle = [prefix for prefix in wanted if not any(name.startswith(prefix) for name in names)]
    if idle or not wanted:
        parts = {".".join(name.split(".")[:n]) for name in names for n in range(1, name.count(".") + 2)}
        close = difflib.get_close_matches(idle[0], sorted(parts), 1) if idle else []
        meant = f"; did you mean {close[0]}?" if close else ";"
        found = f"{', '.join(idle)} matches no parameter" if idle else "it matches no parameter"
        raise ValueError(f"{key}={prefixes}: {found}{meant} choose 'all' or prefixes of: {', '.join(names)}")
    return [name for name in names if name.startswith(tuple(wanted))]
