"""Going on from a checkpoint: after a stop, or because training has diverged since."""

from __future__ import annotations

from metalearn.engine.checkpoint import Checkpoint
from metalearn.engine.nonfinite import MOST_ROLLBACKS, NonFiniteError
from metalearn.engine.trainer import Trainer
from metalearn.errors import CheckpointError


def go_on(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Continue from a checkpoint, which becomes the newest one."""
    trainer.store.set_aside(after=checkpoint.step)
    trainer.store.point("last", checkpoint.step)  # it lags behind if the process died between the rename and the pointer
    trainer.resume(checkpoint)
    verify_best(trainer)


def verify_best(trainer: Trainer) -> None:
    """The pointer follows the record; a best checkpoint that was lost leaves the record, with a warning."""
    while (best := trainer.record.best()) is not None:
        try:
            trainer.store.load(best)
        except CheckpointError as error:
            trainer.warn(f"{error}; the best of the other validations takes its place")
            trainer.record.forget(best)
            continue
        trainer.store.point("best", best)
        return


def train(trainer: Trainer, on_nan: str) -> None:
    """Train to the end, back from the newest checkpoint when the loss is not finite, if that is what `trainer.on_nan` wants."""
    while True:
        try:
            return trainer.train()
        except NonFiniteError as error:
            if on_nan != "rollback":
                raise
            roll_back(trainer, error)


def roll_back(trainer: Trainer, error: NonFiniteError) -> None:
    """Go back to the newest checkpoint, and on with the meta-batches after the bad one. See metalearn.engine.nonfinite.

    Killed before the next save, the run comes to the same bad step again and takes the same way. The count and the
    shift are those of this process, since the checkpoint may be older than an earlier rollback.
    """
    rollbacks, number = trainer.rollbacks + 1, error.step + trainer.shift
    if rollbacks > MOST_ROLLBACKS:
        raise NonFiniteError(error.what, error.step, after=f"Rolled back {MOST_ROLLBACKS} times already. ") from error
    checkpoint = trainer.store.newest()
    first = checkpoint.step + trainer.shift  # of the meta-batches that are passed over
    go_on(trainer, checkpoint)
    trainer.rollbacks, trainer.shift = rollbacks, number + 1 - checkpoint.step
    trainer.warn(
        f"{error.what}; rolled back to step {checkpoint.step} ({rollbacks} of at most {MOST_ROLLBACKS} times), "
        f"meta-batches {first} to {number} (counted from 0) are passed over (trainer.on_nan=rollback)"
    )
