"""reproduce: train a recipe again, and hold its figures against its record and what was published."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Iterator
from typing import Any

from metalearn.cli.arguments import add_config_dir
from metalearn.cli.terminal import say_error
from metalearn.config import records
from metalearn.config.loader import Library
from metalearn.errors import ConfigError, DataError, MetalearnError
from metalearn.report.verdict import FAIL, Measured
from metalearn.rundir.messages import echo, listening
from metalearn.sweep.recipes import TIERS, Recipe, recipe
from metalearn.sweep.reproduce import FigureVerdicts, Reproduction, StoppedError
from metalearn.sweep.smoke import Smoke


def run(args: argparse.Namespace) -> int:
    """Train a recipe again, and say whether it gives what it gave before, and what was published.

    metalearn reproduce omniglot_maml           its runs are kept in outputs/reproduce, and go on
                                                where they were stopped
    metalearn reproduce sinusoid_maml --seeds 3 --record
                                                … and its figures become the recipe's record
    metalearn reproduce --all --tier smoke      the first steps of every recipe, in seconds

    Ours: PASS, FAIL or INCONCLUSIVE, against the recorded figure. Published: REACHED, BELOW or NOT
    COMPARABLE. Exit 1 if any figure fails, and nothing was recorded.
    """
    recipes = chosen(args)
    if args.record:
        for one in recipes:
            records.require_writable(one.path)
    report = Report(args, recipes)
    elsewhere = contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext()
    try:
        with elsewhere, listening(echo):
            for one in recipes:
                report.take(one)
    finally:
        report.print_json()
    return report.end()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words",
        nargs="*",
        metavar="NAME",
        help="recipes, see metalearn ls experiment; and overrides that say where and how it is computed, "
        "such as device.threads=1",
    )
    parser.add_argument("--all", action="store_true", help="every recipe whose data are on this machine")
    parser.add_argument(
        "--tier",
        default="cpu",
        choices=TIERS,
        help="smoke: the first steps; cpu: the recipe as it stands (default); paper: as it was published",
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="default: as many as are recorded, or one")
    parser.add_argument(
        "--record", action="store_true", help="write what was measured into the YAML of the recipe"
    )
    parser.add_argument(
        "--reuse",
        action="store_true",
        help="judge finished runs, whatever commit they are of; without it another commit is trained anew",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_config_dir(parser)


def chosen(args: argparse.Namespace) -> list[Recipe]:
    """The recipes that are asked for, checked together with the other words."""
    names = [word for word in args.words if "=" not in word]
    overrides = [word for word in args.words if "=" in word]
    options = Library(args.config_dir).options("experiment")
    if args.all and names:
        raise ConfigError(f"{' '.join(names)} and --all: name recipes, or take all of them")
    if not args.all and not names:
        raise ConfigError(f"name a recipe, or take --all of them; recipes: {', '.join(options)}")
    if args.seeds is not None and args.seeds < 1:
        raise ConfigError(f"--seeds {args.seeds} must be at least 1")
    if args.seeds is not None and args.tier == "smoke":
        raise ConfigError(
            "--seeds is not for --tier smoke, which compares the first steps of the recipe's own seed"
        )
    if args.reuse and args.tier == "smoke":
        raise ConfigError("--reuse is not for --tier smoke, which keeps no run")
    found = [
        recipe(name, overrides, args.config_dir) for name in dict.fromkeys(options if args.all else names)
    ]
    if not args.all and args.tier != "smoke":
        for one in found:
            one.for_tier(args.tier)
    return found


class Report:
    """What became of each recipe, said as it comes."""

    def __init__(self, args: argparse.Namespace, recipes: list[Recipe]) -> None:
        from metalearn.sweep.provenance import DIRTY, code_now

        self.args, self.recipes = args, recipes
        self.now = code_now()  # once, before a record changes a file
        if args.record and self.now.endswith(DIRTY):
            say_error(
                f"warning: files of this checkout differ from its commit; the record will say {self.now}, "
                "which nobody can have again: commit first, then record"
            )
        self.done: list[Reproduction | Smoke] = []
        self.skipped: dict[str, str] = {}
        self.failed: dict[str, MetalearnError] = {}

    def take(self, one: Recipe) -> None:
        """Run a recipe. Of all of them, one without data or figures is passed over, and one that fails stops
        no other.
        """
        if not self.args.all:
            reason = one.why_passed_over("smoke") if self.args.tier == "smoke" else None
            if reason is not None:  # nothing is fetched for a few steps
                raise DataError(f"{one.name}: {reason}")
            self.finish(one)
            return
        try:
            reason = one.why_passed_over(self.args.tier)
            if reason is None:
                self.finish(one)
            else:
                self.skipped[one.name] = reason
                echo(f"{one.name}: skipped, {reason}")
        except StoppedError:
            raise
        except MetalearnError as error:
            self.failed[one.name] = error
            for problem in str(error).splitlines():
                say_error(f"error: {one.name}: {problem}")

    def finish(self, one: Recipe) -> None:
        found = self.made(one)
        self.done.append(found)
        for line in found.lines() if isinstance(found, Smoke) else lines(found):
            echo(line)
        if self.args.record:
            if isinstance(found, Reproduction):
                refuse_not_finite(found)
            self.keep(one, found)

    def made(self, one: Recipe) -> Reproduction | Smoke:
        if self.args.tier == "smoke":
            from metalearn.sweep.smoke import smoke

            return smoke(one.name, one.about, one.words, one.config_dir)
        from metalearn.sweep.reproduce import reproduce

        return reproduce(one, self.args.tier, self.args.seeds, now=self.now, reuse=self.args.reuse)

    def keep(self, one: Recipe, found: Reproduction | Smoke) -> None:
        """Write the record; an equal one of the smoke tier, on an equal machine, stays as it is."""
        from metalearn.sweep.smoke import record_of

        if isinstance(found, Smoke):
            if found.exact and found.verdict != FAIL:
                echo(f"{one.name}: no number changed")
                return
            record = record_of(found, self.now)
        else:
            record = found.record
        records.write(one.path, self.args.tier, record)
        echo(f"{one.name}: recorded in {one.path}; scripts/readme renews the tables")

    def print_json(self) -> None:
        """The document that --json asks for, of what was done if this is cut short."""
        if self.args.json and (self.done or self.skipped or self.failed):
            print(json.dumps(in_json(self.as_json()), indent=1))

    def end(self) -> int:
        """The exit code. DataError if nothing was run."""
        if self.failed:
            return next(iter(self.failed.values())).exit_code
        if not self.done:
            raise DataError(
                f"none of {len(self.skipped)} recipes was run: "
                + "; ".join(f"{name}: {reason}" for name, reason in self.skipped.items())
            )
        fails = any(found.verdict == FAIL for found in self.done)
        return int(fails and not self.args.record)

    def as_json(self) -> dict[str, Any]:
        ended = {*self.skipped, *self.failed, *(found.recipe for found in self.done)}
        return {
            "tier": self.args.tier,
            "recipes": [found.as_json() for found in self.done],
            "skipped": self.skipped,
            "failed": {name: str(error) for name, error in self.failed.items()},
            "not_done": [one.name for one in self.recipes if one.name not in ended],
        }


def in_json(value: Any) -> Any:
    """null for a number that JSON cannot write."""
    if isinstance(value, dict):
        return {key: in_json(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [in_json(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def refuse_not_finite(found: Reproduction) -> None:
    bad = [one.name for one in found.figures if not math.isfinite(one.measured.mean)]
    if bad:
        raise MetalearnError(
            f"{found.recipe}: {', '.join(bad)} is not finite, and nothing was recorded; lower the rates, or "
            "look at what the run's train.log says"
        )


def lines(found: Reproduction) -> Iterator[str]:
    """Both verdicts on every figure, with the numbers behind them."""
    yield f"\n{found.recipe}, tier {found.tier}: {', '.join(map(str, found.folders))}"
    for one in found.figures:
        seeds = f"{len(one.measured.seeds)} seed{'s' * (len(one.measured.seeds) > 1)}"
        yield f"  {one.name}: {shown(one.measured, one.unit)}, {one.episodes} tasks, {seeds}"
        code = f"run of commit {found.record['commit']}, today's is {found.commit_now}"
        yield f"    ours {one.ours.verdict}: {ours_line(one)}; {code}"
        figure = "" if one.figure is None else f": {one.figure} {one.unit}"
        reason = f"; {one.published.reason}" if one.published.reason else ""
        yield f"    published {one.published.verdict}{figure}{reason}"


def ours_line(one: FigureVerdicts) -> str:
    own = one.ours
    if one.record is None or own.difference is None:
        return own.reason
    parts = [f"recorded {shown(one.record, one.unit)}", f"difference {own.difference:+.3g}"]
    if own.allowed is not None and own.detectable is not None:
        parts += [
            f"allowed {own.allowed:.3g}",
            f"a true difference of {own.detectable:.3g} is seen four times in five",
        ]
    return ", ".join([*parts, own.reason])


def shown(value: Measured, unit: str) -> str:
    numbers = records.rounded(value.mean, value.ci95, value.std)
    spread = f", {numbers['std']} between seeds" if value.std is not None else ""
    return f"{numbers['mean']} ± {numbers['ci95']} {unit}{spread}"
