"""report: one page, or tables for a paper, of any number of runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from metalearn.config.schema import closest
from metalearn.errors import ConfigError

FORMATS = ("html", "md", "tex", "csv")
PAGE = Path("report.html")


def run(args: argparse.Namespace) -> int:
    """Make one page of runs: leader tables, curves, worst tasks, and where each number comes from.

    metalearn report outputs                            report.html, one file that needs no network
    metalearn report 'outputs/*maml*' --output maml.html
    metalearn report outputs --format tex               tables for a paper; also md and csv
    metalearn report conf/experiment --format md        what the recipes were recorded to give
    """
    output = PAGE if args.output is None and args.format == "html" else args.output
    if output is not None:
        refuse_place(output)
    text = content(args.paths, args.format)
    if output is None:
        print(text, end="")
        return 0
    try:
        output.write_bytes(text.encode("utf-8", "replace"))
    except OSError as error:
        raise ConfigError(
            f"--output {output} cannot be written: {error.strerror or error}; choose another file"
        ) from error
    print(f"{output} ({output.stat().st_size / 1e6:.1f} MB)")
    return 0


def content(paths: Sequence[str], form: str) -> str:
    """The page or the tables. ConfigError for a path that holds neither runs nor recipes."""
    from metalearn.report import recipes
    from metalearn.rundir.registry import expanded

    found = [path for path in expanded(paths) if recipes.is_recipe(path)]
    if found:
        others = [path for path in expanded(paths) if path not in found]
        if others:
            raise ConfigError(
                f"{others[0]} is no recipe but {found[0]} is; report runs and recipes one by one"
            )
        if form == "html":
            raise ConfigError(
                f"{found[0]} holds recipes, which make a table and no page; add --format md, tex or csv"
            )
        return recipes.results(recipes.recipes_of(found), form, " ".join(paths))
    from metalearn.report.collection import collected

    collection = collected(paths)
    if form == "html":
        from metalearn.report import html

        return html.report(collection)
    from metalearn.report import paper

    return paper.report(collection, form)


def refuse_place(output: Path) -> None:
    """Before the work, not after it."""
    if output.is_dir() or not output.parent.is_dir():
        what = "is a folder" if output.is_dir() else f"lies in {output.parent}, which is no folder"
        raise ConfigError(f"--output {output} {what}; name a file, as in --output {PAGE}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="runs, evaluations, folders or patterns of them; or recipes and folders of recipes",
    )
    parser.add_argument(
        "--format",
        metavar="FORMAT",
        choices=FORMATS,
        type=known_format,
        default="html",
        help="html (default), md, tex or csv",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        help=f"where to write it (default: {PAGE}; tables are printed)",
    )


def known_format(word: str) -> str:
    if word not in FORMATS:
        meant = closest(word, FORMATS)
        raise ConfigError(
            f"--format {word} does not exist; "
            + (f"did you mean {meant}?" if meant else f"choose from {', '.join(FORMATS)}")
        )
    return word
