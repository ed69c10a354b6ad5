"""Whether the first row of a leader table is better than every other: what `metalearn compare` would say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from metalearn.report import statistics
from metalearn.report.methods import was_trained
from metalearn.report.rows import Array, Row
from metalearn.report.statistics import FEWEST_SEEDS
from metalearn.rundir.listing import rises

LEVEL = 0.05  # of p


class Difference(NamedTuple):
    """Of two rows on the tasks that both met. half: of the width of its 95% interval. p: that it is 0.

    models_only: a method that trains has too few seeds, so that this is of the trained models alone.
    """

    mean: float
    half: float
    p: float
    tasks: int
    models_only: bool


def leading(rows: Sequence[Row]) -> tuple[bool, str]:
    """Whether the first row is better than every other beyond chance, and the sentence that says so.

    Over seeds, where a method has any; p is corrected for the number of other rows (Holm 1979).
    """
    if len(rows) < 2:
        return False, ""
    best, rivals = rows[0], [row for row in rows[1:] if row.estimate is not None]
    if best.estimate is None:
        return False, "No row is in bold: none has a finite mean."
    if not rivals:
        return False, "No row is in bold: no other row has a finite mean."
    found = []
    for row in rivals:
        difference = between(best, row)
        if isinstance(difference, str):
            return False, f"No row is in bold: {difference}."
        if difference.models_only:
            return False, f"No row is in bold: {of_models(best, row, difference)}."
        found.append(difference)
    sign = 1 if rises(best.first.results) else -1
    for row, one, p in zip(rivals, found, statistics.holm([one.p for one in found]), strict=True):
        if one.mean * sign < 0:
            return False, (
                f"No row is in bold: on the {one.tasks:,} tasks that both met, {row.label} is better than "
                f"{best.label}."
            )
        if p >= LEVEL:
            corrected = f", p = {p:.2g} when corrected for {len(found)} other rows" if len(found) > 1 else ""
            return False, (
                f"No row is in bold: on the {one.tasks:,} tasks that both met, {best.label} and {row.label} "
                f"differ by {best.form.shown(one.mean, one.half)}{corrected}, no more than chance."
            )
    return True, (
        f"{best.label} is in bold: over seeds, where methods have any, and tasks (each other row shares "
        f"{min(one.tasks for one in found):,} at least), the 95% interval of its difference leaves out zero"
        + (", also when p is corrected for their number." if len(found) > 1 else ".")
    )


def between(a: Row, b: Row) -> Difference | str:
    """The first row minus the second, or why there is no difference."""
    first, second = a.tasks_met, b.tasks_met
    if isinstance(first, str) or isinstance(second, str):
        return first if isinstance(first, str) else str(second)
    both = {*first} & {*second}
    shared = [task for task in first if task in both]
    if len(shared) < 2:
        return f"{a.label} and {b.label} share {len(shared)} tasks"
    scores = [row.scores_on(shared) for row in (a, b)]
    trained = [trains(row, one) for row, one in zip((a, b), scores, strict=True)]
    few = any(learns and len(one) < FEWEST_SEEDS for learns, one in zip(trained, scores, strict=True))
    if few:
        sides = [one.mean(0)[None] for one in scores]
    else:
        sides = [one if learns else one[:1] for learns, one in zip(trained, scores, strict=True)]
    found = statistics.over_seeds(*sides)
    low, high = found.interval
    return Difference((low + high) / 2, (high - low) / 2, found.p, len(shared), few)


def trains(row: Row, scores: Array) -> bool:
    """Whether another seed could have scored otherwise, as `metalearn.report.methods.trains` says it."""
    return any(was_trained(member.judged) for member in row.members) or bool((scores != scores[0]).any())


def of_models(a: Row, b: Row, found: Difference) -> str:
    return (
        f"on the {found.tasks:,} tasks that both met, these trained models of {a.label} and {b.label} differ "
        f"by {a.form.shown(found.mean, found.half)}; it takes {FEWEST_SEEDS} seeds of each to say more"
    )
