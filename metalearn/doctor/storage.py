"""Checkpoints on this machine's disk, and the data that lies on it."""

from __future__ import annotations

import os
import tempfile
from functools import partial
from pathlib import Path

import torch

from metalearn.config.loader import Library, packaged_options
from metalearn.data.files.omniglot import locate, verify
from metalearn.doctor.checks import Check, FailedError, SkippedError
from metalearn.errors import CheckpointError
from metalearn.files import cache_folder
from metalearn.rundir.checkpoints import TENSORS, CheckpointStore
from metalearn.rundir.messages import listening


def bit_flip() -> str:
    """Two checkpoints are written and read; then one bit of the newer is flipped, which has to be noticed."""
    with tempfile.TemporaryDirectory(prefix="metalearn-") as folder:
        warnings: list[str] = []
        store = CheckpointStore(Path(folder))
        weights = torch.arange(1000.0)
        for step in (1, 2):
            store.save(step, {"weights": weights + step}, {"step": step})
        if not torch.equal(store.load(2).tensors["weights"], weights + 2):
            raise FailedError(
                f"a checkpoint in {folder} does not come back as it was saved; runs could not be resumed "
                "exactly"
            )
        path = store.path(2) / TENSORS
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
    if name == "omniglot":
        return omniglot()
    if "root" in Library().read("data", name):
        raise SkippedError(
            "your own files, of which nothing is known; read all of them with: metalearn data prepare "
            f"{name} data.root=PATH"
        )
    return "made by metalearn itself, nothing to audit"


def omniglot() -> str:
    found = verify(locate(None, cache_folder(None)))
    missing = [part for part, path in found.items() if path is None]
    where = os.environ.get("METALEARN_DATA") or cache_folder(None)
    fetch = f"(looked in {where}); fetch it with: metalearn data prepare omniglot"
    if len(missing) == len(found):
        raise SkippedError(f"not here {fetch}")
    if missing:
        raise FailedError(f"{', '.join(missing)} is not here, though the rest of Omniglot is {fetch}")
    return ", ".join(f"{path} has the published sha256" for path in found.values())
