"""Evaluating an algorithm on fixed tasks: counter-based, without a graph, without a trace in its state.

Tasks are numbered through all task seeds: number i is task i % episodes of seed eval.seed + i // episodes.
"""

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
    leaves_of,
    rebuilt,
)
from metalearn.engine.batching import Batching, Score, batching, one_sentence
from metalearn.engine.executor import TaskPlan
from metalearn.engine.memory import Demand
from metalearn.engine.pooling import pooled, pooled_part, scalars, worst_decile
from metalearn.engine.task_names import task_hashes
from metalearn.errors import ConfigError
from metalearn.hashing import draw, fold

TOTALS, ROWS = "totals of ", "rows of "  # begin the names of what is no score of a task
Z95 = 1.96
FIRST_LOOK, LOOK_EVERY = 200, 100  # tasks, see `eval.ci_target`


@dataclass(frozen=True)
class EvalSpec:
    """What an evaluation asks: tasks 0 … episodes-1 of (seed, split), and of the seeds that follow.
    `EvalSpec(**cfg["eval"])` is the final one of a run.

    val_episodes: tasks of every validation while a run trains. checkpoint: best, last or step-NUMBER.
    monitor: the metric of validations that says which is best; None: the objective's primary one.
    chunk: tasks held at once, in whole units (see `metalearn.engine.batching`), None for as few as are fast;
    no number depends on it.
    predictions: also keep what was predicted for every query.
    tasks: a file that lists the tasks, in place of those that the split gives. anyway: also judge on who was
    trained on. seeds: of how many task seeds. ci_target: half-width of the primary metric's interval at which
    to stop, in points if it is a fraction. grid: sizes of which every combination is judged.
    curve: the final evaluation, which also reports `<primary>_step_<k>` with fewer steps, which cost nothing
    more, and the worst decile of tasks.
    """

    split: Split
    seed: int
    episodes: int
    val_episodes: int
    checkpoint: str
    monitor: str | None
    chunk: int | None
    predictions: bool
    tasks: str | None
    anyway: bool
    seeds: int
    ci_target: float | None
    grid: Mapping[str, Any] | None
    curve: bool = True

    @property
    def total(self) -> int:
        """Tasks of all seeds."""
        return self.episodes * self.seeds

    def validation(self) -> EvalSpec:
        """What is asked while a run trains."""
        plain = replace(self, tasks=None, seeds=1, ci_target=None, grid=None, predictions=False, curve=False)
        return replace(plain, split="val", episodes=self.val_episodes)


@dataclass(frozen=True)
class Evaluation:
    """columns: one entry per task, `task_id` first. summary: {metric: {mean, ci95 (half-width), std}} over
    tasks. rows: (T, Q, …) of all tasks, if predictions were asked for. sums: the totals of all tasks.

    A metric that is no mean over tasks has no column; `metalearn.engine.pooling.pooled` says what its summary
    is.
    """

    columns: dict[str, list[Any]]
    summary: dict[str, dict[str, float]]
    rows: dict[str, Tensor] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def of(found: dict[str, Tensor], objective: Objective, spec: EvalSpec) -> Evaluation:
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
        if spec.curve:
            primary = torch.tensor(scores[objective.primary], dtype=torch.float64)
            worst = worst_decile(primary, higher_is_better=objective.higher_is_better)
            summary |= {f"{objective.primary}_worst_decile": worst}
        count = len(next(iter(found.values())))
        seeds = (
            {"eval_seed": [spec.seed + i // spec.episodes for i in range(count)]} if spec.seeds > 1 else {}
        )
        identity = {"task_id": list(range(count)), **seeds}
        sums = {name: values.double().sum(0) for name, values in totals.items()}
        return Evaluation({**identity, **scores}, summary, rows, sums)

    def named(self, hashes: list[str]) -> Evaluation:
        """With the sha256 of every task."""
        number = self.columns["task_id"]
        rest = {name: column for name, column in self.columns.items() if name != "task_id"}
        return replace(self, columns={"task_id": number, "task_sha256": hashes, **rest})

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

    def find(tasks: range) -> dict[str, Tensor]:
        kept: dict[str, Tensor] = {}
        for first, found in evaluate_batches(algorithm, source, spec, plan, size, tasks, on_batch=on_batch):
            keep(kept, found, first - tasks.start, len(tasks))
        return kept

    return until_enough(find, source, spec)


def until_enough(find: Callable[[range], dict[str, Tensor]], source: Source, spec: EvalSpec) -> Evaluation:
    """The evaluation of as many tasks as are asked for, or of as many as reach `ci_target`; after every look
    the tasks so far are judged as a whole.

    find: what `evaluate_batch` finds of tasks with these numbers.
    """
    kept: dict[str, Tensor] = {}
    objective = source.spec(spec.split).objective
    for tasks in looks(spec):
        for name, values in find(tasks).items():
            kept[name] = torch.cat([kept[name], values]) if name in kept else values
        if spec.ci_target is not None:
            done = summarise(decimals(kept[objective.primary]))["ci95"] <= in_files(spec, objective)
            if done:
                break
    evaluation = Evaluation.of(kept, objective, spec)
    # Nobody compares validations.
    return evaluation.named(hashes_of(source, spec, evaluation.episodes)) if spec.curve else evaluation


def looks(spec: EvalSpec) -> Iterator[range]:
    """Numbers of the tasks that are judged before each look: all of them, or with a `ci_target` the first
    200, then 100 at a time, whatever is taken at once.
    """
    first, last = 0, spec.total if spec.ci_target is None else min(FIRST_LOOK, spec.total)
    while first < spec.total:
        yield range(first, last)
        first, last = last, min(last + LOOK_EVERY, spec.total)


def in_files(spec: EvalSpec, objective: Objective) -> float:
    """`ci_target` in the unit that files have: fractions, where people read percent."""
    form = getattr(objective, "formats", {}).get(objective.primary)
    return (spec.ci_target or 0.0) / (100.0 if form is not None and form.percent else 1.0)


def hashes_of(source: Source, spec: EvalSpec, count: int) -> list[str]:
    """task_sha256 of the first `count` tasks."""
    parts = [
        task_hashes(source, spec.split, seed=spec.seed + index, count=min(spec.episodes, count - first))
        for index, first in enumerate(range(0, count, spec.episodes))
    ]
    return [one for part in parts for one in part]


def keep(kept: dict[str, Tensor], found: dict[str, Tensor], first: int, count: int) -> None:
    """In one block for all tasks: small ones of every batch would lie between the large ones that are given
    back, and hold them.
    """
    for name, values in found.items():
        if name not in kept:
            kept[name] = torch.empty((count, *values.shape[1:]), dtype=values.dtype)
        kept[name][first : first + len(values)] = values


def limited(spec: EvalSpec, source: Source) -> EvalSpec:
    """With as many tasks as can be asked, all of a file; ConfigError if they give no interval, or if seeds
    would repeat them.
    """
    available = source.num_tasks(spec.split)
    if available is not None and spec.seeds > 1:
        raise ConfigError(
            f"eval.seeds={spec.seeds} would judge the same {available} tasks again and again, as if they "
            "were others; leave it out"
        )
    episodes = spec.episodes if available is None else min(spec.episodes, available)
    if spec.tasks is not None and available is not None:
        episodes = available
    if episodes * spec.seeds < 2:
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
        return batching(score, task, alone=plan.name == "loop", episodes=spec.total, limit=spec.chunk)


def evaluate_batches(
    algorithm: Algorithm,
    source: Source,
    spec: EvalSpec,
    plan: TaskPlan,
    size: Batching,
    tasks: range | None = None,
    *,
    rank: int = 0,
    ranks: int = 1,
    on_batch: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Number of the first task and scores of each batch that is this rank's; the ranks take turns.

    tasks: their numbers; all by default.
    """
    tasks = range(spec.total) if tasks is None else tasks
    score = score_of(algorithm, source, spec, plan)
    with frozen(algorithm):
        for first in range(tasks.start + rank * size.held, tasks.stop, ranks * size.held):
            count = min(size.held, tasks.stop - first)
            with one_sentence(count, least=size.held <= size.unit):
                batch = draw_numbered(algorithm, source, spec, first=first, count=count)
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


def draw_numbered(
    algorithm: Algorithm, source: Source, spec: EvalSpec, *, first: int, count: int
) -> TaskBatch:
    """The tasks with these numbers, which may be of several seeds."""
    parts = []
    for number in range(first // spec.episodes, (first + count - 1) // spec.episodes + 1):
        start, stop = (max(first, number * spec.episodes), min(first + count, (number + 1) * spec.episodes))
        parts.append(
            draw_tasks(
                algorithm,
                source,
                spec.split,
                seed=spec.seed + number,
                first=start - number * spec.episodes,
                count=stop - start,
            )
        )
    if len(parts) == 1:
        return parts[0]
    joined: TaskBatch = rebuilt(parts[0], map(torch.cat, zip(*map(leaves_of, parts), strict=True)))
    return joined


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
