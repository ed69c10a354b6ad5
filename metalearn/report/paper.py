"""Leader tables for a paper, or for another program."""

from __future__ import annotations

from metalearn.report.collection import Collection
from metalearn.report.leaderboard import Table, shown_apart, tables
from metalearn.report.markup import Grid, written
from metalearn.report.protocol import headings, sentence
from metalearn.report.rows import Row, duration

RESULT = 1  # column of the primary metric


def report(collection: Collection, form: str) -> str:
    """One table per protocol, and, in Markdown, the runs without a result."""
    collection = shown_apart(collection)
    found = tables(collection.reported)
    make = _for_programs if form == "csv" else _for_people
    titles = headings([table.results for table in found])
    grids = [make(table, title) for table, title in zip(found, titles, strict=True)]
    if collection.pending and form == "md":
        rows = [[str(one.folder), one.state, str(one.step or "–"), one.reason] for one in collection.pending]
        grids.append(Grid("Runs without a result", ["Run", "State", "Last step", "What it says"], rows))
    return written(grids, form)


def _for_people(table: Table, title: str) -> Grid:
    several = any(len(row.members) > 1 for row in table.rows)
    spread = ["SD over seeds"] if several else []
    head = ["Method", f"{table.primary.replace('_', ' ')} ± 95% CI", "Tasks", "Seeds", *spread]
    head += ["Budget", "Time", "Published"]
    starred = any(row.estimate and row.estimate.over != "tasks" for row in table.rows)
    note = " ".join(
        part
        for part in (
            sentence(table.results),
            "Intervals are over test tasks" + (", those marked * over tasks and seeds." if starred else "."),
            table.reason,
            *(f"Published, beside {rows}: {source}." for source, rows in table.sources),
        )
        if part
    )
    return Grid(
        title,
        head,
        [_cells(row, several) for row in table.rows],
        note,
        right=(RESULT, 2),
        bold=(0,) if table.leads else (),
        best=RESULT,
    )


def _cells(row: Row, several: bool) -> list[str]:
    found = row.estimate
    star = "*" if found and found.over != "tasks" else ""
    spread = row.form.shown(found.spread) if found and found.spread is not None else "–"
    return [
        row.label,
        f"{row.form.shown(found.mean, found.ci95)}{star}" if found else "not finite",
        row.tasks,
        row.seed_words,
        *([spread] if several else []),
        row.budget,
        duration(row.seconds),
        row.published[0] or "–",
    ]


def _for_programs(table: Table, title: str) -> Grid:
    """Numbers as they stand in results.json: accuracies as fractions."""
    head = ["method", "metric", "mean", "ci95", "interval_over", "sd_over_seeds", "tasks", "seeds"]
    head += ["outer_steps", "seconds", "published", "best", "folders"]
    rows = []
    for place, row in enumerate(table.rows):
        found = row.estimate
        numbers = [found.mean, found.ci95, found.over, found.spread] if found else [None] * 4
        cells = [*numbers, row.tasks, " ".join(map(str, row.seeds)), row.outer_steps, row.seconds]
        cells += [
            row.published[1],
            table.leads and place == 0,
            " ".join(str(one.folder) for one in row.members),
        ]
        rows.append([row.label, table.primary, *("" if cell is None else str(cell) for cell in cells)])
    return Grid(f"{title}. {sentence(table.results)}".strip(), head, rows)
