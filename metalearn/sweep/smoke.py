"""The first steps of every recipe, whose losses its YAML records: the net under silent changes of numbers.

All recipes are cut short in one way, COMMON. `about.smoke` of a recipe names variants that are run, each with
further words, as those that make it small; without any it is run as it stands.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from metalearn.config.compose import compose
from metalearn.config.records import recorded
from metalearn.report.verdict import FAIL, NO_RECORD, PASS
from metalearn.rundir.reader import read_metrics

TIER = "smoke"
STEPS = 5
COMMON = (
    *("device=cpu", "device.precision=float64", "device.threads=1", "device.ranks=1", "device.compile=false"),
    *(f"trainer.outer_steps={STEPS}", "trainer.log_every=1", f"trainer.eval_every={STEPS}"),
    *("trainer.meta_batch_size=4", "trainer.batch_size=16"),
    *("eval.val_episodes=2", f"eval.episodes={STEPS}", "logger=none"),
)
AS_IT_STANDS = "as it stands"
# In float64 the kernels of one processor (AVX512, AVX2, none, with MKL's and oneDNN's) and releases of torch
# differ by some 1e-12 after these steps. A thousandth would let a rate through that is wrong in its fourth
# digit.
TOLERANCE = 1e-6


class Variant(NamedTuple):
    """problem: what is wrong with these losses, None if they are those that are recorded."""

    losses: list[float]
    problem: str | None


class Smoke(NamedTuple):
    """What became of the first steps of a recipe. exact: whether every bit had to be equal."""

    recipe: str
    verdict: str
    exact: bool
    variants: dict[str, Variant]

    def lines(self) -> list[str]:
        names = ", ".join(self.variants)
        how = "bit by bit" if self.exact else f"within {TOLERANCE:.0e}"
        if self.verdict == NO_RECORD:
            return [f"{self.recipe}: {NO_RECORD} for {names}; record them with: {command(self.recipe)}"]
        problems = [
            f"{self.recipe}: {self.verdict}, {name}, {found.problem}"
            for name, found in self.variants.items()
            if found.problem
        ]
        return problems or [f"{self.recipe}: {self.verdict}, compared {how}: {names}"]

    def as_json(self) -> dict[str, Any]:
        variants = {name: found._asdict() for name, found in self.variants.items()}
        return {**self._asdict(), "tier": TIER, "variants": variants}


def command(name: str) -> str:
    return f"metalearn reproduce {name} --tier {TIER} --record"


def way_to_record(name: str) -> str:
    return f"if numbers were meant to change, say so in CHANGELOG.md and record them with: {command(name)}"


def variants_of(name: str, about: Mapping[str, Any]) -> dict[str, list[str]]:
    """The words of every variant of a recipe, by the variant's name."""
    named = about.get(TIER) or {AS_IT_STANDS: []}
    return {variant: [f"experiment={name}", *COMMON, *words] for variant, words in named.items()}


def smoke(
    name: str, about: Mapping[str, Any], words: list[str] | None = None, config_dir: str | None = None
) -> Smoke:
    """Run the first steps of a recipe and hold their losses against the record. words: further overrides."""
    from metalearn.rundir.environment import SAME, machine

    record = recorded(about, TIER)
    exact = record is not None and {fact: record.get(fact) for fact in SAME} == machine()
    known = record["losses"] if record else {}
    found = {}
    for variant, own in variants_of(name, about).items():
        values = losses([*own, *(words or [])], config_dir)
        found[variant] = Variant(values, complaint(name, values, known.get(variant), exact=exact))
    gone = [variant for variant in known if variant not in found]
    found |= {
        variant: Variant([], f"it is recorded, and not run any more; {way_to_record(name)}")
        for variant in gone
    }
    verdict = NO_RECORD if record is None else FAIL if any(one.problem for one in found.values()) else PASS
    return Smoke(name, verdict, exact, found)


def record_of(found: Smoke, commit: str | None) -> dict[str, Any]:
    """What `about.measured.smoke` is to say from now on."""
    from metalearn.rundir.environment import machine

    values = {name: variant.losses for name, variant in found.variants.items() if variant.losses}
    return {**machine(), "date": date.today().isoformat(), "commit": commit, "losses": values}


def losses(words: list[str], config_dir: str | None = None) -> list[float]:
    """The loss of every outer step, or of every test task for a method that does not train."""
    from metalearn.run.train import train
    from metalearn.sweep.launching import silence

    cfg = compose(words, config_dir)
    with tempfile.TemporaryDirectory(prefix="metalearn-") as place, as_it_was():
        folder = Path(place) / "run"
        with silence():
            train(cfg, words, folder)
        trained = [line["loss"] for line in read_metrics(folder) if line["split"] == "train"]
        return trained or column(folder / "eval_test.csv", "loss")


def column(path: Path, name: str) -> list[float]:
    header, *rows = [line.split(",") for line in path.read_text(encoding="utf-8").splitlines()]
    return [float(row[header.index(name)]) for row in rows]


@contextlib.contextmanager
def as_it_was() -> Iterator[None]:
    """After it, type and threads of this process are those from before."""
    import torch

    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)


def gap(value: float, expected: float) -> float:
    """Relative difference."""
    return abs(value - expected) / max(abs(expected), 1e-300)


def complaint(name: str, found: list[float], expected: list[float] | None, *, exact: bool) -> str | None:
    """What is wrong with the losses of a variant, None if they are those that are recorded. exact: to the
    last bit.
    """
    if expected is None:
        return f"not recorded; {way_to_record(name)}"
    if len(found) != len(expected):
        return f"{len(found)} losses, {len(expected)} are recorded; {way_to_record(name)}"
    allowed = 0.0 if exact else TOLERANCE
    for step, (value, then) in enumerate(zip(found, expected, strict=True), 1):
        if not gap(value, then) <= allowed:
            reason = (
                "this machine is like the one that recorded it, so that every bit counts"
                if exact
                else f"at most {allowed:.0e}"
            )
            values = f"loss {value!r}, recorded {then!r}, relative difference {gap(value, then):.1e}"
            return f"step {step}: {values} ({reason}); {way_to_record(name)}"
    return None
