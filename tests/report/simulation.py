"""How often intervals hold what they are about, in made-up results whose truth is known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from metalearn.report import statistics
from metalearn.report.statistics import Interval

Array = np.ndarray[Any, Any]
QUERIES = 5  # of a task: 5-way, one query per class, so that an accuracy is one of six numbers
TASK, REST, TASKS = 5.0, 8.0, 600  # standard deviations in points, and tasks, of the design over seeds
SPREADS, SEEDS = (0.0, 0.5, 1.0, 2.0), (3, 5, 10)
LOGITS = {"easy": 4.0, "middle": 2.5, "hard": 0.0}  # of a query's chance to be right, on a middling task

SEQUENTIAL = (  # difficulty, half-width asked for, most tasks
    *(("easy", 0.003, 5000), ("easy", 0.005, 2500), ("easy", 0.01, 1000)),
    *(("middle", 0.005, 7000), ("middle", 0.01, 2500), ("hard", 0.01, 6000), ("hard", 0.02, 2500)),
)


class Coverage(NamedTuple):
    """name: of the interval. share: of repetitions whose interval held the truth. width: its mean."""

    name: str
    share: float
    width: float

    @staticmethod
    def of(name: str, intervals: list[Interval], truth: float) -> Coverage:
        share = sum(interval.holds(truth) for interval in intervals) / len(intervals)
        width = sum(interval.high - interval.low for interval in intervals) / len(intervals)
        return Coverage(name, share, width)


def chances(logit: float, difficulty: Array) -> Array:
    return np.asarray(1.0 / (1.0 + np.exp(-(logit + difficulty))))


def mean_chance(logit: float) -> float:
    """The true accuracy over all tasks, whose difficulties are normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    return float((weights * chances(logit, nodes)).sum() / weights.sum())


def accuracies(rng: np.random.Generator, logit: float, difficulty: Array) -> Array:
    return np.asarray(rng.binomial(QUERIES, chances(logit, difficulty)) / QUERIES)


def paired(logit: float, repetitions: int, *, tasks: int = TASKS, seed: int = 0) -> list[Coverage]:
    """Two models on the same tasks, one a little better."""
    rng = np.random.default_rng(seed)
    truth = mean_chance(logit + 0.1) - mean_chance(logit)
    t, bootstrap = [], []
    for repetition in range(repetitions):
        difficulty = rng.standard_normal(tasks)
        values = statistics.differences(
            accuracies(rng, logit + 0.1, difficulty), accuracies(rng, logit, difficulty)
        )
        t.append(statistics.t_interval(values))
        bootstrap.append(statistics.bootstrap_interval(values, seed=repetition, resamples=499))
    return [Coverage.of("paired t", t, truth), Coverage.of("paired bootstrap", bootstrap, truth)]


class Sequential(NamedTuple):
    coverage: Coverage
    mean_tasks: float
    reached: float  # share of repetitions


def sequential(
    logit: float, target: float, repetitions: int, *, most: int = 10_000, seed: int = 0
) -> Sequential:
    """One model, judged until its interval is narrow enough. target: half-width, as a fraction."""
    rng = np.random.default_rng(seed)
    intervals, counts = [], []
    for _ in range(repetitions):
        scores = accuracies(rng, logit, rng.standard_normal(most))
        count = statistics.stops_after(scores, target)
        seen = scores[:count]
        half = 1.96 * statistics.standard_error(seen)
        intervals.append(Interval(float(seen.mean()) - half, float(seen.mean()) + half))
        counts.append(count)
    found = Coverage.of("sequential", intervals, mean_chance(logit))
    return Sequential(found, float(np.mean(counts)), float(np.mean(np.array(counts) < most)))


def crossed(
    rng: np.random.Generator, seeds: int, spread: float, difference: float = 1.0
) -> tuple[Array, Array]:
    """(K, n) scores of two methods in points, of which the first is better by `difference`.

    What tasks have in common for both cancels, so that the task effect is one of the difference alone.
    """
    tasks = TASK * rng.standard_normal(TASKS)
    a, b = (
        spread * rng.standard_normal((seeds, 1)) + REST * rng.standard_normal((seeds, TASKS))
        for _ in range(2)
    )
    return a + tasks + difference, b


def over_seeds(
    seeds: int, spread: float, repetitions: int, *, resamples: int = 499, seed: int = 0
) -> list[Coverage]:
    """The interval of `compare`; the plain bootstrap, which draws seeds and tasks again; and the paired
    interval over tasks alone, which takes the trained models for the methods.
    """
    rng = np.random.default_rng(seed)
    # How often each seed and each task is drawn; the same for all repetitions, for the sake of time.
    tasks = rng.multinomial(TASKS, np.full(TASKS, 1 / TASKS), resamples) / TASKS
    draws = [rng.multinomial(seeds, np.full(seeds, 1 / seeds), resamples) / seeds for _ in range(2)]
    ours, plain, fixed = [], [], []
    for _ in range(repetitions):
        a, b = crossed(rng, seeds, spread)
        ours.append(statistics.over_seeds(a, b).interval)
        drawn = ((tasks @ a.T) * draws[0]).sum(1) - ((tasks @ b.T) * draws[1]).sum(1)
        plain.append(Interval(*map(float, np.quantile(drawn, [0.025, 0.975]))))
        fixed.append(statistics.t_interval(a.mean(0) - b.mean(0)))
    names = ("compare", "plain bootstrap", "tasks alone")
    return [Coverage.of(name, found, 1.0) for name, found in zip(names, (ours, plain, fixed), strict=True)]


def same_runs(seeds: int, spread: float, repetitions: int, *, seed: int = 0) -> list[Coverage]:
    """Two evaluations of the same runs, as after one adaptation step and after three: what a seed is worth is
    common to both but for a quarter of it. The interval of `compare`, and the one of runs that share nothing.
    """
    rng = np.random.default_rng(seed)
    paired, apart = [], []
    for _ in range(repetitions):
        a, b = crossed(rng, seeds, 0.25 * spread / np.sqrt(2.0))
        common = spread * rng.standard_normal((seeds, 1))
        paired.append(statistics.mean_over_seeds((a + common) - (b + common)).interval)
        apart.append(statistics.over_seeds(a + common, b + common).interval)
    return [Coverage.of("compare", paired, 1.0), Coverage.of("as if of unlike runs", apart, 1.0)]


def table(repetitions: int) -> Iterator[str]:
    """The lines of a Markdown table, as they are found."""
    yield f"Shares of {repetitions:,} repetitions whose 95% interval held the truth; mean widths in points."
    yield ""
    yield "| What is drawn | Interval | Coverage | Width |"
    yield "| --- | --- | --- | --- |"
    for name, logit in LOGITS.items():
        for found in paired(logit, repetitions):
            yield row(f"accuracies of {QUERIES} queries, {TASKS} tasks, {name}", found, 100.0)
    for name, target, most in SEQUENTIAL:
        stopped = sequential(LOGITS[name], target, repetitions, most=most)
        what = (
            f"the same, {name}, until ± {100 * target:g} points: {stopped.mean_tasks:,.0f} tasks in the mean"
        )
        yield row(what, stopped.coverage, 100.0)
    yield ""
    yield "| Seeds of each | Spread of seeds | `compare` | Width | Bootstrap | Width | Tasks | Width |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for seeds in SEEDS:
        for spread in SPREADS:
            cells = [f"{one.share:.3f} | {one.width:.2f}" for one in over_seeds(seeds, spread, repetitions)]
            yield f"| {seeds} | {spread:g} | {' | '.join(cells)} |"
    yield ""
    yield "| Seeds of the same runs | Spread of seeds | `compare` | Width | As if of other runs | Width |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for seeds in SEEDS:
        for spread in SPREADS:
            cells = [f"{one.share:.3f} | {one.width:.2f}" for one in same_runs(seeds, spread, repetitions)]
            yield f"| {seeds} | {spread:g} | {' | '.join(cells)} |"


def row(what: str, found: Coverage, scale: float) -> str:
    return f"| {what} | {found.name} | {found.share:.3f} | {found.width * scale:.2f} |"
