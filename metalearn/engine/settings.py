"""The dials of a training run, and the tasks that they make of an outer step's number."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Settings:
    """The dials of a training run, as in `trainer.*` and `eval.*`.

    patience: validations without a new best after which training ends; None: never. eval_batch_size: None: as
    few as are fast.
    monitor: the metric of validations that says which is best; None: the objective's primary one.
    """

    seed: int
    outer_steps: int
    meta_batch_size: int
    batch_size: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    patience: int | None
    val_episodes: int
    eval_seed: int
    eval_batch_size: int | None
    monitor: str | None = None

    def part(self, ranks: int) -> Settings:
        """What the busiest of so many ranks has to do: its tasks of a meta-batch and of a validation."""
        return replace(
            self,
            meta_batch_size=-(-self.meta_batch_size // ranks),
            val_episodes=-(-self.val_episodes // ranks),
        )


def share_of(rank: int, ranks: int, count: int) -> range:
    """The places among 0 … count-1 that are this rank's: neighbours, as many as any other rank has or one
    fewer.
    """
    return range(rank * count // ranks, (rank + 1) * count // ranks)
