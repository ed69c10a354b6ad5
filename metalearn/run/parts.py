"""Everything that a configuration names, built; every rank of a run builds its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from metalearn import build
from metalearn.core import Algorithm, Source
from metalearn.engine.execution import TaskPlan
from metalearn.engine.settings import Settings


@dataclass(frozen=True)
class Parts:
    """plan: vmap as long as a measurement is to choose it."""

    source: Source
    algorithm: Algorithm
    plan: TaskPlan
    device: torch.device

    @staticmethod
    def build(cfg: dict[str, Any], rank: int = 0) -> Parts:
        build.prepare_host(cfg)
        device = build.build_device(cfg, rank)
        source = build.build_source(cfg, device)
        wish = build.plan_wish(cfg)
        plan = wish.plan() if wish.settled else TaskPlan("vmap")
        return Parts(source, build.build_algorithm(cfg, source, device), plan, device)


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
