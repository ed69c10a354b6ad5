"""What becomes of a loss or gradient that is not finite. It never reaches the weights; `trainer.on_nan`
decides what else.

stop: the run ends. skip: the update of that outer step is left out, up to MOST_IN_A_ROW times in a row.
rollback: weights, optimizer and step become those of the newest scheduled checkpoint, up to MOST_ROLLBACKS
times, and training goes on from there with the meta-batches after the bad one. Those since the checkpoint led
to it and are not drawn again: to leave out the bad one alone would give the bits of `skip`, the steps before
it being the same (Chowdhery et al. 2022, section 5.1, pass over the batches around a loss spike for that
reason).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch

from metalearn.core import Algorithm, Batch, Source
from metalearn.engine.executor import TaskPlan, execute
from metalearn.engine.loader import draw_batch
from metalearn.engine.settings import Settings
from metalearn.engine.update import HEALTHY, Updater
from metalearn.errors import MetalearnError

log = logging.getLogger(__name__)

MOST_IN_A_ROW = 10
MOST_ROLLBACKS = 3
MOST_WARNINGS = 20  # about updates that were left out; metrics.jsonl counts all of them
# refused updates in a row that end training, for now or for good
LIMITS = {
    "stop": 1,
    "skip": MOST_IN_A_ROW,
    "rollback": 1,
}
ADVICE = "Lower algo.inner_lr or optimizer.lr, or set optimizer.clip.norm, and start again"
WAY_ON = "; or go on without such updates: metalearn resume RUN_DIR trainer.on_nan=skip"


class NonFiniteError(MetalearnError):
    """Losses or gradients were not finite, and training cannot go on; the weights are those from before.

    what: the message without advice. step: the first bad one. after: what was tried before giving up.
    """

    def __init__(self, what: str, step: int, *, after: str = "") -> None:
        super().__init__(f"{what}. {after}{ADVICE}" if after else f"{what}. {ADVICE}{WAY_ON}")
        self.what, self.step = what, step


class Guard:
    """The host's look at what an updater refused. last_good: finds the newest checkpoint."""

    def __init__(
        self,
        algorithm: Algorithm,
        updater: Updater,
        source: Source,
        settings: Settings,
        last_good: Callable[[], Path],
    ) -> None:
        self.algorithm, self.updater, self.source, self.settings = algorithm, updater, source, settings
        self.last_good = last_good

    def require(self, step: int, shift: int) -> None:
        """Name the first step since the last look whose update was refused; NonFiniteError if training cannot
        go on.

        step: outer steps that are done. shift: see the trainer. Syncs with the device.
        """
        updater = self.updater
        first = int(updater.bad_step.item())
        if first == HEALTHY:
            return
        row, refused = int(updater.row.item()), int(updater.refused.item())
        if row >= updater.limit:
            after = (
                f"The {updater.limit} updates up to this one were all like that. "
                if updater.limit > 1
                else ""
            )
            raise NonFiniteError(self.describe(first, first + shift, met=True), first, after=after)
        updater.forget_refusals()
        if refused <= MOST_WARNINGS:
            last = "; further ones are only counted, in metrics.jsonl" if refused == MOST_WARNINGS else ""
            what = self.describe(first, first + shift, met=row == step - first)
            log.warning(f"{what}; left out {refused} of {step} updates so far (trainer.on_nan=skip){last}")

    def describe(self, step: int, number: int, *, met: bool) -> str:
        """What happened and where.

        number: of the meta-batch, which a rollback makes larger than the step's. met: whether the algorithm
        still holds the weights that it met, so that each task can be tried again.
        """
        batch = draw_batch(self.algorithm, self.source, self.settings, number)
        dials = [f"algo.inner_lr={self.algorithm.inner_lr}"] if hasattr(self.algorithm, "inner_lr") else []
        where = ", ".join(
            [f"step {step} (counted from 0)", culprits(self.algorithm, batch, number, met=met), *dials]
        )
        return (
            f"the loss or its gradient is not finite at {where}. The weights were not changed by it; "
            f"last good checkpoint: {self.last_good()}"
        )


def culprits(algorithm: Algorithm, batch: Batch, number: int, *, met: bool) -> str:
    """The bad tasks by number, counted from the start of the run, found by running each alone."""
    numbers = range(number * batch.count, (number + 1) * batch.count)
    every = f"train {batch.describe(numbers)}"
    if batch.count == 1:
        return every
    if not met:
        return f"one of {every}"
    bad = [i for i, one in zip(numbers, batch.chunks(1), strict=True) if not is_finite(algorithm, one)]
    return f"train {batch.describe(bad)}" if bad else f"{every} (each alone is finite, their sum is not)"


def is_finite(algorithm: Algorithm, task: Batch) -> bool:
    losses, _ = execute(algorithm, task, TaskPlan("loop"))
    values = [losses, *(p.grad for p in algorithm.parameters() if p.grad is not None)]
    return all(bool(torch.isfinite(value).all()) for value in values)
