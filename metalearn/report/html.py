"""The report as one page: no network, no script, light and dark, on screen and on paper."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from metalearn.report import confusion, curves, provenance
from metalearn.report.collection import Collection, Reported
from metalearn.report.leaderboard import Table, shown_apart, tables
from metalearn.report.page import page
from metalearn.report.pictures import Album
from metalearn.report.protocol import headings, own_facts, remaining_facts, sentence
from metalearn.report.rows import Row, duration
from metalearn.report.tables import natural
from metalearn.rundir.reader import shown

CALIBRATION = ("ece", "nll", "brier")
MOST_DRAWN = 20  # tables with figures; a figure takes a tenth of a second


def report(collection: Collection) -> str:
    """The whole page."""
    collection = shown_apart(collection)
    found, album = tables(collection.reported), Album()
    titles = headings([table.results for table in found])
    return page(
        "report.html",
        sections=[
            {"heading": title, **section(number, table, album, drawn=number <= MOST_DRAWN)}
            for number, (title, table) in enumerate(zip(titles, found, strict=True), 1)
        ],
        num_runs=len({one.judged.run_dir for one in collection.reported}),
        num_results=len(collection.reported),
        pending=collection.pending,
        lacks=lacks(collection.reported),
    )


def section(number: int, table: Table, album: Album, *, drawn: bool) -> dict[str, Any]:
    """What the template needs of one leader table."""
    figures = (curves.learning, curves.adaptation, curves.reliability) if drawn else ()
    return {
        "id": f"table-{number}",
        "sentence": sentence(table.results),
        "facts": remaining_facts(table.results),
        "primary": table.primary,
        "reason": table.reason,
        "sources": table.sources,
        "starred": any(row.estimate and row.estimate.over != "tasks" for row in table.rows),
        "several_seeds": any(len(row.members) > 1 for row in table.rows),
        "rows": [
            row_cells(place, row, bold=table.leads and place == 1) for place, row in enumerate(table.rows, 1)
        ],
        "figures": [
            drawing
            for place, draw in enumerate(figures)
            if (drawing := draw(table, f"{number}-{place}")) is not None
        ],
        "not_drawn": not drawn,
        "legend": curves.series_of(table)[: curves.MOST_SERIES],
        "in_grey": max(0, len(table.rows) - curves.MOST_SERIES),
        "calibration": calibration(table),
        "details": [details(place, row, table.rows[0], album) for place, row in enumerate(table.rows, 1)],
    }


def row_cells(place: int, row: Row, *, bold: bool) -> dict[str, Any]:
    """A line of the leader table."""
    found, form = row.estimate, row.form
    return {
        "number": place,
        "label": row.label,
        "bold": bold,
        "value": form.shown(found.mean, found.ci95) if found else "not finite",
        "over": found.over if found else "",
        "tasks": row.tasks,
        "seeds": row.seed_words,
        "spread": form.shown(found.spread) if found and found.spread is not None else "",
        "published": row.published[0],
        "budget": row.budget,
        "time": duration(row.seconds),
    }


def calibration(table: Table) -> list[dict[str, str]]:
    """ECE, NLL and Brier score of the rows that have any of them, each with its interval."""
    found = []
    for place, row in enumerate(table.rows, 1):
        results = row.first.results
        if any(name in results["metrics"] for name in CALIBRATION):
            cells = {
                name: shown(name, results) if name in results["metrics"] else "–" for name in CALIBRATION
            }
            found.append({"number": str(place), "label": row.label, "seed": str(results["seed"]), **cells})
    return found


def details(place: int, row: Row, first: Row, album: Album) -> dict[str, Any]:
    """Everything about one row that is folded away until it is asked for."""
    pairs = confusion.confused(row) if row.first.is_classification else []
    form = row.form
    return {
        "number": place,
        "label": row.label,
        "folders": [str(member.folder) for member in row.members],
        "each": [
            {
                "seed": member.results["seed"],
                "value": shown(member.results["primary"], member.results),
                "tasks": f"{member.results['episodes']:,}",
            }
            for member in row.members
        ],
        "metrics": [
            (name, shown(name, row.first.results), f"{row.first.results['episodes']:,}")
            for name in sorted(row.first.results["metrics"], key=natural)
            if "_step_" not in name
        ],
        "command": provenance.command(row),
        "facts": provenance.facts(row),
        "own": own_facts(row.first.results),
        "changes": provenance.changes(first, row) if place > 1 else [],
        "picture": album.of(row),
        "pairs": pairs if isinstance(pairs, list) else [],
        "no_pairs": pairs if isinstance(pairs, str) else "",
        "parts": [(part, form.shown(part.mean, part.ci95)) for part in confusion.worst_parts(row)],
    }


def lacks(reported: Iterable[Reported]) -> list[tuple[str, list[str]]]:
    """(what, folders) of what older runs did not leave."""
    found: dict[str, list[str]] = {}
    for one in reported:
        for name in one.lacks:
            found.setdefault(name, []).append(str(one.folder))
    return sorted(found.items())
