"""Everything that a configuration names, built; every rank of a run builds its own."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import Any

import torch

from metalearn import build
from metalearn.core import Algorithm, Source
from metalearn.data.cache import cache_folder
from metalearn.engine.execution import TaskPlan
from metalearn.engine.settings import Settings


def keep_compiled() -> None:
    """Let PyTorch's compiler keep what it makes in this user's own cache folder, wherever a configuration has its data.

    What it finds there it unpickles. Its own choice is a folder in /tmp, which somebody else could make first.
    """
    folder = cache_folder(None) / "compiler"
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: of a user without a home. Then the choice stays PyTorch's
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


keep_compiled()  # before any optimizer is made, which loads the compiler, which makes the folder


@dataclass(frozen=True)
class Parts:
    """plan: vmap as long as a measurement is to choose it."""

    source: Source
    algorithm: Algorithm
    plan: TaskPlan
    device: torch.device

    @staticmethod
    def build(cfg: dict[str, Any], rank: int = 0, prebuilt: build.Prebuilt | None = None) -> Parts:
        """prebuilt: of a check in this process; what it lacks is built."""
        build.prepare_host(cfg)
        device = build.build_device(cfg, rank)
        made = build.Prebuilt() if prebuilt is None else prebuilt
        source = made.source(cfg, device)
        wish = build.plan_wish(cfg)
        plan = wish.plan() if wish.settled else TaskPlan("vmap")
        return Parts(source, made.algorithm(cfg, source, device), plan, device)


def settings_of(cfg: dict[str, Any]) -> Settings:
    trainer, evaluation = cfg["trainer"], cfg["eval"]
    same = ("outer_steps", "meta_batch_size", "batch_size", "log_every", "eval_every", "checkpoint_every", "patience")
    return Settings(
        seed=cfg["seed"],
        val_episodes=evaluation["val_episodes"],
        eval_seed=evaluation["seed"],
        eval_batch_size=evaluation["batch_size"],
        **{name: trainer[name] for name in same},
    )
