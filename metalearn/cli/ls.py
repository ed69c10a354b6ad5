"""ls: what there is to choose from, and the runs that exist, one line each."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from metalearn.cli.arguments import add_config_dir
from metalearn.config.schema import closest
from metalearn.errors import ConfigError, raise_if
from metalearn.report.recipes import USUAL
from metalearn.report.tables import grid, published, unit_of
from metalearn.rundir import listing
from metalearn.rundir.choices import GROUPS, NAMED_IN_RESULTS
from metalearn.rundir.listing import ListedRun
from metalearn.rundir.reader import shown
from metalearn.rundir.registry import run_folders


def run(args: argparse.Namespace) -> int:
    """List what can be chosen, and the runs that exist: one line each.

    metalearn ls algo
    metalearn ls runs [FOLDER]
    metalearn ls runs algo=maml data.way=5     those that have these values; seed=0,1 means either
    metalearn ls runs --best                   the best of each protocol
    metalearn ls runs way=5 --sort result      from the best on; or by any key
    """
    if args.what == "runs":
        folder, words = folder_and_filters(args.words)
        print(runs(folder, words, best=args.best, sort=args.sort, as_json=args.json))
        return 0
    refused = [*args.words, *(["--best"] if args.best else []), *(["--sort"] if args.sort else [])]
    if refused or args.json:
        raise ConfigError(f"{(refused or ['--json'])[0]} is for runs; list them with: metalearn ls runs")
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
        "words",
        nargs="*",
        metavar="WORD",
        help="of runs: a folder to look into (default: outputs), and KEY=VALUE that they must have: a choice "
        "(algo=maml), a fact of the protocol (way=5), state=finished, or a key of the configuration "
        "(algo.inner_lr=0.4)",
    )
    parser.add_argument("--best", action="store_true", help="of runs: the best of each protocol only")
    parser.add_argument("--sort", metavar="KEY", help="of runs: by a key, or by result from the best on")
    parser.add_argument("--json", action="store_true", help="of runs: for programs, with the whole protocol")
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
    from metalearn.config.about import about_problems  # with Hydra, which a list of runs need not wait for
    from metalearn.config.loader import Library

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
    from metalearn.config.about import headline

    figure = headline(about)
    if figure is None:
        return (published(about["published"]) if about.get("published") else ""), ""
    unit, name = unit_of(dict(figure)), figure["name"]
    of_tiers = {
        tier: record["figures"][name]
        for tier, record in (about.get("measured") or {}).items()
        if name in (record.get("figures") or {})
    }
    tier = USUAL if USUAL in of_tiers else next(iter(of_tiers), None)
    measured = "" if tier is None else f"{of_tiers[tier]['mean']} ± {of_tiers[tier]['ci95']}{unit}"
    measured += f" ({tier})" if tier not in (None, USUAL) else ""
    return ("" if figure.get("published") is None else f"{figure['published']}{unit} {name}"), measured


def folder_and_filters(words: Sequence[str]) -> tuple[Path, list[str]]:
    """Where to look, and what to look for: a word with =, unless it is the name of a folder."""
    folders = [word for word in words if "=" not in word or Path(word).is_dir()]
    if len(folders) > 1:
        raise ConfigError(
            f"metalearn ls runs looks into one folder, not into {' and '.join(folders)}; name the one that "
            "holds them, and filter as in algo=maml"
        )
    return Path(folders[0] if folders else "outputs"), [word for word in words if word not in folders]


def runs(
    folder: Path,
    words: Sequence[str] = (),
    *,
    best: bool = False,
    sort: str | None = None,
    as_json: bool = False,
) -> str:
    """One line per run under a folder: state, result with interval, where it is.

    words: KEY=VALUE, all of which a run must have. best: of each protocol only. sort: a key, or result.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"{folder} is not a folder; runs are written to ./outputs, or say where: metalearn ls runs FOLDER"
        )
    every = [ListedRun(path) for path in progress(run_folders(folder))]
    filters = [listing.parsed(word) for word in words]
    if every:
        sorted_by = [sort] if sort and sort != listing.RESULT else []
        refuse_unknown(every, [*(wanted.key for wanted in filters), *sorted_by])
    found = listing.filtered(every, filters, progress)
    found = listing.best_of_each_protocol(found) if best else found
    found = listing.in_order_of(found, sort) if sort else found
    if as_json:
        return json.dumps([as_entry(one, filters) for one in found], indent=1)
    if not every:
        return f"no runs under {folder}; start one with: metalearn train"
    if not found:
        what = " ".join([*words, *(["--best"] if best else [])])
        return f"none of the {len(every)} runs under {folder} has {what}"
    return grid(table(found))


def progress(items: Iterable[Any]) -> Iterable[Any]:
    """On a terminal, and only of what takes more than a second."""
    return tqdm(items, unit=" runs", desc="reading", delay=1.0, leave=False, disable=None)


def refuse_unknown(every: Sequence[ListedRun], keys: Sequence[str]) -> None:
    """ConfigError for a key that no run has, with the one that was probably meant."""
    unknown = listing.unknown_keys(every, keys, progress)
    known = listing.keys_of(every) if unknown else []
    problems = []
    for key in unknown:
        meant = closest(key, known)
        way_out = f"did you mean {meant}?" if meant else f"known are, among others, {', '.join(listing.KEYS)}"
        problems.append(f"{key}: none of the {len(every)} runs has such a key; {way_out}")
    raise_if(problems)


def table(found: Sequence[ListedRun]) -> list[list[str]]:
    head = ["run", *NAMED_IN_RESULTS, "state", "result ± 95% CI", "tasks", "seed", "protocol"]
    rows = [head]
    for one in found:
        result, tasks, protocol = "unreadable" if one.unreadable else "", "", ""
        if one.results is not None:
            primary = one.results["primary"]
            result = f"{primary} {shown(primary, one.results)}"
            tasks, protocol = str(one.results["episodes"]), short_protocol(one.results)
        names = [str(one.names.get(name) or "") for name in NAMED_IN_RESULTS]
        seed = str(one.seed) if result and one.results else ""
        rows.append([str(one.folder), *names, one.state_in_words, result, tasks, seed, protocol])
    return rows


def short_protocol(results: dict[str, Any]) -> str:
    """test 5-way 1-shot."""
    protocol = results["protocol"]
    sizes = [f"{protocol[size]}-{size}" for size in ("way", "shot") if protocol.get(size) is not None]
    return " ".join([results["split"], *sizes])


def as_entry(one: ListedRun, filters: Sequence[listing.Filter]) -> dict[str, Any]:
    """What a program may want to know of a run; null where there is no result yet."""
    results = one.results or {}
    value = results["metrics"][results["primary"]] if results else {}
    return {
        "run": str(one.folder),
        **{name: one.names.get(name) for name in NAMED_IN_RESULTS},
        "seed": one.seed,
        "state": one.value("state")[1],
        **{name: results.get(name) for name in listing.OF_A_RESULT},
        "mean": value.get("mean"),
        "ci95": value.get("ci95"),
        "protocol": results.get("protocol"),
        "keys": {wanted.key: one.value(wanted.key)[1] for wanted in filters},
    }
