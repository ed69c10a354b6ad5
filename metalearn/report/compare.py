"""Comparing methods on the tasks that they share: what may be compared, and every number that is said of it.

`metalearn.report.statistics` has the formulas, `metalearn.report.methods` says which results are one method.
Nothing here needs torch, or writes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from metalearn.errors import ConfigError
from metalearn.report import statistics
from metalearn.report.methods import Method, methods_of, same_runs, trains
from metalearn.report.pairing import (
    aligned,
    numbered,
    primary_of,
    refusal,
    shared_tasks,
    unlike_facts,
)
from metalearn.report.statistics import FEWEST_SEEDS, Array, Interval, OverSeeds
from metalearn.rundir import registry
from metalearn.rundir.reader import Format, format_of

LEVEL = 0.05  # of p


class Side(NamedTuple):
    """scores: (K, n), of every seed on every task that is compared. trains: whether seeds matter to it."""

    method: Method
    scores: Array
    trains: bool

    @property
    def label(self) -> str:
        return self.method.label

    @property
    def by_task(self) -> Array:
        """(n,) the mean over its seeds."""
        return np.asarray(self.scores.mean(0))

    @property
    def mean(self) -> float:
        return float(self.scores.mean())

    @property
    def ci95(self) -> float:
        """Half of the interval over tasks, as in results.json: 1.96 standard errors."""
        return 1.96 * statistics.standard_error(self.by_task)


class Paired(NamedTuple):
    """What the differences per task say of these trained models. wins: tasks on which the first is better.

    p: of the t test, as is the interval t. holm_p: the same corrected for the number of pairs.
    """

    t: Interval
    p: float
    holm_p: float
    bootstrap: Interval
    wilcoxon_p: float
    wilcoxon_holm_p: float
    effect_size: float | None
    wins: int
    ties: int
    losses: int
    tasks_needed: int | None


class Unpaired(NamedTuple):
    """What Welch's test says of these trained models, as if no task were shared."""

    t: Interval
    p: float
    holm_p: float


@dataclass(frozen=True)
class Pair:
    """The first method minus the second. overlap: whether the two methods' own 95% intervals do.

    over_seeds: None for the reason in why_not. seeds_paired: whether the two are evaluations of the same
    runs, so that seed s of one is seed s of the other.
    """

    a: Side
    b: Side
    difference: float
    unpaired: Unpaired
    overlap: bool
    paired: Paired | None
    over_seeds: OverSeeds | None
    over_seeds_holm: float | None
    why_not: str
    seeds_paired: bool


@dataclass(frozen=True)
class Comparison:
    """differ: keys in which the methods differ, with the value of each method. unlike: the same of what
    should be equal, where that was waived. paired: whether all methods met the same tasks.

    left_out: tasks that not all results share, by folder, where only the shared ones are compared.
    """

    metric: str
    form: Format
    higher_is_better: bool
    sides: list[Side]
    pairs: list[Pair]
    differ: dict[str, list[str]]
    unlike: dict[str, list[Any]]
    paired: bool
    left_out: dict[str, int]


def compare(
    words: Sequence[str], *, metric: str | None = None, common: bool = False, anyway: bool = False
) -> Comparison:
    """The methods that words name, each with each.

    common: only the tasks that all results share. anyway: unpaired where protocols or all tasks are unlike.
    Raises ConfigError for what cannot be compared, DataError for files that are damaged.
    """
    judged = registry.judgements(words)
    methods, differ = methods_of(judged)
    if len(methods) < 2:
        raise ConfigError(_one_method(methods[0]))
    metric = metric or primary_of(methods)
    scores = [[registry.scores(result, metric) for result in method.results] for method in methods]
    unlike = unlike_facts(methods, metric)
    if unlike and not anyway:
        raise ConfigError(refusal(methods, unlike))
    tasks = [[numbered(one.tasks) for one in results] for results in scores]
    whole = [
        [dict(zip(names, one.values, strict=True)) for one, names in zip(*both, strict=True)]
        for both in zip(scores, tasks, strict=True)
    ]
    shared = None if unlike else shared_tasks(methods, tasks, common=common, anyway=anyway)
    sides, left_out = [], {}
    for method, results, names, values in zip(methods, scores, tasks, whole, strict=True):
        own = shared if shared is not None else shared_tasks([method], [names], common=common, anyway=False)
        assert own is not None
        matrix = np.array([aligned(*pair, own) for pair in zip(results, names, strict=True)])
        sides.append(Side(method, matrix, trains(method, values)))
        for result, one in zip(method.results, names, strict=True):
            if len(one) > len(own):
                left_out[str(result.folder)] = len(one) - len(own)
    first = methods[0].results[0].results
    higher = _higher_is_better(metric, first)
    pairs = [_pair(a, b, higher, shared is not None) for a, b in itertools.combinations(sides, 2)]
    form = format_of(metric, first)
    return Comparison(
        metric, form, higher, sides, _corrected(pairs), differ, unlike, shared is not None, left_out
    )


def _one_method(method: Method) -> str:
    seeds = ", ".join(map(str, method.seeds))
    what = (
        f"{method.results[0].folder} is one result"
        if len(method.seeds) == 1
        else f"these {len(method.seeds)} results are one method with seeds {seeds}"
    )
    return f"{what}, and a comparison needs two methods; name the runs of another one, too"


def _higher_is_better(metric: str, results: dict[str, Any]) -> bool:
    """As results.json says; that of an older run says nothing, and then the name decides."""
    declared = (results.get("formats") or {}).get(metric) or {}
    return bool(declared.get("higher_is_better", metric.startswith("accuracy")))


def _pair(a: Side, b: Side, higher: bool, paired: bool) -> Pair:
    low, high = sorted((a, b), key=lambda side: side.mean)
    why_not = _why_not(a, b)
    both = paired and same_runs(a.method, b.method)
    over = None
    if not why_not and both:
        over = statistics.mean_over_seeds(a.scores - b.scores)
    elif not why_not:
        rows = [side.scores if side.trains else side.scores[:1] for side in (a, b)]
        over = (statistics.over_seeds if paired else statistics.over_seeds_unpaired)(*rows)
    welch = statistics.over_seeds_unpaired(a.by_task[None], b.by_task[None])
    return Pair(
        a,
        b,
        difference=float(statistics.differences(a.by_task, b.by_task).mean()) if paired else a.mean - b.mean,
        unpaired=Unpaired(welch.interval, welch.p, holm_p=welch.p),
        overlap=low.mean + low.ci95 >= high.mean - high.ci95,
        paired=_paired(a, b, higher) if paired else None,
        over_seeds=over,
        over_seeds_holm=over.p if over else None,
        why_not=why_not,
        seeds_paired=both,
    )


def _why_not(a: Side, b: Side) -> str:
    """Why there is no interval over seeds; empty if there is one."""
    if not a.trains and not b.trains:
        return "neither method depends on its seed"
    few = [f"{side.label} has {len(side.scores)}" for side in (a, b) if side.trains and _is_few(side)]
    return f"it takes {FEWEST_SEEDS} seeds of a method, and {' and '.join(few)}" if few else ""


def _is_few(side: Side) -> bool:
    return len(side.scores) < FEWEST_SEEDS


def _paired(a: Side, b: Side, higher: bool) -> Paired:
    values = statistics.differences(a.by_task, b.by_task)
    scale = statistics.magnitudes(a.by_task, b.by_task)
    better, worse = int((values > 0).sum()), int((values < 0).sum())
    p, ranks_p = statistics.t_p(values), statistics.wilcoxon_p(statistics.tied(values, scale))
    return Paired(
        statistics.t_interval(values),
        p=p,
        holm_p=p,
        bootstrap=statistics.bootstrap_interval(values),
        wilcoxon_p=ranks_p,
        wilcoxon_holm_p=ranks_p,
        effect_size=statistics.effect_size(values, scale),
        wins=better if higher else worse,
        ties=len(values) - better - worse,
        losses=worse if higher else better,
        tasks_needed=statistics.tasks_needed(values, scale),
    )


def _corrected(pairs: list[Pair]) -> list[Pair]:
    """With every p corrected for the number of pairs, whether or not each of them has such a p."""
    of_t = iter(statistics.holm([pair.paired.p for pair in pairs if pair.paired], len(pairs)))
    ranks = iter(statistics.holm([pair.paired.wilcoxon_p for pair in pairs if pair.paired], len(pairs)))
    welch = iter(statistics.holm([pair.unpaired.p for pair in pairs]))
    seeds = iter(statistics.holm([pair.over_seeds.p for pair in pairs if pair.over_seeds], len(pairs)))
    return [
        replace(
            pair,
            paired=pair.paired and pair.paired._replace(holm_p=next(of_t), wilcoxon_holm_p=next(ranks)),
            unpaired=pair.unpaired._replace(holm_p=next(welch)),
            over_seeds_holm=next(seeds) if pair.over_seeds else None,
        )
        for pair in pairs
    ]


def enough(pair: Pair) -> bool:
    """Whether what was measured says that the methods differ: over seeds, where a method depends on any.

    The interval leaves out 0, and its own p, corrected for the number of pairs, is below 0.05.
    """
    if pair.over_seeds is None and (pair.a.trains or pair.b.trains):
        return False
    return not decisive(pair).holds(0.0) and corrected_p(pair) < LEVEL


def decisive(pair: Pair) -> Interval:
    """The interval by which it is decided whether methods differ."""
    if pair.over_seeds is not None:
        return pair.over_seeds.interval
    return (pair.paired or pair.unpaired).t


def corrected_p(pair: Pair) -> float:
    """p of the same t, by Holm's method."""
    if pair.over_seeds is not None:
        assert pair.over_seeds_holm is not None
        return pair.over_seeds_holm
    return (pair.paired or pair.unpaired).holm_p


def as_json(found: Comparison) -> dict[str, Any]:
    """All of it as JSON values; accuracies are fractions."""
    return {
        "metric": found.metric,
        "higher_is_better": found.higher_is_better,
        "paired": found.paired,
        "methods": [_side_json(side) for side in found.sides],
        "pairs": [_pair_json(pair) for pair in found.pairs],
        "differ": found.differ,
        "unlike": found.unlike,
        "left_out": found.left_out,
    }


def _side_json(side: Side) -> dict[str, Any]:
    several = side.trains and len(side.scores) > 1
    return {
        "label": side.label,
        "folders": [str(result.folder) for result in side.method.results],
        "seeds": side.method.seeds,
        "trains": side.trains,
        "tasks": side.scores.shape[1],
        "mean": side.mean,
        "ci95": side.ci95,
        "variance": statistics.components(side.scores)._asdict() if several else None,
    }


def _pair_json(pair: Pair) -> dict[str, Any]:
    paired, over = pair.paired, pair.over_seeds
    return {
        "a": pair.a.label,
        "b": pair.b.label,
        "difference": pair.difference,
        "these_models": paired and {**paired._asdict(), "t": [*paired.t], "bootstrap": [*paired.bootstrap]},
        "unpaired": {
            "welch": [*pair.unpaired.t],
            "p": pair.unpaired.p,
            "holm_p": pair.unpaired.holm_p,
            "intervals_overlap": pair.overlap,
        },
        "seeds_paired": pair.seeds_paired,
        "over_seeds": over
        and {
            "t": [*over.interval],
            "standard_error": over.standard_error,
            "df": over.df if np.isfinite(over.df) else None,
            "p": over.p,
            "holm_p": pair.over_seeds_holm,
            "variance": over.parts._asdict(),
        },
        "no_interval_over_seeds": pair.why_not or None,
        "enough": enough(pair),
    }
