"""Whether two methods differ: intervals, tests and sizes for scores of tasks. Pure functions of arrays.

K seeds, n tasks. Scores of a method are (K, n): row s is what the model of seed s scored on each task. Seeds
and tasks are crossed, as every model meets the same tasks; seeds are nested in their method. The model behind
the intervals over seeds is score = method + seed + task + rest, all but the first being random (Searle,
Casella & McCulloch 1992, Variance Components, ch. 4.3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

Array = np.ndarray[Any, Any]
UPPER = 0.975  # quantile at which a two-sided 95% interval ends
POWER = 0.8
RESAMPLES = 4_999
LARGEST_BATCH = 4_000_000  # resampled scores held at once
FEWEST_SEEDS = 3  # below, an interval over seeds would say more of its quantile than of the seeds
FLOAT32 = 2.0**-20  # share of the largest score up to which differences of float32 scores are equal
FIRST_LOOK, LOOK_EVERY = 200, 100  # of `eval.ci_target`, in tasks


class Interval(NamedTuple):
    low: float
    high: float

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


class Components(NamedTuple):
    """Variances, none of them negative."""

    seed: float
    task: float
    rest: float


class OverSeeds(NamedTuple):
    """What a difference of two methods is worth where other seeds are drawn as well as other tasks.

    df: Satterthwaite's degrees of freedom. p: two-sided, that there is no difference. parts: estimates of
    what seeds, tasks and the rest contribute to the variance of the difference.
    """

    interval: Interval
    standard_error: float
    df: float
    p: float
    parts: Components


def around(center: float, standard_error: float, df: float) -> Interval:
    """The 95% interval by t."""
    half = half_width(standard_error**2, df)
    return Interval(center - half, center + half)


def half_width(variance: float, df: float) -> float:
    return float(stats.t.ppf(UPPER, df)) * math.sqrt(variance)


def t_interval(values: Array) -> Interval:
    """95% interval of the mean of (n,) values, n >= 2."""
    return around(float(values.mean()), standard_error(values), len(values) - 1)


def standard_error(values: Array) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values))


def bootstrap_interval(values: Array, *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """95% percentile interval of the mean of (n,) values over resampled tasks; equal seeds, equal bounds."""
    found = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, LARGEST_BATCH // len(values)),
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(found.low), float(found.high))


def differences(a: Array, b: Array) -> Array:
    """a − b of (n,) scores on a grid far below what they mean, so that equal differences are equal.

    0.8 − 0.6 and 1.0 − 0.8 are two numbers to a computer, and a test by ranks would not see their tie.
    """
    step = FLOAT32 * max(float(np.abs(a).max()), float(np.abs(b).max()))
    return np.round((a - b) / step) * step if step else a - b


def wilcoxon_p(values: Array) -> float:
    """Two-sided p of the signed-rank test. Zeros are ranked and then dropped (Pratt 1959), as scores of few
    queries have many; nothing but zeros is p = 1.
    """
    if not values.any():
        return 1.0
    return float(stats.wilcoxon(values, zero_method="pratt").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p corrected for their number (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def effect_size(values: Array) -> float | None:
    """d_z, mean over standard deviation of differences (Cohen 1988); None where all are equal, but not 0."""
    mean, std = float(values.mean()), float(values.std(ddof=1))
    if std == 0.0:
        return 0.0 if mean == 0.0 else None
    return mean / std


def tasks_needed(values: Array) -> int | None:
    """Tasks with which a 95% interval leaves 0 out with 80% power, if these differences are typical; None
    for a mean of 0, which no number of tasks tells from 0.
    """
    mean, std = float(values.mean()), float(values.std(ddof=1))
    if mean == 0.0:
        return None
    z = float(stats.norm.ppf(UPPER) + stats.norm.ppf(POWER))
    return max(2, math.ceil((z * std / mean) ** 2))


def mean_squares(scores: Array) -> Components:
    """Mean squares of seeds, tasks and the rest of (K, n) scores, K >= 2, n >= 2."""
    seeds, tasks = scores.shape
    by_seed, by_task = scores.mean(1), scores.mean(0)
    rest = scores - by_seed[:, None] - by_task + scores.mean()
    return Components(
        tasks * float(by_seed.var(ddof=1)),
        seeds * float(by_task.var(ddof=1)),
        float((rest**2).sum()) / ((seeds - 1) * (tasks - 1)),
    )


def components(scores: Array) -> Components:
    """Variance between seeds, between tasks, and of the rest, of (K, n) scores, by analysis of variance."""
    seeds, tasks = scores.shape
    squares = mean_squares(scores)
    return Components(
        max(0.0, (squares.seed - squares.rest) / tasks),
        max(0.0, (squares.task - squares.rest) / seeds),
        squares.rest,
    )


def varies(scores: Array) -> bool:
    """Whether (K, n) scores differ between seeds at all; those of a method with nothing to train do not."""
    return bool((scores != scores[0]).any())


def over_seeds(a: Array, b: Array) -> OverSeeds:
    """The difference of the means of (K_A, n) and (K_B, n) scores of the same tasks, over seeds and tasks.

    One row is a method without seeds; otherwise K >= 2. The variance of the difference is that of the means
    of seeds of either side, which hold the rest as well, and of what tasks add to it; the rest is therefore
    taken off the variance over tasks, which has many degrees of freedom, and not off those over seeds, which
    have few. The interval is at least as wide as that over tasks alone. `scripts/coverage` measures what this
    is worth.
    """
    by_task = a.mean(0) - b.mean(0)
    return _over_seeds(float(by_task.mean()), [a, b], [by_task])


def mean_over_seeds(scores: Array) -> OverSeeds:
    """The mean of (K, n) scores of one method, K >= 2, over seeds and tasks; p is that it is 0."""
    return _over_seeds(float(scores.mean()), [scores], [scores.mean(0)])


def over_seeds_unpaired(a: Array, b: Array) -> OverSeeds:
    """As `over_seeds`, for (K_A, n) and (K_B, m) scores of unlike tasks."""
    return _over_seeds(float(a.mean() - b.mean()), [a, b], [a.mean(0), b.mean(0)])


def _over_seeds(difference: float, sides: Sequence[Array], by_task: Sequence[Array]) -> OverSeeds:
    trained = [side for side in sides if len(side) > 1]
    seeds = [(float(side.mean(1).var(ddof=1)) / len(side), len(side) - 1) for side in trained]
    tasks = [(standard_error(values) ** 2, len(values) - 1) for values in by_task]
    rests = [mean_squares(side).rest / side.size for side in trained]
    alone = sum(variance for variance, _ in tasks)
    kept = max(0.0, 1.0 - sum(rests) / alone) if alone else 0.0
    also_seeds = satterthwaite([*seeds, *((kept * term, degrees) for term, degrees in tasks)])
    variance, df = max(also_seeds, satterthwaite(tasks), key=lambda term: half_width(*term))
    error = math.sqrt(variance)
    p = 2.0 * float(stats.t.sf(abs(difference) / error, df)) if error else float(difference == 0.0)
    parts = Components(
        sum(max(0.0, mean - rest) for (mean, _), rest in zip(seeds, rests, strict=True)),
        kept * alone,
        sum(rests),
    )
    return OverSeeds(around(difference, error, df), error, df, p, parts)


def satterthwaite(terms: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The sum of independent (variance, degrees of freedom), and its own (Satterthwaite 1946)."""
    variance = sum(term for term, _ in terms)
    spread = sum(term**2 / df for term, df in terms)
    return variance, variance**2 / spread if spread else math.inf


def stops_after(scores: Array, target: float) -> int:
    """Tasks after which an evaluation with eval.ci_target has seen enough of (n,) scores; n if it never has.

    It looks after 200, 300, 400 … tasks, and ends where 1.96 standard errors are at most the target.
    """
    for count in range(FIRST_LOOK, len(scores), LOOK_EVERY):
        if 1.96 * standard_error(scores[:count]) <= target:
            return count
    return len(scores)
