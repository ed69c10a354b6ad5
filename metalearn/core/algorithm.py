"""What a meta-learning method is, and how its tasks are mapped."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from metalearn.core.tasks import (
    Batch,
    Draw,
    Examples,
    Inputs,
    Kind,
    MetricFormat,
    Task,
    TaskSpec,
    blank_query,
)
from metalearn.core.trees import map_leaves

Parameters = dict[str, Tensor]
Metrics = dict[str, Any]  # per-task scalars, averaged over tasks; "statistics" may hold batch-norm statistics


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
    # True: predictions depend on the order of the support's rows, as with minibatches
    order_matters: bool = False
    plans: tuple[Literal["loop", "vmap"], ...] = ("loop", "vmap")  # by which its tasks can be mapped
    # False: a task starts from what the one before left, so that an outer step is one piece of work for one
    # process
    tasks_independent: bool = True
    trains_on: Literal["tasks", "examples"] | None = "tasks"  # None: nothing to train
    adaptation_steps: int = 0
    eval_adaptation_steps: int = 0  # 0: adaptation is not a number of steps
    transductive: bool = False  # True: the query batch influences its own predictions
    norm_statistics: str = "none"  # whose batch-norm statistics predictions use
    formats: Mapping[str, MetricFormat] = {}  # of what `report` returns

    # int64: updates of the outer loop that were applied, for what changes as training goes on
    outer_step: Tensor

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

    def losses(self, tasks: Batch, how: Plan) -> tuple[Tensor, Metrics]:
        """Losses (C,) and metrics {name: (C, …)} of a chunk of C tasks."""
        losses, metrics = how.map(self.task_loss, tasks)
        return losses, metrics

    def gradient(self, params: Parameters, tasks: Batch, how: Plan) -> tuple[Parameters, Tensor, Metrics]:
        """Gradient summed over the chunk, its losses (C,) and metrics {name: (C, …)}. Pure."""
        if torch.compiler.is_compiling():

            def total(params: Parameters) -> tuple[Tensor, tuple[Tensor, Metrics]]:
                losses, metrics = self.call(params, "losses", tasks, how)
                return losses.sum(), (losses, metrics)

            grads, (losses, metrics) = grad(total, has_aux=True)(params)
            return grads, losses, metrics
        # Ordinary autograd gives the same as one more level of `torch.func.grad`, without its price for every
        # operation.
        leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
        with torch.enable_grad():
            losses, metrics = self.call(leaves, "losses", tasks, how)
            summed = losses.sum()
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


def starting_with(names: Sequence[str], patterns: str | Sequence[str], *, key: str) -> list[str]:
    """The names that begin with one of the patterns, in their order, less those that begin with one that has
    a minus before it. `all`, or nothing but such, means all of them; in a pattern, * stands for anything.

    key: the dial that holds the patterns. Raises ValueError naming every pattern that matches no name.
    """
    if patterns == "all":
        return list(names)
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    without = [pattern.removeprefix("-") for pattern in wanted if pattern.startswith("-")]
    within = [pattern for pattern in wanted if not pattern.startswith("-")] or ["*"] * bool(without)

    def found(of: Sequence[str], name: str) -> bool:
        return any(fnmatchcase(name, f"{pattern}*") for pattern in of)

    idle = [pattern for pattern in [*within, *without] if not any(found([pattern], name) for name in names)]
    chosen = [name for name in names if found(within, name) and not found(without, name)]
    if idle or not chosen:
        parts = {".".join(name.split(".")[:n]) for name in names for n in range(1, name.count(".") + 2)}
        close = difflib.get_close_matches(idle[0], sorted(parts), 1) if idle else []
        meant = f"; did you mean {close[0]}?" if close else ";"
        wrong = f"{', '.join(idle)} matches no parameter" if idle else "it matches no parameter"
        raise ValueError(f"{key}={patterns}: {wrong}{meant} choose 'all' or prefixes of: {', '.join(names)}")
    return chosen
