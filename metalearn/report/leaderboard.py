"""Leader tables: results that were measured alike, the best method first.

Runs that differ by nothing but their seed are one row. Unlike protocols never share a table, and the best row
is set apart only where a paired comparison on the same tasks supports it.
"""

from __future__ import annotations

import functools
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from metalearn.report.collection import Reported
from metalearn.report.methods import is_free, leaves
from metalearn.report.tables import natural, published_figures
from metalearn.rundir.listing import rises
from metalearn.rundir.reader import Format, format_of, wall_seconds
from metalearn.rundir.registry import comparable_facts

MOST_SEEDS = 3  # that are listed one by one
MOST_WORDS = 4  # by which a row says how it differs from the others


class Estimate(NamedTuple):
    """mean of the primary metric over seeds. ci95: half-width of its 95% interval, over tasks or, from three
    seeds on, over tasks and seeds. spread: standard deviation over seeds, None of a single one.
    """

    mean: float
    ci95: float
    over: str
    spread: float | None


class Difference(NamedTuple):
    """Of two rows on the tasks that both met: mean with the half-width of its paired 95% t interval."""

    mean: float
    ci95: float
    tasks: int

    @property
    def separable(self) -> bool:
        return self.tasks > 1 and abs(self.mean) > self.ci95


@dataclass(frozen=True)
class Row:
    """The runs of one method, one per seed, in the order of their seeds."""

    members: list[Reported]
    words: tuple[str, ...] = ()  # how it differs from the other rows of its table

    @property
    def first(self) -> Reported:
        return self.members[0]

    @property
    def name(self) -> str:
        names = self.first.results
        return str(names.get("experiment") or names.get("algo") or self.first.judged.run_dir.name)

    @property
    def label(self) -> str:
        shown = self.words[:MOST_WORDS]
        more = len(self.words) - len(shown)
        return " ".join([self.name, *shown, *([f"(and {more} more settings)"] if more else [])])

    @property
    def seeds(self) -> list[int]:
        return [member.results["seed"] for member in self.members]

    @property
    def seed_words(self) -> str:
        """0, 2 or, of many in a row, 0–4."""
        first, last = self.seeds[0], self.seeds[-1]
        if len(self.seeds) > MOST_SEEDS and self.seeds == list(range(first, last + 1)):
            return f"{first}–{last}"
        return ", ".join(map(str, self.seeds))

    @property
    def form(self) -> Format:
        return format_of(self.first.results["primary"], self.first.results)

    @functools.cached_property
    def estimate(self) -> Estimate | None:
        """None where a mean is not finite."""
        return estimate([member.value for member in self.members], self.scores)

    @property
    def tasks(self) -> str:
        counts = sorted({member.results["episodes"] for member in self.members})
        return "–".join(f"{count:,}" for count in (counts if len(counts) < 2 else (counts[0], counts[-1])))

    @functools.cached_property
    def published(self) -> tuple[str, str]:
        """Figures that the row may be held against, in short and with their source; empty without any."""
        try:
            known, about = published_figures(self.first.config, self.first.results)
            source = f"{'; '.join(figure.full for figure in known)} ({about['paper']})" if known else ""
            return "; ".join(figure.short for figure in known), source
        except (AttributeError, LookupError, TypeError):  # of an `about:` block that was damaged since
            return "", ""

    @property
    def budget(self) -> str:
        """Outer steps times tasks, or examples of a minibatch; none of a method that does not train."""
        steps, trainer = self.outer_steps, self.first.config.get("trainer")
        if not steps or not isinstance(trainer, dict):
            return "none" if self.first.lines else "unknown"
        of = self.first.results.get("trains_on")
        if of not in ("tasks", "examples"):  # as results of before do not say
            return f"{steps:,} steps"
        size = trainer.get("batch_size" if of == "examples" else "meta_batch_size")
        return f"{steps:,} × {size} {of}"

    @property
    def outer_steps(self) -> int:
        return max((line["step"] for line in self.first.lines if line["split"] == "train"), default=0)

    @property
    def seconds(self) -> float | None:
        """Wall time of a run, the mean over seeds; None where nothing was timed."""
        spent = [sum(wall_seconds(member.lines).values()) for member in self.members]
        return statistics.fmean(spent) if any(spent) else None

    @functools.cached_property
    def scores(self) -> list[list[float]] | None:
        """The primary metric of each seed on each task, in one order of the tasks; None where it is not known
        or the tasks are not the same.
        """
        found: list[dict[str, float]] = []
        for member in self.members:
            if isinstance(member.scores, str):
                return None
            found.append(dict(zip(member.scores.tasks, member.scores.values, strict=True)))
        if any(other.keys() != found[0].keys() for other in found):
            return None
        return [[other[task] for task in found[0]] for other in found]

    @functools.cached_property
    def task_means(self) -> dict[str, float] | str:
        """The primary metric of every task, a mean over seeds; or why it is not known."""
        found: dict[str, list[float]] = {}
        for member in self.members:
            if isinstance(member.scores, str):
                return member.scores
            for task, value in zip(member.scores.tasks, member.scores.values, strict=True):
                found.setdefault(task, []).append(value)
        return {task: statistics.fmean(values) for task, values in found.items()}


@dataclass(frozen=True)
class Table:
    """Rows that were measured alike. leads: whether the first row is better than every other one beyond
    chance; reason: why, or why not, in a sentence.
    """

    rows: list[Row]
    leads: bool
    reason: str

    @property
    def results(self) -> dict[str, Any]:
        """Of its first row, for what all of them share."""
        return self.rows[0].first.results

    @property
    def primary(self) -> str:
        return str(self.results["primary"])

    @property
    def sources(self) -> list[tuple[str, str]]:
        """(what was published and where, the rows that it stands beside)."""
        found: dict[str, list[int]] = {}
        for number, row in enumerate(self.rows, 1):
            if row.published[1]:
                found.setdefault(row.published[1], []).append(number)
        return [
            (source, f"row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows))}")
            for source, rows in found.items()
        ]


def tables(reported: Iterable[Reported]) -> list[Table]:
    """One table per protocol, those with most rows first."""
    alike: dict[str, list[Reported]] = {}
    for one in reported:
        alike.setdefault(protocol_key(one.results), []).append(one)
    return sorted((table_of(group) for group in alike.values()), key=lambda table: -len(table.rows))


def protocol_key(results: dict[str, Any]) -> str:
    facts = {**comparable_facts(results), "data": results["protocol"].get("data", results.get("data"))}
    return json.dumps([results["primary"], results["split"], facts], sort_keys=True, default=str)


def table_of(group: Sequence[Reported]) -> Table:
    """The leader table of results that were measured alike."""
    rows = named(rows_of(group))
    rises_ = rises(group[0].results)

    def rank(row: Row) -> float:
        return math.inf if row.estimate is None else row.estimate.mean * (-1 if rises_ else 1)

    rows = sorted(rows, key=rank)
    return Table(rows, *leading(rows))


def rows_of(group: Iterable[Reported]) -> list[Row]:
    """Runs that differ by nothing but their seed in one row each; a seed that ran twice begins another."""
    found: dict[str, list[list[Reported]]] = {}
    for one in group:
        methods = found.setdefault(method_key(one), [])
        seed = one.results["seed"]
        free = next((m for m in methods if all(seed != other.results["seed"] for other in m)), None)
        methods.append([one]) if free is None else free.append(one)
    return [
        Row(sorted(members, key=lambda one: one.results["seed"]))
        for methods in found.values()
        for members in methods
    ]


def method_key(one: Reported) -> str:
    """Equal for runs of one method; a run without a configuration is a method of its own."""
    facts = settings(one.config) or {"folder": str(one.folder)}
    evaluation = one.folder.name if one.is_evaluation else None
    return json.dumps([evaluation, facts], sort_keys=True, default=str)


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """What makes a method of a configuration, by dotted names."""
    return {name: value for name, value in leaves(config) if not is_free(name)}


def named(rows: Sequence[Row]) -> list[Row]:
    """The rows with the words that tell those apart that would bear the same name."""
    alike: dict[str, list[Row]] = {}
    for row in rows:
        alike.setdefault(row.name, []).append(row)
    found = []
    for group in alike.values():
        facts = [settings(row.first.config) for row in group]
        keys = [
            key
            for key in sorted({key for each in facts for key in each}, key=natural)
            if any(each.get(key) != facts[0].get(key) for each in facts)
        ]
        for row, own in zip(group, facts, strict=True):
            words = [f"{key}={shown_value(own[key])}" for key in keys if key in own]
            words += [f"evals/{row.first.folder.name}"] if row.first.is_evaluation else []
            found.append(Row(row.members, tuple(words)))
    return found


def shown_value(value: Any) -> str:
    """As it would be typed."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def estimate(values: Sequence[dict[str, Any]], scores: list[list[float]] | None) -> Estimate | None:
    """Mean over seeds and its interval: over seeds and tasks, where enough seeds met the same tasks.

    scores: of each seed on each task.
    """
    means = [value["mean"] for value in values]
    errors = [value["ci95"] for value in values]
    if any(number is None or not math.isfinite(number) for number in (*means, *errors)):
        return None
    over_tasks = statistics.fmean(errors)
    spread = statistics.stdev(means) if len(means) > 1 else None
    from metalearn.report.statistics import FEWEST_SEEDS, mean_over_seeds  # scipy takes most of a second

    if spread is None or len(means) < FEWEST_SEEDS or scores is None:
        return Estimate(statistics.fmean(means), over_tasks, "tasks", spread)
    low, high = mean_over_seeds(np.array(scores)).interval
    return Estimate(statistics.fmean(means), (high - low) / 2, "tasks and seeds", spread)


def leading(rows: Sequence[Row]) -> tuple[bool, str]:
    """Whether the first row is better than every other beyond chance, and the sentence that says so."""
    if len(rows) < 2:
        return False, ""
    best = rows[0]
    if best.estimate is None:
        return False, "No row is in bold: none has a finite mean."
    shared = []
    for row in rows[1:]:
        if row.estimate is None:
            continue
        found = separable(best, row)
        if isinstance(found, str):
            return False, f"No row is in bold: {found}."
        if not found.separable:
            return False, (
                f"No row is in bold: on the {found.tasks:,} tasks that both met, {best.label} and "
                f"{row.label} differ by {best.form.shown(found.mean, found.ci95)}, no more than chance."
            )
        shared.append(found.tasks)
    if not shared:
        return False, "No row is in bold: no other row has a finite mean."
    return True, (
        f"{best.label} is in bold: on the tasks that it shares with each other row ({min(shared):,} at "
        "least), the paired 95% interval of the difference leaves out zero."
    )


def separable(a: Row, b: Row) -> Difference | str:
    """The paired difference on shared tasks, each a mean over seeds; or why there is none."""
    for row in (a, b):
        if isinstance(row.task_means, str):
            return f"{row.label} cannot be paired, since {row.task_means.rstrip('.')}"
    first, second = a.task_means, b.task_means
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    from metalearn.report.statistics import differences, t_interval

    shared = [task for task in first if task in second]
    if len(shared) < 2:
        return f"{a.label} and {b.label} share {len(shared)} tasks"
    found = differences(*(np.array([side[task] for task in shared]) for side in (first, second)))
    low, high = t_interval(found)
    return Difference(float(found.mean()), (high - low) / 2, len(shared))


def duration(seconds: float | None) -> str:
    """12.3 s, 42.3 min or 3.1 h."""
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
