"""Checkpoints on this machine's disk, and the data that lies on it."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from metalearn.build.instantiate import BASES, resolve
from metalearn.config.loader import Library, packaged_options
from metalearn.doctor.checks import Check, FailedError, SkippedError
from metalearn.errors import CheckpointError
from metalearn.rundir.checkpoint_files import WEIGHTS_FILE
from metalearn.rundir.checkpoints import CheckpointStore
from metalearn.rundir.messages import listening


def bit_flip() -> str:
    """Two checkpoints are written and read; then one bit of the newer is flipped, which has to be noticed."""
    with tempfile.TemporaryDirectory(prefix="metalearn-") as folder:
        warnings: list[str] = []
        store = CheckpointStore(Path(folder))
        weights = torch.arange(1000.0)
        for step in (1, 2):
            store.save(step, {"weights.table": weights + step}, {"step": step})
        if not torch.equal(store.load(2).tensors["weights.table"], weights + 2):
            raise FailedError(
                f"a checkpoint in {folder} does not come back as it was saved; runs could not be resumed "
                "exactly"
            )
        path = store.path(2) / WEIGHTS_FILE
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        try:
            store.load(2)
        except CheckpointError:
            with listening(warnings.append):
                newest = store.newest()
            if newest.step == 1 and warnings:
                return (
                    f"written and read in {Path(folder).parent}; a flipped bit is refused, and the "
                    "checkpoint before it used"
                )
            raise FailedError(
                "a flipped bit is noticed, but the checkpoint before it is not used; report it"
            ) from None
    raise FailedError(
        "a checkpoint with a flipped bit is loaded as if it were whole; do not trust checkpoints of this "
        "installation"
    )


def audits() -> list[Check]:
    """One check for each dataset that can be chosen."""
    return [(f"data {name}", partial(audit, name)) for name in packaged_options("data")]


def audit(name: str) -> str:
    """Whether what lies on this machine is the data that was published. Nothing is fetched."""
    node = Library().read("data", name)
    cls: Any = resolve("data._target_", node["_target_"], BASES["data"], [])
    try:
        found: str | None = cls.audit()
    except FileNotFoundError as error:
        raise SkippedError(str(error)) from error
    if found is not None:
        return found
    if any(not location.made for location in cls.locations):
        raise SkippedError(
            "your own files, of which nothing is known; read all of them with: metalearn data prepare "
            f"{name} data.root=PATH"
        )
    return "made by metalearn itself, nothing to audit"
