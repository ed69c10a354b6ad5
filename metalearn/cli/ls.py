"""ls: what there is to choose from, and the runs that exist, one line each."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from metalearn.cli.arguments import add_config_dir
from metalearn.config.about import about_problems, headline
from metalearn.config.loader import Library
from metalearn.config.schema import closest
from metalearn.errors import ConfigError, raise_if
from metalearn.report.tables import grid, published
from metalearn.rundir.choices import GROUPS, NAMED_IN_RESULTS
from metalearn.rundir.reader import names_of, result_of, state_of


def run(args: argparse.Namespace) -> int:
    """List what can be chosen, and the runs that exist: one line each.

    metalearn ls algo
    metalearn ls runs [FOLDER]
    """
    if args.what == "runs":
        print(runs(args.folder))
    else:
        groups = [args.what] if args.what else list(GROUPS)
        print("\n\n".join(group(name, args.config_dir) for name in groups))
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        nargs="?",
        metavar="WHAT",
        choices=[*GROUPS, "runs"],
        type=known_listing,
        help=f"{', '.join(GROUPS)} or runs; default: all groups",
    )
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path("outputs"),
        help="where to look for runs (default: outputs)",
    )
    add_config_dir(parser)


def known_listing(word: str) -> str:
    names = [*GROUPS, "runs"]
    if word not in names:
        meant = closest(word, names)
        raise ConfigError(
            f"metalearn ls {word}: {word} is none of {', '.join(names)}"
            + (f"; did you mean {meant}?" if meant else "")
        )
    return word


def group(name: str, config_dir: str | None = None) -> str:
    """One line per choice: name, what it is, paper, published and measured figure."""
    library = Library(config_dir)
    rows = [[name, "what it is", "paper", "published", "measured"]]
    for option in library.options(name):
        about = library.read(name, option).get("about") or {}
        raise_if(f"{library.path(name, option)}: {problem}" for problem in about_problems({"about": about}))
        paper = str(about.get("paper", ""))
        rows.append(
            [option, about.get("title") or first_comment(library.path(name, option)), paper, *figures(about)]
        )
    used = [i for i in range(5) if i < 2 or any(row[i] for row in rows[1:])]
    return grid([[row[i] for i in used] for row in rows])


def first_comment(path: Path) -> str:
    """What a YAML says about itself in its first comment."""
    comments = (
        line
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("# ") and not line.startswith("# @")
    )
    return next(comments, "#")[1:].strip().rstrip(".")


def figures(about: dict[str, Any]) -> tuple[str, str]:
    """The published and the measured figure in few words: of a recipe its headline, of an algorithm its one
    figure.
    """
    figure = headline(about)
    if figure is None:
        return (published(about["published"]) if about.get("published") else ""), ""
    records = [record.get("figures") or {} for record in (about.get("measured") or {}).values()]
    found = next((record[figure["name"]] for record in records if figure["name"] in record), None)
    measured = "" if found is None else f"{found['mean']} ± {found['ci95']}"
    name = figure["name"]
    return ("" if figure.get("published") is None else f"{figure['published']} {name}"), measured


def runs(folder: Path) -> str:
    """One line per run under a folder: state, result with interval, where it is."""
    if not folder.is_dir():
        raise ConfigError(
            f"{folder} is not a folder; runs are written to ./outputs, or say where: metalearn ls runs FOLDER"
        )
    rows = [["run", "algo", "data", "model", "experiment", "state", "result ± 95% CI", "tasks"]]
    for status in sorted(folder.rglob("status.json")):
        names = names_of(status.parent)
        made_of = [str(names.get(group) or "") for group in NAMED_IN_RESULTS]
        rows.append(
            [str(status.parent), *made_of, state_of(status), *result_of(status.parent / "results.json")]
        )
    return grid(rows) if len(rows) > 1 else f"no runs under {folder}; start one with: metalearn train"
