"""The tables of the README, made from the `about:` blocks of the YAMLs so that no figure is typed twice.

scripts/readme writes them between the marks; a test fails when the README differs.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from metalearn.report.tables import published, unit_of
from metalearn.rundir.reader import read_yaml


def fill(text: str, conf_dir: Path) -> str:
    """The README with its tables made anew. Raises ValueError if a pair of marks is missing."""
    for name, table in (("results", results_table(conf_dir)), ("algorithms", algorithms_table(conf_dir))):
        start, end = f"<!-- {name}: made by scripts/readme -->", f"<!-- /{name} -->"
        text, count = re.subn(
            f"{re.escape(start)}.*?{re.escape(end)}",
            lambda _: f"{start}\n{table}\n{end}",
            text,
            flags=re.DOTALL,
        )
        if count != 1:
            raise ValueError(
                f"README.md has {count} pairs of marks '{start}' … '{end}', expected 1; put them around the "
                "table"
            )
    return text


def results_table(conf_dir: Path) -> str:
    """One row per figure that was recorded: published, measured ± 95% CI, tasks, cost, date and command."""
    head = [
        "Recipe",
        "Figure",
        "Published",
        "Measured ± 95% CI",
        "Tasks",
        "Steps",
        "Minutes",
        "Seed",
        "Date",
        "Command",
    ]
    rows = []
    for name, about in about_blocks(conf_dir, "experiment"):
        for tier, record in (about.get("measured") or {}).items():
            for figure in about["figures"]:
                found = (record.get("figures") or {}).get(figure["name"])
                if found is None:
                    continue
                cost = [cell(record[key]) for key in ("steps", "minutes")]
                when = [", ".join(map(str, record["seeds"])), str(record["date"])]
                values = [with_unit(figure, figure["published"]), measured(figure, found)]
                values.append(cell(found["episodes"]))
                rows.append(
                    [f"`{name}`", figure["name"], *values, *cost, *when, f"`{command(name, tier, figure)}`"]
                )
    return markdown(head, rows)


def command(name: str, tier: str, figure: dict[str, Any]) -> str:
    """What gives a figure of a recipe, as a person types it."""
    if tier != "cpu":
        return f"metalearn reproduce {name} --tier {tier}"
    if figure.get("eval"):
        return " ".join(["metalearn eval RUN_DIR", *figure["eval"]])
    return " ".join([f"metalearn train experiment={name}", *(figure.get("train") or [])])


def algorithms_table(conf_dir: Path) -> str:
    """One row per algorithm: its name on the command line, paper, published figure and known deviation."""
    rows = [
        [
            f"`algo={name}`",
            about["title"],
            about["paper"],
            published(about["published"]) if about.get("published") else "–",
            about["deviation"].strip(),
        ]
        for name, about in about_blocks(conf_dir, "algo")
    ]
    return markdown(["Name", "Method", "Paper", "Published", "Deviation"], rows)


def about_blocks(conf_dir: Path, group: str) -> list[tuple[str, dict[str, Any]]]:
    """(name, about block) of every YAML of a group that has one, by name."""
    found = [
        (path.stem, (read_yaml(path) or {}).get("about"))
        for path in sorted((conf_dir / group).glob("[!_]*.yaml"))
    ]
    return [(name, about) for name, about in found if about]


def measured(figure: dict[str, Any], found: dict[str, Any]) -> str:
    """'96.3 ± 0.6 %'. found: what is recorded of the figure."""
    return f"{found['mean']} ± {found['ci95']}{unit_of(figure)}"


def with_unit(figure: dict[str, Any], value: Any) -> str:
    return "–" if value is None else f"{value}{unit_of(figure)}"


def cell(value: Any) -> str:
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; a bar inside a cell would end the cell, so it is escaped."""
    lines = [head, ["---"] * len(head), *([text.replace("|", "\\|") for text in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
