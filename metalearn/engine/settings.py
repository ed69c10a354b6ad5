"""The dials of a training run, and which tasks of a meta-batch are whose where several ranks share it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Settings:
    """The dials of a training run: the block `trainer` of a configuration, and the seed.

    patience: validations without a new best after which training ends; None: never.
    """

    seed: int
    outer_steps: int
    meta_batch_size: int
    batch_size: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    keep_last: int
    keep_best: int
    patience: int | None
    on_nan: str
    shutdown_timeout_s: int
    dry_run: bool

    @staticmethod
    def of(cfg: dict[str, Any]) -> Settings:
        return Settings(seed=cfg["seed"], **cfg["trainer"])

    def part(self, ranks: int) -> Settings:
        """What the busiest of so many ranks has to do: its tasks of a meta-batch."""
        return replace(self, meta_batch_size=-(-self.meta_batch_size // ranks))


def share_of(rank: int, ranks: int, count: int) -> range:
    """The places among 0 … count-1 that are this rank's: neighbours, as many as any other rank has or one
    fewer.
    """
    return range(rank * count // ranks, (rank + 1) * count // ranks)
