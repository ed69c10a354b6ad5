"""The outer loop. It knows no algorithm, data set or model by name, and it is dull on purpose.

Everything that a later step depends on is in `state`: weights, optimizer, random state, the running
means of what is logged, and the validation history. Tasks are counter-based, so their position is the step
itself, plus the meta-batches that a rollback has passed over.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metalearn.core import Algorithm, Source
from metalearn.engine.evaluate import EvalSpec
from metalearn.engine.formats import Monitor
from metalearn.engine.history import RunningMeans, ValidationHistory
from metalearn.engine.nonfinite import Guard
from metalearn.engine.settings import Settings
from metalearn.engine.strategy import SingleProcess
from metalearn.engine.update import Updater
from metalearn.errors import CheckpointError
from metalearn.fault_injection import fault
from metalearn.rundir.checkpoints import Checkpoint, CheckpointStore, SaveError
from metalearn.rundir.log import RunLog
from metalearn.rundir.state import WEIGHTS, pack, restore

log = logging.getLogger(__name__)

MOST_FAILED_SAVES = 3


class Trainer:
    """updater: None for a method that does not train. check: called between steps, raises to stop the run.

    spec: of the final evaluation, which says what validations are asked.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        updater: Updater | None,
        source: Source,
        strategy: SingleProcess,
        store: CheckpointStore,
        log: RunLog,
        settings: Settings,
        spec: EvalSpec,
        *,
        metadata: dict[str, Any],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.algorithm, self.updater, self.source, self.strategy = algorithm, updater, source, strategy
        self.store, self.log, self.settings, self.spec = store, log, settings, spec
        self.metadata = metadata  # written into every checkpoint as they stand
        self.check = check
        self.guard = (
            Guard(algorithm, updater, source, settings, self.last_good) if updater is not None else None
        )
        self.step = 0
        self.shift = 0  # meta-batches that were passed over
        self.rollbacks = 0
        self.saved_step = -1
        self.failed_saves = 0  # in a row
        self.evaluated_step = 0
        self.running_means = RunningMeans()
        self.monitor = Monitor.of(spec.monitor, source.spec("train").objective, algorithm)
        self.history = ValidationHistory(self.monitor.higher_is_better)
        self.seconds: dict[str, float] = {}

    @property
    def outer_steps(self) -> int:
        return self.settings.outer_steps if self.updater is not None else 0

    def train(self) -> None:
        """From the present step to the last; a checkpoint of the present step comes first if there is
        none.
        """
        settings = self.settings
        while True:
            if self.step > self.evaluated_step and is_time(self.step, settings.eval_every, self.outer_steps):
                self.validate()
            if self.saved_step < 0 or (self.step > self.saved_step and self._save_due()):
                self.save(must=self.saved_step < 0 or self._finished())
            self.check()
            if self._finished():
                return
            self.train_step()

    def train_step(self) -> None:
        """One outer step: draw, differentiate, update, log."""
        assert self.updater is not None
        settings = self.settings
        with self.timed("data"):
            batch = self.strategy.draw(self.step + self.shift)
        with self.timed("step"):
            losses, metrics = self.strategy.execute(batch)
            statistics = metrics.pop("statistics", None)
            fault("step:before_update")
            norm = self.updater.update(self.step, losses, statistics)
            bad = self.updater.bad if self.updater.limit > 1 else None
            self.running_means.add({"loss": losses.mean(), **metrics, "gradient_norm": norm}, bad)
        self.step += 1
        log_due = is_time(self.step, settings.log_every, self.outer_steps)
        if log_due or losses.device.type == "cpu":
            self.require_finite()
        if log_due:
            self._log_window()
        else:
            self.log.progress(self.step, self.outer_steps)
        fault("step:end")

    def validate(self) -> None:
        """Evaluate on the validation tasks and enter the result in the history."""
        with self.timed("eval"):
            result = self.strategy.evaluate(self.spec.validation(), self._between_batches)
        self.log.metric(
            self.step, "val", {**flat(result.summary), "episodes": result.episodes, **self.take_times()}
        )
        monitor = self.monitor.name
        mean, ci95 = result.summary[monitor]["mean"], result.summary[monitor]["ci95"]
        self.history.enter(self.step, mean)
        self.evaluated_step = self.step
        # a checkpoint of this step that lacks the result is out of date
        self.saved_step = min(self.saved_step, self.step - 1)
        log.info(
            f"step {self.step}/{self.outer_steps}  val {monitor} {mean:.4f} ± {ci95:.4f} ({result.episodes} "
            "tasks)"
        )

    def save(self, *, must: bool = False) -> None:
        """Write a checkpoint of the present step. A disk that refuses is endured a few times in a row, unless
        it must not be.
        """
        self.require_finite()
        try:
            with self.timed("save"):
                tensors, metadata = self.state()
                self.store.save(
                    self.step, tensors, metadata, ranked=self.history.ranked(self.store.keep_best)
                )
        except SaveError as error:
            self.failed_saves += 1
            if must or self.failed_saves >= MOST_FAILED_SAVES:
                raise
            # What fails only behind a whole checkpoint (pointer, pruning) has not lost it.
            lost = "" if self.store.is_valid(self.step) else self._forget_validation()
            log.warning(
                f"{error.what}{lost}; training goes on (failed saves in a row: {self.failed_saves}, "
                f"{MOST_FAILED_SAVES} end the run)"
            )
            return
        self.saved_step, self.failed_saves = self.step, 0

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that the steps to come depend on: tensors and JSON values."""
        tensors, optimizer = pack(self.algorithm, self.updater.optimizer if self.updater else None)
        tensors |= {f"window.{name}": value for name, value in self.running_means.sums.items()}
        progress = {
            "step": self.step,
            "evaluated_step": self.evaluated_step,
            "window_count": self.running_means.count,
        }
        progress |= {"shift": self.shift, "rollbacks": self.rollbacks, "scheduled": self._save_due()}
        if self.updater is not None:
            progress |= {
                "refused": int(self.updater.refused.item()),
                "refused_row": int(self.updater.row.item()),
            }
        offset = self.log.sync_metrics()
        plan = {
            "plan": asdict(self.strategy.executor.plan),
            "chunks": self.strategy.chunks(),
            "units": self.strategy.units(),
        }
        rest = {"metrics_offset": offset, "record": self.history.entries, "optimizer": optimizer}
        return tensors, {**self.metadata, **progress, **rest, **plan}

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint as if nothing had happened since."""
        metadata, tensors = checkpoint.metadata, checkpoint.tensors
        # They may have been halved before the checkpoint or since, when memory ran out. Older versions saved
        # only that of rank 0.
        chunks = metadata.get("chunks", [metadata["plan"]["chunk"]])
        self.strategy.take_back(chunks if metadata["plan_asked"] == self.metadata["plan_asked"] else [])
        self.strategy.take_back_units(metadata.get("units", []))
        restore(
            self.algorithm, self.updater.optimizer if self.updater else None, tensors, metadata["optimizer"]
        )
        if f"{WEIGHTS}outer_step" not in tensors:  # of an older version
            self.algorithm.outer_step.fill_(metadata["step"] - metadata.get("refused", 0))
        device = next(self.algorithm.parameters(), torch.empty(0)).device
        names = [name for name in tensors if name.startswith("window.")]
        if any(tensors[name].dim() for name in names):
            raise CheckpointError("the checkpoint's running sums are no single numbers")
        self.running_means = RunningMeans(
            metadata["window_count"],
            {name.removeprefix("window."): tensors[name].to(device) for name in names},
        )
        self.step = self.saved_step = metadata["step"]
        # not in what older versions saved
        self.shift, self.rollbacks = (
            metadata.get("shift", 0),
            metadata.get("rollbacks", 0),
        )
        if self.updater is not None:
            self.updater.count_refusals(metadata.get("refused", 0), metadata.get("refused_row", 0))
        self.evaluated_step = metadata["evaluated_step"]
        self.history.entries = metadata["record"]
        self.log.rewind_metrics(metadata["metrics_offset"])

    def require_finite(self) -> None:
        """Raise NonFiniteError, naming the first bad step and its tasks, if training cannot go on. Syncs with
        the device.
        """
        if self.guard is not None:
            self.guard.require(self.step, self.shift)

    def last_good(self) -> Path:
        return self.store.path(max(self.store.steps(), default=0))

    def take_times(self) -> dict[str, float]:
        """Seconds spent per kind of work since they were last taken, as `time_*` fields."""
        taken = {f"time_{name}": seconds for name, seconds in self.seconds.items()}
        self.seconds = {}
        return taken

    def _save_due(self) -> bool:
        """Whether a run that is not stopped has a checkpoint of the present step."""
        due = (
            self.step == 0
            or is_time(self.step, self.settings.checkpoint_every, self.outer_steps)
            or self._finished()
        )
        return due or self.step in self.history.ranked(self.store.keep_best)

    def _forget_validation(self) -> str:
        """Weights that are not kept cannot be chosen. Returns what to say of it."""
        if self.step not in self.history.ranked(self.store.keep_best):
            return ""
        self.history.forget(self.step)
        return f"; the validation at step {self.step} can no longer be chosen"

    def _finished(self) -> bool:
        patience = self.settings.patience
        impatient = patience is not None and self.history.since_best() >= patience
        return self.step >= self.outer_steps or impatient

    def _log_window(self) -> None:
        means = self.running_means.take()
        self.log.metric(self.step, "train", {**means, **self.take_times()})
        text = "  ".join(f"{name} {value:.4f}" for name, value in means.items())
        self.log.progress(self.step, self.outer_steps, text)

    def _between_batches(self, done: int) -> None:
        fault("eval:batch")
        self.check()

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[kind] = self.seconds.get(kind, 0.0) + time.perf_counter() - start


def is_time(step: int, every: int, last: int) -> bool:
    """Whether something that happens every so many steps, and at the last one, is due after `step` steps."""
    return step > 0 and (step % every == 0 or step == last)


def flat(summary: dict[str, dict[str, float]]) -> dict[str, float]:
    """{metric: mean, metric_ci95: half-width} for a line of metrics.jsonl."""
    return {
        f"{name}{suffix}": value[key]
        for name, value in summary.items()
        for suffix, key in (("", "mean"), ("_ci95", "ci95"))
    }
