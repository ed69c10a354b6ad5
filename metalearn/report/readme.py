"""The tables of the README, and docs/results.md, made from the `about:` blocks of the YAMLs so that no figure
is typed twice.

scripts/readme writes them; a test fails when they differ.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from metalearn.report import recipes
from metalearn.report.markup import markdown
from metalearn.report.tables import published
from metalearn.rundir.reader import read_yaml

RECIPES = "conf/experiment"


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


def results_page(conf_dir: Path) -> str:
    """The content of docs/results.md: what `metalearn report conf/experiment --format md` prints."""
    return recipes.results(recipes.recipes_of([conf_dir / "experiment"]), "md", RECIPES)


def results_table(conf_dir: Path) -> str:
    """The headline figure of every recipe: published, measured ± 95% CI, tasks, cost and command."""
    found = recipes.extract(recipes.recipes_of([conf_dir / "experiment"]))
    return markdown(found.head, found.rows, found.right)


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
