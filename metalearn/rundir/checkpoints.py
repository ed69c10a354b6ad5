"""The checkpoints of a run: each is all there or not at all.

A save writes `step-N.tmp/`, syncs every file and the folder, renames it to `step-N/`, syncs the parent, moves
the pointer `last`, and only then prunes. A reader trusts the sha256 sums, not the name: torch and safetensors
both load a flipped bit without a word. What stands in one: `metalearn.rundir.checkpoint_files`.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from metalearn.errors import CheckpointError, MetalearnError
from metalearn.fault_injection import fault
from metalearn.files import replace_file, sync_folder, write_synced
from metalearn.rundir import checkpoint_files
from metalearn.rundir.checkpoint_files import DAMAGES, METADATA, TRAINING_FILE, WEIGHTS_FILE
from metalearn.rundir.metadata import is_scheduled
from metalearn.rundir.state import WEIGHTS

log = logging.getLogger(__name__)


class SaveError(MetalearnError):
    """The disk refused something that a run has to leave behind. what: the message without advice."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what}. Free space or fix the folder, then continue with: metalearn resume RUN_DIR"
        )
        self.what = what


@dataclass(frozen=True)
class Checkpoint:
    """tensors: everything that is numbers, the weights as `weights.NAME`. metadata: JSON values."""

    step: int
    tensors: dict[str, Tensor]
    metadata: dict[str, Any]


class CheckpointStore:
    """The folder `checkpoints/` of a run, written by one process at a time (the run's lock sees to that).

    keep_last, keep_best: how many of the newest and of the best-ranked checkpoints survive pruning. So does
    what was best when one
    of these was saved: where the newest is damaged, a run that goes on from an older one would otherwise end
    in another record.
    """

    def __init__(self, run_dir: Path, *, keep_last: int = 2, keep_best: int = 1) -> None:
        self.folder = run_dir / "checkpoints"
        self.keep_last = keep_last
        self.keep_best = keep_best

    def path(self, step: int) -> Path:
        return self.folder / checkpoint_files.name_of(step)

    def steps(self) -> list[int]:
        """Steps with a checkpoint, valid or not, in order."""
        return checkpoint_files.steps(self.folder)

    def save(
        self, step: int, tensors: dict[str, Tensor], metadata: dict[str, Any], *, ranked: Iterable[int] = ()
    ) -> None:
        """Write one checkpoint, point `last` at it and prune.

        ranked: steps by validation result, best first; the first keep_best of them are kept, the first
        becomes `best`. Raises SaveError when the disk refuses; earlier checkpoints are then untouched.
        """
        ranked = list(ranked)
        try:
            self._write(step, tensors, {**metadata, "best": ranked[0] if ranked else None})
            self.point("last", step)
            fault("save:after_last")
            if ranked:
                self.point("best", ranked[0])
            fault("save:before_prune")
            self._prune(ranked)
        except OSError as error:
            kept = ", ".join(self.path(s).name for s in self.steps()) or "none"
            raise SaveError(
                f"cannot save {self.path(step)}: {error.strerror or error}. Checkpoints kept: {kept}"
            ) from error

    def load(self, step: int, *, weights_only: bool = False) -> Checkpoint:
        """The checkpoint of one step; CheckpointError with its name and the reason if it is not exactly as
        saved.

        weights_only: leave out what only a resumed run needs. Its file is then not read and may be gone.
        """
        path = self.path(step)
        with checkpoint_files.damage_named(path):
            names = [WEIGHTS_FILE] if weights_only else [WEIGHTS_FILE, TRAINING_FILE]
            found = checkpoint_files.read(path, step, names)
            tensors: dict[str, Tensor] = {}
            for name, content in found.contents.items():
                prefix = WEIGHTS if name == WEIGHTS_FILE else ""
                tensors |= {f"{prefix}{key}": value for key, value in load_tensors(content).items()}
        return Checkpoint(step, tensors, found.metadata)

    def is_valid(self, step: int, *, weights_only: bool = False) -> bool:
        """Whether there is a whole checkpoint of this step; weights_only: as `load` has it."""
        try:
            self.load(step, weights_only=weights_only)
        except CheckpointError:
            return False
        return True

    def newest(self, *, scheduled: bool = False) -> Checkpoint:
        """The newest valid checkpoint; each newer corrupt one is named in a warning. CheckpointError if none
        is valid.

        scheduled: pass over those that only a run that was stopped has.
        """
        problems = []
        for step in reversed(self.steps()):
            try:
                checkpoint = self.load(step)
            except CheckpointError as error:
                problems.append(str(error))
                continue
            if scheduled and not is_scheduled(checkpoint.metadata):
                problems.append(f"{self.path(step)} was saved out of turn, as the run was stopped there")
                continue
            for problem in problems:
                log.warning(f"{problem}; falling back to {self.path(step).name}")
            return checkpoint
        tried = "\n".join(f"  {problem}" for problem in problems) or f"  {self.folder} holds none"
        what = "valid scheduled checkpoint" if scheduled else "valid checkpoint"
        raise CheckpointError(
            f"no {what}:\n{tried}\nRestore one from a backup, or start a new run with metalearn train"
        )

    def point(self, name: str, step: int) -> None:
        """Move the pointer `last` or `best` in one atomic replace. SaveError if the disk refuses."""
        try:
            replace_file(self.folder / name, f"{self.path(step).name}\n".encode())
        except OSError as error:
            raise SaveError(f"cannot write {self.folder / name}: {error.strerror or error}") from error

    def pointed(self, name: str) -> int | None:
        """The step that `last` or `best` names; None if there is no such pointer."""
        return checkpoint_files.pointed(self.folder, name)

    def set_aside(self, *, after: int) -> None:
        """Checkpoints newer than the one in use must not be counted as kept: those that are not valid become
        `.corrupt`.

        A whole one that a rollback has passed over is removed, under another name first, so that a kill
        leaves no half of it.
        """
        for step in [step for step in self.steps() if step > after]:
            path, passed_over = (
                self.path(step),
                not is_scheduled(self._metadata(step)) and self.is_valid(step),
            )
            aside = path.with_suffix(".tmp" if passed_over else ".corrupt")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            if passed_over:
                fault("rollback:before_removal")
                shutil.rmtree(aside)

    def recover(self) -> None:
        """Tidy up after a process that died in the middle of a save."""
        for old in self.folder.glob("step-*.old"):
            if not old.with_suffix("").exists():
                old.rename(old.with_suffix(""))
        for leftover in [*self.folder.glob("*.tmp"), *self.folder.glob("step-*.old")]:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()

    def _write(self, step: int, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        final = self.path(step)
        temporary, old = final.with_suffix(".tmp"), final.with_suffix(".old")
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            self._fill(temporary, tensors, metadata)
            fault("save:before_rename")
            if final.exists():
                final.rename(old)
            temporary.rename(final)
        except BaseException:
            # Half a checkpoint would take the space that the next one needs.
            shutil.rmtree(temporary, ignore_errors=True)
            if old.exists() and not final.exists():
                old.rename(final)
            raise
        sync_folder(self.folder)
        fault("save:after_rename")
        shutil.rmtree(old, ignore_errors=True)

    def _fill(self, folder: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        folder.mkdir()
        # Copies, since tied or strided tensors cannot be written as they are.
        owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        rest = {name: value for name, value in owned.items() if not name.startswith(WEIGHTS)}
        weights = {name.removeprefix(WEIGHTS): owned[name] for name in owned if name not in rest}
        files = {WEIGHTS_FILE: dump_tensors(weights), TRAINING_FILE: dump_tensors(rest)}
        for number, (name, content) in enumerate(files.items(), 1):
            write_synced(folder / name, content)
            fault(f"save:after_file_{number}")
        write_synced(folder / METADATA, checkpoint_files.encoded(files, metadata))
        sync_folder(folder)

    def _prune(self, ranked: list[int]) -> None:
        steps = self.steps()
        kept = {
            *steps[max(len(steps) - self.keep_last, 0) :],
            *ranked[: self.keep_best],
            self.pointed("last"),
            self.pointed("best"),
        }
        # A rollback goes there, and a run that must fall back to an older checkpoint needs the one that was
        # best then.
        kept.add(
            next(
                (
                    step
                    for step in reversed(steps)
                    if (metadata := self._metadata(step)) and is_scheduled(metadata)
                ),
                None,
            )
        )
        kept |= {self._metadata(step).get("best") for step in steps if step in kept}
        for step in steps:
            if step not in kept:
                shutil.rmtree(self.path(step))

    def _metadata(self, step: int) -> dict[str, Any]:
        try:
            return checkpoint_files.read_metadata(self.path(step), step)
        except (OSError, *DAMAGES):
            return {}  # a corrupt checkpoint protects nothing
