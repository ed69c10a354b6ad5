"""Going on from a checkpoint: after a stop, or because training has diverged since."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from metalearn.build.parts import Parts
from metalearn.build.places import places_of
from metalearn.config.compatibility import refuse_new_science, refuse_other_data, science
from metalearn.engine.membership import Splits, refuse_other_division
from metalearn.engine.nonfinite import MOST_ROLLBACKS, WAY_ON, NonFiniteError
from metalearn.engine.trainer import Trainer
from metalearn.errors import CheckpointError, ConfigError
from metalearn.fault_injection import fault
from metalearn.rundir.checkpoints import Checkpoint, CheckpointStore
from metalearn.rundir.log import RunLog
from metalearn.rundir.reader import read_metrics
from metalearn.rundir.state import load_weights

log = logging.getLogger(__name__)


def require_same(cfg: dict[str, Any], parts: Parts, checkpoint: Checkpoint, runlog: RunLog) -> None:
    """Raise if a run cannot go on from this checkpoint. Its folder is only read."""
    refuse_new_science(checkpoint.metadata["config"], science(cfg), places_of(cfg))
    refuse_other_data(checkpoint.metadata["data_sha256"], parts.source.fingerprint())
    refuse_other_division(checkpoint.metadata.get("splits_sha256"), Splits.of(parts.source))
    steps = cfg["trainer"]["outer_steps"]
    if steps < checkpoint.step:
        raise ConfigError(
            f"trainer.outer_steps={steps} but the run is at step {checkpoint.step}; give at least that many"
        )
    runlog.require_metrics(checkpoint.metadata["metrics_offset"])
    # now, since plots and tables will need them at the end
    read_metrics(runlog.run_dir, checkpoint.metadata["metrics_offset"])
    load_weights(parts.algorithm, checkpoint.tensors)


def require_same_start(parts: Parts, log: RunLog) -> None:
    """The same for a run that was stopped before its first checkpoint, as far as env.json says what it began
    with.
    """
    began_with = (log.read_json("env.json") or {}).get("data_sha256")
    if isinstance(began_with, str):
        refuse_other_data(began_with, parts.source.fingerprint())


def go_on(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Continue from a checkpoint, which becomes the newest one."""
    trainer.store.set_aside(after=checkpoint.step)
    fault("resume:after_removal")
    # it lags behind if the process died between the rename and the pointer
    trainer.store.point("last", checkpoint.step)
    trainer.resume(checkpoint)
    verify_best(trainer)


def verify_best(trainer: Trainer) -> None:
    """The pointer follows the record; a best checkpoint that was lost leaves the record, with a warning."""
    while (best := trainer.history.best()) is not None:
        try:
            trainer.store.load(best)
        except CheckpointError as error:
            log.warning(f"{error}; the best of the other validations takes its place")
            trainer.history.forget(best)
            continue
        trainer.store.point("best", best)
        return


@contextmanager
def instead_of_failing(trainer: Trainer) -> Iterator[None]:
    """Go back to the newest checkpoint when the loss is not finite, if `trainer.on_nan` wants that."""
    try:
        yield
    except NonFiniteError as error:
        if trainer.settings.on_nan != "rollback":
            raise
        roll_back(trainer, error)


def count_refused(trainer: Trainer) -> None:
    """Say how many updates were left out."""
    refused = 0 if trainer.updater is None else int(trainer.updater.refused.item())
    if refused:
        log.warning(
            f"{refused} of {trainer.step} updates were left out, as their loss or gradient was not finite"
        )


def roll_back(trainer: Trainer, error: NonFiniteError) -> None:
    """Go back to the newest scheduled checkpoint, and on with the meta-batches after the bad one. See
    metalearn.engine.nonfinite.

    What a signal made it save is passed over, so that a run that was stopped goes the way of one that was
    not. Killed before the next save, the run comes to the same bad step again and takes the same way. The
    count and the shift are those of this process, since the checkpoint may be older than an earlier rollback.
    """
    rollbacks, number = trainer.rollbacks + 1, error.step + trainer.shift
    if rollbacks > MOST_ROLLBACKS:
        raise NonFiniteError(
            error.what, error.step, after=f"Rolled back {MOST_ROLLBACKS} times already. "
        ) from error
    checkpoint = place_to_go(trainer.store, error)
    first = checkpoint.step + trainer.shift  # of the meta-batches that are passed over
    go_on(trainer, checkpoint)
    trainer.rollbacks, trainer.shift = rollbacks, number + 1 - checkpoint.step
    log.warning(
        f"{error.what}; rolled back to step {checkpoint.step} ({rollbacks} of at most {MOST_ROLLBACKS} "
        "times), "
        f"meta-batches {first} to {number} (counted from 0) are passed over (trainer.on_nan=rollback)"
    )


def place_to_go(store: CheckpointStore, error: NonFiniteError) -> Checkpoint:
    """Where a rollback goes. CheckpointError with all that was tried; a checkpoint that a signal made the run
    save is still a way on.
    """
    try:
        return store.newest(scheduled=True)
    except CheckpointError as nowhere:
        way_on = WAY_ON if any(map(store.is_valid, store.steps())) else ""
        raise CheckpointError(
            f"{error.what}. trainer.on_nan=rollback cannot go back, as there is {nowhere}{way_on}"
        ) from error
