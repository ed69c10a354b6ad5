"""The folder of one run: configuration, every checkpoint, pointers, measurements and result. It is only
read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from metalearn.build import specification
from metalearn.build.places import places_of
from metalearn.config.compatibility import refuse_new_science, science
from metalearn.config.compose import reopen
from metalearn.config.saved import read_saved, read_saved_with_notes
from metalearn.doctor.checks import Check, FailedError, SkippedError
from metalearn.engine.membership import FILE, Splits, digest
from metalearn.errors import CheckpointError, ConfigError
from metalearn.rundir import reader
from metalearn.rundir.checkpoint_files import DAMAGES
from metalearn.rundir.checkpoints import Checkpoint, CheckpointStore
from metalearn.rundir.environment import differences, environment
from metalearn.rundir.log import RunLog

POINTERS = ("last", "best")
CHOSEN = ("threads", "device", "ranks")  # facts about the machine that the configuration decides


class RunFolder:
    """run_dir: holds a config.yaml. overrides: words that a resume of it needs, such as trusted=[mine]."""

    def __init__(self, run_dir: Path, overrides: list[str]) -> None:
        self.run_dir, self.overrides = run_dir, overrides
        self.store = CheckpointStore(run_dir)
        # before anything was read: a run that goes on changes it meanwhile
        self.state = reader.state(run_dir)
        self.newest: Checkpoint | None = None  # valid one, once they were checked
        self.valid: set[int] = set()  # steps

    def checks(self) -> Iterator[Check]:
        """In an order in which later ones may use what earlier ones found."""
        yield "config.yaml", self.configuration
        yield "env.json", self.machine
        yield "spec.json", self.specification
        steps = self.store.steps()
        for step in reversed(steps):
            yield self.store.path(step).name, partial(self.checkpoint, step)
        if not steps:
            yield "checkpoints", self.no_checkpoint
        for name in POINTERS:
            yield f"checkpoints/{name}", partial(self.pointer, name)
        yield FILE, self.splits
        yield "method", self.method
        yield "metrics.jsonl", self.metrics
        yield "results.json", self.results

    def exit_code(self, failed: list[str]) -> int:
        if self.newest is None:
            return CheckpointError.exit_code
        return 1 if failed else 0

    def configuration(self) -> str:
        """It passes the same gate as when the run is resumed."""
        saved, notes = read_saved_with_notes(self.run_dir)
        reopen(saved, self.overrides)
        return "; ".join(["whole, and it names nothing that may not run", *notes])

    def machine(self) -> str:
        then = RunLog(self.run_dir).read_json("env.json")
        if then is None:
            raise SkippedError("absent or damaged; a run writes it anew when it is resumed")
        lines = differences(then, environment("", torch.device("cpu"), ranks=1))
        changed = [line for line in lines if line.partition(" was ")[0] not in CHOSEN]
        if changed:
            return f"bits may differ when it is resumed here: {'; '.join(changed)}"
        return "the run is of this machine and these versions"

    def specification(self) -> str:
        """metalearn.load can build the learner from it."""
        if specification.read(self.run_dir, self._configuration()["trusted"]) is None:
            raise SkippedError(
                "absent, as the run is older than it; metalearn.load reads the run's data instead"
            )
        return "whole; metalearn.load needs no data"

    def checkpoint(self, step: int) -> str:
        """Sizes and sha256 of all its files, and what its metadata says."""
        try:
            loaded = self.store.load(step)
        except CheckpointError as error:
            if step not in self.store.steps():
                raise SkippedError("pruned meanwhile by the run, which goes on") from error
            older = [s for s in self.store.steps() if s < step]
            falls = (
                f"resume falls back to {self.store.path(older[-1]).name} if that is valid"
                if older
                else "restore it from a backup"
            )
            raise FailedError(f"{error}; {falls}") from error
        self.newest = self.newest or loaded
        self.valid.add(step)
        return "every file has the sha256 that was written"

    def no_checkpoint(self) -> str:
        raise FailedError(f"there is none yet; metalearn resume {self.run_dir} begins at step 0")

    def pointer(self, name: str) -> str:
        """It names what a resumed run would have it name: `last` the newest valid checkpoint, `best` what
        that one recorded.
        """
        if self.newest is None:
            raise SkippedError("no valid checkpoint says what it should name")
        step, due = (
            self.store.pointed(name),
            self.newest.step if name == "last" else self.newest.metadata["best"],
        )
        if step == due and step in self.valid:
            return self.store.path(step).name
        if due is None and not (self.store.folder / name).exists():
            raise SkippedError("there is none yet, as nothing was validated")
        validated = [entry[0] for entry in self.newest.metadata["record"]]
        if (
            name == "best"
            and step in self.valid
            and step in validated
            and due is not None
            and due not in self.valid
        ):
            return f"{self.store.path(step).name}, in place of {self.store.path(due).name}, which is lost"
        if self.state == "running":
            raise SkippedError("the run goes on, and has moved it or is about to")
        newest = self.store.path(self.newest.step).name
        named = "no best checkpoint" if due is None else f"{self.store.path(due).name} as the best"
        wanted = (
            f"{newest} is the newest valid checkpoint" if name == "last" else f"{newest} recorded {named}"
        )
        raise FailedError(f"{self._named(name, step)}, but {wanted}; {self._remedy(name, due)}")

    def _named(self, name: str, step: int | None) -> str:
        if not (self.store.folder / name).exists():
            return "it is gone"
        if step is None:
            return "it names no checkpoint"
        fate = (
            ""
            if step in self.valid
            else ", which is not valid"
            if step in self.store.steps()
            else ", which is gone"
        )
        return f"it names {self.store.path(step).name}{fate}"

    def _remedy(self, name: str, due: int | None) -> str:
        """A finished run is not resumed any more: its pointers are set by hand."""
        path = self.store.folder / name
        if self.state != "finished":
            return f"metalearn resume {self.run_dir} sets it anew"
        if due is None:
            return f"delete {path}"
        wanted = self.store.path(due).name
        if due in self.valid:
            return f"set it with: echo {wanted} > {path}"
        return (
            f"restore {wanted} from a backup, or choose another with: metalearn eval {self.run_dir} "
            "eval.checkpoint=last"
        )

    def method(self) -> str:
        """The configuration is the one that the newest valid checkpoint was trained with."""
        if self.newest is None:
            raise SkippedError("no valid checkpoint says what the run was trained with")
        cfg = self._configuration()
        refuse_new_science(self.newest.metadata["config"], science(cfg), places_of(cfg))
        return f"config.yaml says what {self.store.path(self.newest.step).name} was trained with"

    def splits(self) -> str:
        """It says who was train, val and test when the newest valid checkpoint was trained."""
        expected = None if self.newest is None else self.newest.metadata.get("splits_sha256")
        if expected is None:
            raise SkippedError("no valid checkpoint says who should stand in it")
        advice = (
            "restore it from a backup; without it, the run's own data must tell who was trained on when "
            "other data is judged"
        )
        try:
            tree = reader.read_json(self.run_dir / FILE)
            if tree is None:
                raise FailedError(f"it is gone; {advice}")
            found = Splits.from_json(tree)
        except (OSError, *DAMAGES) as error:
            raise FailedError(f"it cannot be read ({error}); {advice}") from error
        if digest(tree) != expected:
            assert self.newest is not None
            raise FailedError(
                f"it is not what {self.store.path(self.newest.step).name} was trained with; {advice}"
            )
        return found.describe()

    def metrics(self) -> str:
        lines = reader.read_metrics(self.run_dir)
        if self.newest is not None:
            RunLog(self.run_dir).require_metrics(self.newest.metadata["metrics_offset"])
        return f"{len(lines)} measurements" + (
            "" if self.newest is None else ", as many bytes as the newest valid checkpoint knows or more"
        )

    def results(self) -> str:
        state = reader.state(self.run_dir)
        results = reader.read_results(self.run_dir / "results.json")
        if results is None and state == "finished":
            raise FailedError(
                f"absent, though the run is finished; judge it again with: metalearn eval {self.run_dir}"
            )
        if results is None:
            raise SkippedError(f"there is none yet, the run is {state}")
        return f"{results['split']} {results['primary']} {reader.shown(results['primary'], results)}"

    def _configuration(self) -> dict[str, Any]:
        with contextlib.suppress(ConfigError):
            return reopen(read_saved(self.run_dir), self.overrides)
        raise SkippedError("config.yaml cannot be read")
