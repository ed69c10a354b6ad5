"""Leader tables: results that were measured alike, the best method first.

Runs that differ by nothing but their seed are one row. Unlike protocols never share a table, and the best row
is set apart only where a comparison over seeds supports it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from metalearn.report.collection import Collection, Pending, Reported
from metalearn.report.methods import NONE, differing
from metalearn.report.rows import Row
from metalearn.rundir.listing import rises
from metalearn.rundir.registry import canonical, protocol_key

MISTAKES = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
MOST_LETTERS = 24  # of a value in the name of a row


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


def shown_apart(collection: Collection) -> Collection:
    """The collection with results that no row can be made of among those that are damaged: they cost their
    own row only.
    """
    good, damaged = [], []
    for one in collection.reported:
        try:
            row = Row([one])
            _ = protocol_key(one.results), method_key(one), rises(one.results), row.estimate, row.budget
            _ = row.seconds, row.published, row.label, row.tasks, row.form
            good.append(one)
        except MISTAKES as error:
            damaged.append(Pending(one.folder, "damaged", None, f"{type(error).__name__}: {error}"[:200]))
    return Collection(good, [*collection.pending, *damaged])


def tables(reported: Iterable[Reported]) -> list[Table]:
    """One table per protocol, those with most rows first."""
    alike: dict[str, list[Reported]] = {}
    for one in reported:
        alike.setdefault(protocol_key(one.results), []).append(one)
    return sorted((table_of(group) for group in alike.values()), key=lambda table: -len(table.rows))


def table_of(group: Sequence[Reported]) -> Table:
    """The leader table of results that were measured alike."""
    rows = named(rows_of(group))
    rises_ = rises(group[0].results)

    def rank(row: Row) -> float:
        return math.inf if row.estimate is None else row.estimate.mean * (-1 if rises_ else 1)

    rows = sorted(rows, key=rank)
    from metalearn.report.leading import leading  # scipy takes most of a second

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
    """Equal for results of one method that were judged by the same command, which a row prints."""
    return canonical([one.folder.name if one.is_evaluation else None, one.facts.science])


def named(rows: Sequence[Row]) -> list[Row]:
    """The rows with the words that tell those apart that would bear the same name."""
    alike: dict[str, list[Row]] = {}
    for row in rows:
        alike.setdefault(row.name, []).append(row)
    found = []
    for group in alike.values():
        differ = differing([row.first.facts for row in group])
        for place, row in enumerate(group):
            own = {key: values[place] for key, values in differ.items() if values[place] != NONE}
            words = [f"{key}={value[:MOST_LETTERS]}" for key, value in own.items() if key != "folder"]
            words += [f"evals/{row.first.folder.name}"] if row.first.is_evaluation else []
            found.append(Row(row.members, tuple(words)))
    return found
