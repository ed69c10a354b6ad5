"""Evaluating an algorithm on fixed tasks: counter-based, without a graph, without a trace in its state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metalearn.core import (
    Algorithm,
    Examples,
    Objective,
    Plan,
    Source,
    Split,
    Task,
    TaskBatch,
    TaskSpec,
    blank_query,
)
from metalearn.engine.batching import Batching, Score, batching, one_sentence
from metalearn.engine.executor import TaskPlan
from metalearn.engine.memory import Demand
from metalearn.engine.pooling import pooled, pooled_part, scalars
from metalearn.errors import ConfigError
from metalearn.hashing import draw, fold

TOTALS, ROWS = "totals of ", "rows of "  # begin the names of what is no score of a task
Z95 = 1.96


@dataclass(frozen=True)
class EvalSpec:
    """What an evaluation asks: tasks 0 … episodes-1 of (seed, split). `EvalSpec(**cfg["eval"])` is the final
    one of a run.

    val_episodes: tasks of every validation while a run trains. checkpoint: best, last or step-NUMBER.
    monitor: the metric of validations that says which is best; None: the objective's primary one.
    chunk: tasks held at once, in whole units (see `metalearn.engine.batching`), None for as few as are fast;
    no number depends on it.
    predictions: also keep what was predicted for every query.
    curve: also report `<primary>_step_<k>` with fewer steps, which cost nothing more.
    """

    split: Split
    seed: int
    episodes: int
    val_episodes: int
    checkpoint: str
    monitor: str | None
    chunk: int | None
    predictions: bool
    curve: bool = True

    def validation(self) -> EvalSpec:
        """What is asked while a run trains."""
        return replace(self, split="val", episodes=self.val_episodes, predictions=False, curve=False)


@dataclass(frozen=True)
class Evaluation:
    """columns: one entry per task, `task_id` first. summary: {metric: {mean, ci95 (half-width), std}} over
    tasks. rows: one entry per query of all tasks, if predictions were asked for.

    A metric that is no mean over tasks has no column; `metalearn.engine.pooling.pooled` says what its summary
    is.
    """

    columns: dict[str, list[Any]]
    summary: dict[str, dict[str, float]]
    rows: dict[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def of(found: dict[str, Tensor], objective: Objective) -> Evaluation:
        """From what `evaluate_batch` found of tasks 0, 1, 2, …: a column and a mean of each score, a metric
        from all totals.
        """
        rows = {name.removeprefix(ROWS): values for name, values in found.items() if name.startswith(ROWS)}
        columns = {name: values for name, values in found.items() if not name.startswith((TOTALS, ROWS))}
        scores = {name: decimals(values) for name, values in columns.items()}
        totals = {
            name.removeprefix(TOTALS): values for name, values in found.items() if name.startswith(TOTALS)
        }
        summary = {name: summarise(values) for name, values in scores.items()}
        pool = pooled_part(objective)
        if pool is not None and totals:
            summary |= unlike(summary, pooled(pool, totals), pool, "summary")
        count = len(next(iter(found.values())))
        return Evaluation({"task_id": list(range(count)), **scores}, summary, flat_rows(rows))

    @property
    def episodes(self) -> int:
        return len(self.columns["task_id"])


def evaluate(
    algorithm: Algorithm,
    source: Source,
    spec: EvalSpec,
    *,
    plan: TaskPlan,
    size: Batching | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Evaluation:
    """What the specification asks, or every task once if the split holds fewer.

    size: as `batching_of` found it before, which need not be done again.
    on_batch: called with the number of tasks done after every batch; may raise to stop early.
    """
    spec = limited(spec, source)
    if size is None:
        size, _ = batching_of(algorithm, source, spec, plan)
    kept: dict[str, Tensor] = {}
    for first, found in evaluate_batches(algorithm, source, spec, plan, size, on_batch=on_batch):
        for name, values in found.items():
            # In one block for all tasks: small ones of every batch would lie between the large ones that are
            # given back, and hold them.
            if name not in kept:
                kept[name] = torch.empty((spec.episodes, *values.shape[1:]), dtype=values.dtype)
            kept[name][first : first + len(values)] = values
    return Evaluation.of(kept, source.spec(spec.split).objective)


def limited(spec: EvalSpec, source: Source) -> EvalSpec:
    """With as many tasks as can be asked; ConfigError if they give no interval."""
    available = source.num_tasks(spec.split)
    episodes = spec.episodes if available is None else min(spec.episodes, available)
    if episodes < 2:
        raise ConfigError(
            f"{episodes} tasks of split {spec.split!r} give no interval; at least 2 are needed: raise "
            "eval.episodes or choose another split"
        )
    return replace(spec, episodes=episodes)


def batching_of(
    algorithm: Algorithm, source: Source, spec: EvalSpec, plan: TaskPlan
) -> tuple[Batching, Demand]:
    """How many tasks to take at once, by its first one, and the memory for them."""
    with frozen(algorithm):
        task = draw_tasks(algorithm, source, spec.split, seed=spec.seed, first=0, count=1)
        # Without predictions, so that no score depends on whether they are kept.
        score = score_of(algorithm, source, replace(spec, predictions=False), plan)
        return batching(score, task, alone=plan.name == "loop", episodes=spec.episodes, limit=spec.chunk)


def evaluate_batches(
    algorithm: Algorithm,
    source: Source,
    spec: EvalSpec,
    plan: TaskPlan,
    size: Batching,
    *,
    rank: int = 0,
    ranks: int = 1,
    on_batch: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Number of the first task and scores of each batch that is this rank's; the ranks take turns."""
    score = score_of(algorithm, source, spec, plan)
    with frozen(algorithm):
        for first in range(rank * size.held, spec.episodes, ranks * size.held):
            count = min(size.held, spec.episodes - first)
            with one_sentence(count, least=size.held <= size.unit):
                batch = draw_tasks(algorithm, source, spec.split, seed=spec.seed, first=first, count=count)
            yield first, size.scores(score, batch)
            if on_batch is not None:
                on_batch(first + count)


def score_of(algorithm: Algorithm, source: Source, spec: EvalSpec, plan: Plan) -> Score:
    """What an evaluation does with a batch of tasks."""
    return partial(evaluate_batch, algorithm, source.spec(spec.split).objective, plan, spec)


def evaluate_batch(
    algorithm: Algorithm, objective: Objective, plan: Plan, spec: EvalSpec, batch: TaskBatch
) -> dict[str, Tensor]:
    """Loss and metrics (T,) of each task: those of the objective, the inductive primary, the method's report,
    the curve.

    The objective's totals (T, …) are there too, under names that begin with TOTALS, and what was predicted
    for the queries (T, Q, …), if that is asked, under names that begin with ROWS.
    """
    last = algorithm.eval_adaptation_steps
    counts = curve_steps(last) if spec.curve else [last]
    primary, pool = objective.primary, pooled_part(objective)

    def scores(task: Task) -> dict[str, Tensor]:
        def predict(adapted: Any) -> Tensor:
            return algorithm.predict(adapted, task.query.x, task.query.mask)

        def metrics_of(prediction: Tensor) -> dict[str, Tensor]:
            metrics = objective.metrics(prediction, task.query.y, task.query.mask)
            return {"loss": objective.loss(prediction, task.query.y, task.query.mask), **metrics}

        unanswered = blank_query(task)
        points = {}
        for k, adapted in zip(counts, algorithm.adapt_path(unanswered, counts=counts), strict=True):
            prediction = predict(adapted)
            result = metrics_of(prediction)
            points[f"{primary}_step_{k}"] = result[primary]
        inductive = algorithm.inductive(adapted, unanswered)
        also = result if inductive is adapted else metrics_of(predict(inductive))
        result[f"{primary}_inductive"] = also[primary]
        # After every prediction: from here on the answers are known.
        report = scalars(algorithm, "report", algorithm.report(adapted, task))
        result |= unlike({**result, **points}, report, algorithm, "report")
        totals = {} if pool is None else pool.totals(prediction, task.query.y, task.query.mask)
        result |= {f"{TOTALS}{name}": values for name, values in totals.items()}
        if spec.predictions:
            result |= {
                f"{ROWS}prediction": prediction,
                f"{ROWS}y": task.query.y,
                f"{ROWS}mask": task.query.mask,
            }
        return {**result, **points} if spec.curve and last > 0 else result

    with torch.no_grad():
        mapped: dict[str, Tensor] = plan.map(scores, batch)
    return mapped


def unlike(taken: Mapping[str, Any], more: dict[str, Any], owner: object, method: str) -> dict[str, Any]:
    """Further metrics; ConfigError if one has the name of another."""
    for name in more:
        if name in taken or name.startswith((TOTALS, ROWS)):
            source = f"{type(owner).__name__}.{method}"
            raise ConfigError(f"{source} gives {name}, which is the name of another metric; rename it")
    return more


def flat_rows(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """(T, Q, …) as (T·Q, …), with the number of each row's task."""
    if not rows:
        return {}
    count, size = rows["mask"].shape
    return {
        **{name: values.flatten(0, 1) for name, values in rows.items()},
        "task": torch.arange(count).repeat_interleave(size),
    }


def decimals(values: Tensor) -> list[Any]:
    """The numbers (T,) as the shortest decimals that are equal to them in float32: 0.8, not
    0.800000011920929.
    """
    if not values.is_floating_point() or values.dtype == torch.float64:
        return values.tolist()
    return [float(text) for text in values.float().cpu().numpy().astype(str)]


def draw_tasks(
    algorithm: Algorithm, source: Source, split: Split, *, seed: int, first: int, count: int
) -> TaskBatch:
    """A batch of tasks with the random numbers that the algorithm wants for each."""
    batch = source.tasks(split, seed=seed, first=first, count=count)
    return TaskBatch(*batch)._replace(draws=draw(batch.key, algorithm.draws(source.spec(split))))


def task_of(algorithm: Algorithm, support: Examples, spec: TaskSpec) -> Task:
    """A task of a person's own support, whose queries are not known yet: the support stands in for methods
    that look at query inputs while they adapt.
    """
    key = fold(0, device=support.mask.device)
    draws = {name: value[0] for name, value in draw(key[None], algorithm.draws(spec)).items()}
    return blank_query(Task(support, support, key, draws))


def curve_steps(last: int) -> list[int]:
    """Step counts of the adaptation curve: each one up to 10, then 0, 1, 2, 5, 10, 20, 50, … and the last."""
    if last <= 10:
        return list(range(last + 1))
    round_numbers = [factor * 10**power for power in range(len(str(last))) for factor in (1, 2, 5)]
    return [0, *(k for k in round_numbers if k < last), last]


def summarise(values: list[float]) -> dict[str, float]:
    """Mean over tasks, half-width of its 95% interval (1.96·s/√n) and the sample's standard deviation s."""
    count = len(values)
    if not all(map(math.isfinite, values)):
        return {"mean": math.nan, "ci95": math.nan, "std": math.nan}
    mean = math.fsum(values) / count
    # hypot scales its arguments, so that the squares of an adaptation that diverges cannot overflow.
    std = math.hypot(*(value - mean for value in values)) / math.sqrt(count - 1)
    return {"mean": mean, "ci95": Z95 * std / math.sqrt(count), "std": std}


@contextmanager
def frozen(algorithm: Algorithm) -> Iterator[None]:
    """Evaluation mode, put back as it was afterwards."""
    modes = [(module, module.training) for module in algorithm.modules()]
    algorithm.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
