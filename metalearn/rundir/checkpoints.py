"""Checkpoints: tensors (safetensors) and metadata (JSON) under a sha256 manifest, all of it or nothing.

A save writes `step-N.tmp/`, syncs every file and the folder, renames it to `step-N/`, syncs the parent, moves
the pointer `last`, and only then prunes. A reader trusts the manifest, not the name: torch and safetensors
both load a flipped bit without a word.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from metalearn.errors import CheckpointError, MetalearnError
from metalearn.fault_injection import fault
from metalearn.files import read_bytes, read_text, replace_file, sync_folder, write_synced
from metalearn.rundir.metadata import checked, is_scheduled

log = logging.getLogger(__name__)

TENSORS, METADATA = "tensors.safetensors", "facts.json"
NAME = re.compile(r"step-(\d{6,18})", re.ASCII)
# What makes a checkpoint unreadable: whoever wrote the files may also have written the manifest.
DAMAGES = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
    MemoryError,
    OverflowError,
    SafetensorError,
)


class SaveError(MetalearnError):
    """The disk refused something that a run has to leave behind. what: the message without advice."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what}. Free space or fix the folder, then continue with: metalearn resume RUN_DIR"
        )
        self.what = what


@dataclass(frozen=True)
class Checkpoint:
    """tensors: everything that is numbers. metadata: JSON values."""

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
        return self.folder / f"step-{step:06d}"

    def steps(self) -> list[int]:
        """Steps with a checkpoint, valid or not, in order."""
        found = (NAME.fullmatch(path.name) for path in self.folder.glob("step-*"))
        return sorted(step for match in found if match and self.path(step := int(match[1])).name == match[0])

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

    def load(self, step: int) -> Checkpoint:
        """The checkpoint of one step; CheckpointError with its name and the reason if it is not exactly as
        saved.
        """
        path = self.path(step)
        try:
            contents = verified(path, (TENSORS, METADATA))
            return Checkpoint(
                step,
                load_tensors(contents[TENSORS]),
                checked(json.loads(contents[METADATA]), step, path / METADATA),
            )
        except OSError as error:
            raise CheckpointError(
                f"{path} is not valid: {error.strerror or error} ({error.filename})"
            ) from error
        except DAMAGES as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise CheckpointError(f"{path} is not valid: {reason}") from error

    def is_valid(self, step: int) -> bool:
        """Whether there is a whole checkpoint of this step."""
        try:
            self.load(step)
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
        try:
            match = NAME.fullmatch(read_text(self.folder / name, 100).strip())
        except (OSError, ValueError):
            return None
        return int(match[1]) if match else None

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
        files = {TENSORS: dump_tensors(owned), METADATA: json.dumps(metadata, indent=1).encode()}
        for number, (name, content) in enumerate(files.items(), 1):
            write_synced(folder / name, content)
            fault(f"save:after_file_{number}")
        write_synced(folder / MANIFEST, manifest_of(files))
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
        path = self.path(step) / METADATA
        try:
            return checked(json.loads(read_bytes(path, None)), step, path)
        except (OSError, *DAMAGES):
            return {}  # a corrupt checkpoint protects nothing


FORMAT_VERSION = 1
MANIFEST = "manifest.json"


def manifest_of(files: Mapping[str, bytes]) -> bytes:
    """What to write beside these files, by name."""
    listed = {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
    }
    return json.dumps({"format_version": FORMAT_VERSION, "files": listed}, indent=1).encode()


def verified(path: Path, names: Collection[str]) -> dict[str, bytes]:
    """The files of a checkpoint, which have these names. ValueError, KeyError or TypeError for one that is
    not as the manifest says.
    """
    if not path.is_dir():
        raise ValueError("it is missing")
    manifest = json.loads(read_bytes(path / MANIFEST, None))
    if manifest["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"its format_version is {manifest['format_version']}, this metalearn reads {FORMAT_VERSION}"
        )
    if sorted(manifest["files"]) != sorted(names):
        raise ValueError(f"its manifest lists {sorted(manifest['files'])}")
    contents = {}
    for name, listed in manifest["files"].items():
        size = (path / name).stat().st_size
        if size != listed["size"]:
            raise ValueError(f"{name} has {size} bytes, {listed['size']} were written")
        content = read_bytes(path / name, None)
        if hashlib.sha256(content).hexdigest() != listed["sha256"]:
            raise ValueError(f"{name} does not have the sha256 that was written")
        contents[name] = content
    return contents
