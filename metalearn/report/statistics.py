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
FLOAT32 = 2.0**-20  # share of a score below which float32 says nothing of it
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
    """a − b of (n,) scores: exactly 0 on each task where float32 does not tell the two apart."""
    values = np.asarray(a - b)
    return np.where(np.abs(values) <= FLOAT32 * magnitudes(a, b), 0.0, values)


def magnitudes(a: Array, b: Array) -> Array:
    """Of the larger of two scores, task by task: the unit of what is too small to be a difference there."""
    return np.asarray(np.maximum(np.abs(a), np.abs(b)))


def tied(values: Array, scale: Array) -> Array:
    """(n,) differences in which those that are equal but for float32 are equal, for tests by ranks.

    0.8 − 0.6 and 1.0 − 0.8 are two numbers to a computer, and ranks would not see their tie. scale: of the
    scores behind each, as `magnitudes` gives it. Sizes in a row are one where the least of them is meant.
    """
    size = np.abs(values)
    equal, first, unit = size.copy(), -np.inf, 0.0
    for index in np.argsort(size, kind="stable"):
        if size[index] - first > FLOAT32 * min(unit, scale[index]):
            first, unit = size[index], scale[index]
        equal[index] = first
    return np.asarray(np.sign(values) * equal)


def is_constant(values: Array, scale: Array) -> bool:
    """Whether (n,) differences are all the same one, but for float32."""
    return bool((np.abs(values - np.median(values)) <= FLOAT32 * scale).all())


def t_p(values: Array) -> float:
    """Two-sided p of the t test that the mean of (n,) values is 0; it is below 0.05 where 0 is outside of
    `t_interval`.
    """
    return p_of(float(values.mean()), standard_error(values), len(values) - 1)


def p_of(difference: float, standard_error: float, df: float) -> float:
    if standard_error == 0.0:
        return float(difference == 0.0)
    return 2.0 * float(stats.t.sf(abs(difference) / standard_error, df))


def wilcoxon_p(values: Array) -> float:
    """Two-sided p of the signed-rank test. Zeros are ranked and then dropped (Pratt 1959), as scores of few
    queries have many; nothing but zeros is p = 1.
    """
    if not values.any():
        return 1.0
    return float(stats.wilcoxon(values, zero_method="pratt").pvalue)


def holm(p_values: Sequence[float], count: int | None = None) -> list[float]:
    """p corrected (Holm 1979) for the number of questions, in the order given. count: of all questions, if
    some have no p; their number otherwise.
    """
    count = len(p_values) if count is None else count
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (count - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def effect_size(values: Array, scale: Array | None = None) -> float | None:
    """d_z, mean over standard deviation of differences (Cohen 1988); None where all are equal, but not 0.

    scale: of the scores behind each, as `magnitudes` gives it; of the differences themselves, if None.
    """
    mean = float(values.mean())
    if is_constant(values, np.abs(values) if scale is None else scale):
        return None if values.any() else 0.0
    return mean / float(values.std(ddof=1))


def tasks_needed(values: Array, scale: Array | None = None) -> int | None:
    """Tasks with which a 95% interval leaves 0 out with 80% power, if these differences are typical; None
    for a mean of 0, which no number of tasks tells from 0. scale: as in `effect_size`.
    """
    mean, std = float(values.mean()), float(values.std(ddof=1))
    if abs(mean) <= FLOAT32 * float(np.median(np.abs(values) if scale is None else scale)):
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
    """The mean of (K, n) scores of one method, K >= 2, over seeds and tasks; p is that it is 0. Of (K, n)
    differences, where both sides of each are of one run, so that seeds are paired as tasks are.
    """
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
    parts = Components(
        sum(max(0.0, mean - rest) for (mean, _), rest in zip(seeds, rests, strict=True)),
        kept * alone,
        sum(rests),
    )
    return OverSeeds(around(difference, error, df), error, df, p_of(difference, error, df), parts)


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
