"""What recipes were recorded to give, beside what was published: docs/results.md, and its extract in the
README.

The figures stand in `about.measured` of each recipe, where `metalearn reproduce --record` writes them, in the
unit in which people read them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metalearn.errors import ConfigError
from metalearn.report.markup import Grid, written
from metalearn.report.tables import unit_of
from metalearn.rundir.reader import read_yaml

UNKNOWN = "not measured yet"
USUAL = "cpu"  # the tier of a recipe as it stands
INTRODUCTION = """# Results

Made by `metalearn report {words} --format md` from what `metalearn reproduce --record` wrote. Of figures
that were *typed before records existed* neither commit nor machine is known. Intervals are over test tasks;
*SD* is the standard deviation over seeds, where there are several. *Minutes* are those of training with
validation, of one seed. A commit that ends in *-dirty* had further changes. *Transductive* means that the
queries of a task are normalised together, so that they influence each other; *inductive* that each stands
alone. A recipe is measured again with `metalearn reproduce NAME`."""
HEAD = (
    *("Recipe", "Figure", "Published", "Measured ± 95% CI", "SD", "Tasks"),
    *("Seeds", "Steps", "Minutes", "Date", "Commit", "Machine", "Command"),
)
SHORT = (
    "Recipe",
    "Figure",
    "Published",
    "Measured ± 95% CI",
    "Tasks",
    "Seeds",
    "Steps",
    "Minutes",
    "Command",
)
TYPED = "typed before records existed"
SHA = re.compile(r"\b([0-9a-f]{10})[0-9a-f]+\b")
RIGHT = ("Published", "Measured ± 95% CI", "SD", "Tasks", "Steps", "Minutes")


class Recipe(NamedTuple):
    name: str
    about: dict[str, Any]


class Figure(NamedTuple):
    """A figure of a recipe under one tier. cells: by the names of HEAD. machine: empty if it is not known."""

    cells: dict[str, str]
    headline: bool
    machine: str


def recipes_of(paths: Iterable[Path]) -> list[Recipe]:
    """The recipes that paths are, or hold. ConfigError for a file that cannot be read or is no recipe."""
    found = []
    for path in paths:
        files = sorted(path.glob("[!_]*.yaml")) if path.is_dir() else [path]
        found += [_recipe(file) for file in files]
    return found


def is_recipe(path: Path) -> bool:
    """Whether a path is a YAML, or a folder in which every YAML is one with figures."""
    if not path.is_dir():
        return path.suffix == ".yaml"
    inside = sorted(path.glob("[!_]*.yaml"))
    try:
        return bool(inside) and all(map(_recipe, inside))
    except ConfigError:
        return False


def _recipe(path: Path) -> Recipe:
    try:
        content = read_yaml(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); mend it or leave it out") from error
    about = content.get("about") if isinstance(content, dict) else None
    figures = about.get("figures") if isinstance(about, dict) else None
    good = isinstance(figures, list) and all(isinstance(one, dict) and "name" in one for one in figures)
    if not isinstance(about, dict) or not good or path.name == "config.yaml":
        raise ConfigError(f"{path} is no recipe with about.figures; name a folder of runs or of recipes")
    return Recipe(path.stem, about)


def figures(recipe: Recipe) -> list[Figure]:
    """Every figure of a recipe, under each tier that was measured; not measured where there is none."""
    about = recipe.about
    records = {
        str(tier): record
        for tier, record in _mapping(about.get("measured")).items()
        if isinstance(record, Mapping) and isinstance(record.get("figures"), Mapping)
    } or {USUAL: {"figures": {}}}
    marked = [one for one in about["figures"] if one.get("headline")] or about["figures"]
    return [
        _figure(recipe, tier, record, one, one in marked)
        for tier, record in records.items()
        for one in about["figures"]
    ]


def _figure(
    recipe: Recipe, tier: str, record: Mapping[str, Any], one: Mapping[str, Any], headline: bool
) -> Figure:
    value, unit = _mapping(record["figures"].get(one["name"])), unit_of(dict(one))
    name = str(one["name"]) + (f" ({tier})" if tier != USUAL else "")
    measured = f"{value['mean']} ± {value.get('ci95')}{unit}" if "mean" in value else UNKNOWN
    typed = "mean" in value and record.get("commit") is None and record.get("machine") is None
    machine = str(record.get("machine") or "")
    cells = {
        "Recipe": f"`{recipe.name}`",
        "Figure": name,
        "Published": "–" if one.get("published") is None else f"{one['published']}{unit}",
        "Measured ± 95% CI": measured,
        "SD": "–" if value.get("std") is None else f"{value['std']}{unit}",
        "Tasks": cell(value.get("episodes")),
        "Seeds": ", ".join(map(str, record.get("seeds") or [])) or "–",
        **{key.capitalize(): cell(record.get(key)) for key in ("steps", "minutes", "date")},
        "Commit": TYPED if typed else commits(record.get("commit")),
        "Machine": machine or "–",
        "Command": f"`{_command(recipe.name, tier, one)}`",
    }
    return Figure(cells, headline, machine)


def commits(words: Any) -> str:
    """Each by its first ten letters, dirty ones as such."""
    return ", ".join(SHA.sub(r"\1", str(words)).split()) if words else "–"


def _command(name: str, tier: str, one: Mapping[str, Any]) -> str:
    if tier != USUAL:
        return f"metalearn reproduce {name} --tier {tier}"
    if one.get("eval"):
        return shlex.join(["metalearn", "eval", "RUN_DIR", *one["eval"]])
    return shlex.join(["metalearn", "train", f"experiment={name}", *(one.get("train") or [])])


def cell(value: Any) -> str:
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def grid_of(found: Sequence[Figure], head: Sequence[str] = HEAD) -> Grid:
    """One row per figure; columns that say nothing of any are left out."""
    used = [
        name for name in head if name == "Measured ± 95% CI" or any(one.cells[name] != "–" for one in found)
    ]
    rows = [[one.cells[name] for name in used] for one in found]
    return Grid("", used, rows, right=[place for place, name in enumerate(used) if name in RIGHT])


def results(recipes: Sequence[Recipe], form: str, words: str) -> str:
    """Every figure of the recipes; as Markdown a whole page, which says how it was made from these words."""
    found = [one for recipe in recipes for one in figures(recipe)]
    if form == "csv":
        return written([plain(grid_of(found))], form)
    machines = list(dict.fromkeys(one.machine for one in found if one.machine))
    numbers = {machine: str(number) for number, machine in enumerate(machines, 1)}
    numbered = [one._replace(cells={**one.cells, "Machine": numbers.get(one.machine, "–")}) for one in found]
    listed = "; ".join(f"{number}: {machine}" for machine, number in numbers.items())
    note = f"Machines: {listed}." if machines else ""
    grid = grid_of(numbered)
    if form == "tex":
        return written([plain(grid)._replace(note=note)], form)
    return f"{INTRODUCTION.format(words=words)}\n\n{written([grid], form)}" + (f"\n{note}\n" if note else "")


def plain(grid: Grid) -> Grid:
    """Without the marks of Markdown."""
    return grid._replace(rows=[[text.strip("`") for text in row] for row in grid.rows])


def extract(recipes: Sequence[Recipe]) -> Grid:
    """The headline of each recipe that was measured; of one that marks none, every figure."""
    found = [one for recipe in recipes for one in figures(recipe) if one.headline]
    return grid_of([one for one in found if one.cells["Measured ± 95% CI"] != UNKNOWN], SHORT)
