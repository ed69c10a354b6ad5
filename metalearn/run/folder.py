"""Naming run folders, and what their configuration means for an evaluation."""

from __future__ import annotations

import copy
import hashlib
import secrets
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from metalearn import slurm


def new_run_dir(cfg: dict[str, Any], overrides: Sequence[str] = ()) -> Path:
    """run_dir, or outputs/<algo>_<data>/<date>_<time>_<4 hex digits>.

    overrides: the words that made the configuration. In a job of SLURM they and the job's number name the folder in place
    of the time, so that the same command finds it again when the job is requeued.
    """
    if cfg.get("run_dir"):
        return Path(cfg["run_dir"])
    names = "_".join(_name(cfg[group]["_target_"]) for group in ("algo", "data"))
    if slurm.job() is not None:
        digits = hashlib.sha256("\n".join(overrides).encode("utf-8", "backslashreplace")).hexdigest()[:8]
        return Path("outputs") / names / f"slurm-{slurm.job()}_{digits}"
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    return Path("outputs") / names / f"{stamp}_{secrets.token_hex(2)}"


def pin_training(cfg: dict[str, Any]) -> dict[str, Any]:
    """The configuration with the sizes of training tasks written out, so that another data.way is one of evaluation only."""
    cfg = copy.deepcopy(cfg)
    train = cfg["data"].get("train") or {}
    train.update({name: cfg["data"].get(name) for name, value in train.items() if value is None})
    return cfg


def _name(target: str) -> str:
    """omniglot from metalearn.data.omniglot.Omniglot."""
    return target.split(".")[-2] if "." in target else target
