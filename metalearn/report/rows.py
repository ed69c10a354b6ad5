"""A row of a leader table: the runs of one method, one per seed, and what is said of them."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from metalearn.report.collection import Reported
from metalearn.report.pairing import Task, aligned, numbered
from metalearn.report.tables import published_figures
from metalearn.rundir.reader import Format, format_of, wall_seconds
from metalearn.rundir.registry import Scores

Array = np.ndarray[Any, Any]
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
    def tasks_met(self) -> list[Task] | str:
        """The tasks that every seed met, one that was drawn twice being two; or why they are not known."""
        found = []
        for member in self.members:
            if isinstance(member.scores, str):
                return f"{self.label} cannot be paired, since {member.scores.rstrip('.')}"
            found.append(numbered(member.scores.tasks))
        if any({*names} != {*found[0]} for names in found):
            return f"the seeds of {self.label} met different tasks, so that no task has a mean over seeds"
        return found[0]

    @functools.cached_property
    def scores(self) -> Array | None:
        """(K, n) the primary metric of every seed on every task; None where these are not the same."""
        return None if isinstance(self.tasks_met, str) else self.scores_on(self.tasks_met)

    def scores_on(self, wanted: Sequence[Task]) -> Array:
        """(K, n) the primary metric of every seed on tasks that all of them met."""
        known = [member.scores for member in self.members if isinstance(member.scores, Scores)]
        return np.array([aligned(one, numbered(one.tasks), wanted) for one in known])


def estimate(values: Sequence[dict[str, Any]], scores: Array | None) -> Estimate | None:
    """Mean over seeds and its interval: over seeds and tasks, where enough seeds met the same tasks.

    scores: (K, n) of each seed on each task.
    """
    means = [value["mean"] for value in values]
    errors = [value["ci95"] for value in values]
    if any(number is None or not math.isfinite(number) for number in (*means, *errors)):
        return None
    over_tasks = statistics.fmean(errors)
    spread = statistics.stdev(means) if len(means) > 1 else None
    from metalearn.report.statistics import FEWEST_SEEDS, mean_over_seeds  # scipy takes most of a second

    if spread is None or len(means) < FEWEST_SEEDS or scores is None or scores.shape[1] < 2:
        return Estimate(statistics.fmean(means), over_tasks, "tasks", spread)
    low, high = mean_over_seeds(scores).interval
    return Estimate(statistics.fmean(means), (high - low) / 2, "tasks and seeds", spread)


def duration(seconds: float | None) -> str:
    """12.3 s, 42.3 min or 3.1 h."""
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
