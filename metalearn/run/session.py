"""One process's share in a run: build, rehearse, train, evaluate once, and leave word of how it went."""

from __future__ import annotations

import contextlib
import logging
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

from metalearn.build.checks import Prebuilt
from metalearn.build.device import build_device
from metalearn.build.objects import build_optimizer, build_schedule
from metalearn.build.parts import Parts
from metalearn.build.places import absolute_paths, places_of
from metalearn.build.specification import NAME_OF_FILE, describe
from metalearn.config.compatibility import science
from metalearn.core import Algorithm
from metalearn.distributed.launch import open_strategy
from metalearn.distributed.strategy import RankError
from metalearn.engine.evaluate import EvalSpec, Evaluation, limited
from metalearn.engine.explain import explained
from metalearn.engine.locked import judged_source
from metalearn.engine.nonfinite import LIMITS, NonFiniteError
from metalearn.engine.preflight import rehearse
from metalearn.engine.results import choose, load_chosen, result_of, write_evaluation
from metalearn.engine.settings import Settings
from metalearn.engine.strategy import SingleProcess
from metalearn.engine.trainer import Trainer, flat
from metalearn.engine.update import Clip, Updater
from metalearn.errors import MetalearnError
from metalearn.fault_injection import fault
from metalearn.report import tables
from metalearn.run import rollback, slurm
from metalearn.run.pictures import draw_plots
from metalearn.run.plan import chosen_plan
from metalearn.run.signals import PreemptedError, StopSignals, say_nothing
from metalearn.run.splits import keep_splits, novelty_of_file
from metalearn.rundir.checkpoints import Checkpoint, CheckpointStore
from metalearn.rundir.environment import differences, environment
from metalearn.rundir.log import RunLog
from metalearn.rundir.state import load_weights

log = logging.getLogger(__name__)


class Session:
    """One process's share in a run.

    begin: for a run that is resumed, writes down what was asked anew; it is called with the step to continue
    at once everything that can be refused was checked, and until then nothing in the folder changes. None for
    a new run.
    requeue: called when it was stopped by SLURM's warning, and has saved. prebuilt: what a check has built
    already.
    data: the configuration's own with places as they are now, to build from; what is written down is what was
    typed.
    """

    def __init__(
        self,
        cfg: dict[str, Any],
        log: RunLog,
        signals: StopSignals,
        *,
        begin: Callable[[int], None] | None = None,
        requeue: slurm.Requeue = slurm.requeue,
        data: dict[str, Any] | None = None,
        prebuilt: Prebuilt | None = None,
    ) -> None:
        self.prebuilt = Prebuilt() if prebuilt is None else prebuilt
        self.cfg, self.log, self.signals, self.begin, self.requeue = cfg, log, signals, begin, requeue
        self.data = cfg["data"] if data is None else data
        self.begun = False
        self.restarts = {"restarts": slurm.restarts()} if slurm.job() is not None else {}
        self.settings, self.spec = Settings.of(cfg), EvalSpec(**cfg["eval"])
        signals.timeout = self.settings.shutdown_timeout_s
        self.store = CheckpointStore(
            log.run_dir, keep_last=self.settings.keep_last, keep_best=self.settings.keep_best
        )
        self.trainer: Trainer | None = None
        self.exit_code = 0

    def run(self) -> int:
        """Run to the end, and leave in status.json how it went; the exit code."""
        self.log.listen()
        if self.begin is None:
            self._mark_begun()
        else:
            self.log.hold()
        settings, ranks = self.settings, self.cfg["device"]["ranks"]
        with self._ending():
            checkpoint = self._checkpoint()
            parts = self._build(checkpoint)
            self.novelty = novelty_of_file(parts.source, self.spec)
            if self.begin is not None and settings.dry_run:
                log.info(f"{self.log.run_dir} can be resumed; nothing was changed (trainer.dry_run=true)")
                return 0
            self._open(parts, checkpoint)
            with explained(parts.algorithm, parts.source):
                parts = self._planned(parts)
                if checkpoint is None:  # on rank 0 alone, which has a part of each meta-batch
                    rehearse(
                        parts.algorithm,
                        self._updater,
                        parts.source,
                        parts.plan,
                        settings.part(ranks),
                        self.spec,
                        self.log.run_dir,
                        ranks=ranks,
                    )
            if settings.dry_run:
                return 0
            self.signals.check()
            self._specify(parts)
            # A run that goes on is not rehearsed, and its method may have been changed since it was.
            again = (
                contextlib.nullcontext() if checkpoint is None else explained(parts.algorithm, parts.source)
            )
            with again, self._strategy(parts) as strategy:
                trainer = self.trainer = self._trainer(parts, strategy, checkpoint)
                while True:
                    with rollback.instead_of_failing(trainer):
                        trainer.train()
                        break
                rollback.count_refused(trainer)
                self.log.close_bar()
                result, chosen, step = self._evaluate(trainer)
            self._report(parts, result, chosen, step, trainer.take_times())
        return self.exit_code

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        """Word of how it ended, whatever ends it."""
        try:
            try:
                yield
            except PreemptedError as stop:
                self.exit_code = self._preempted(stop)
                return
            self.signals.last_word = say_nothing
            if self.begun:
                self.log.status("finished", 0, **self.restarts)
        except BaseException as error:
            if self.begun:
                self._note_failure(error)
            raise

    def _note_failure(self, error: BaseException) -> None:
        self.signals.last_word = say_nothing
        self.log.note(f"failed: {error}")
        if isinstance(error, RankError):
            self.log.note(error.details)
        self.log.status(
            "failed", error.exit_code if isinstance(error, MetalearnError) else 1, **self.restarts
        )

    def _mark_begun(self) -> None:
        self.begun = True
        self.log.status("running", **self.restarts)
        self.signals.last_word = self._ended_at_once

    def _build(self, checkpoint: Checkpoint | None) -> Parts:
        """The parts, and the logger. Whatever can be refused is refused here, and nothing in the folder
        changes.
        """
        for text in self.prebuilt.said(self._settled(), build_device(self.cfg)):
            self.log.note(text)  # the person has heard it while the parts were checked
        parts = Parts.build(self._settled(), prebuilt=self.prebuilt)
        if checkpoint is not None:
            rollback.require_same(self.cfg, parts, checkpoint, self.log)
        elif self.begin is not None:
            rollback.require_same_start(parts, self.log)
        self.logger = self.prebuilt.logger(self._settled())
        return parts

    def _open(self, parts: Parts, checkpoint: Checkpoint | None) -> None:
        """The folder, from here on that of a run that goes on."""
        if self.begin is not None:
            self._begin_again(checkpoint)
        log.info(f"run folder: {self.log.run_dir}")
        if slurm.restarts():
            log.info(f"restart {slurm.restarts()} of SLURM job {slurm.job()}")
        self._environment(parts)
        fault("start:built")
        self.signals.check()

    def _strategy(self, parts: Parts) -> contextlib.AbstractContextManager[SingleProcess]:
        return open_strategy(self._settled(), parts, check=self.signals.check, give_up=self._give_up)

    def _trainer(self, parts: Parts, strategy: SingleProcess, checkpoint: Checkpoint | None) -> Trainer:
        metadata = {
            "config": science(self.cfg, places_of(self.cfg)),
            "data_sha256": parts.source.fingerprint(),
            "splits_sha256": keep_splits(self.log, parts.source),
            "plan_asked": asdict(parts.plan),
        }
        trainer = Trainer(
            parts.algorithm,
            self._updater(parts.algorithm),
            parts.source,
            strategy,
            self.store,
            self.log,
            self.settings,
            self.spec,
            metadata=metadata,
            check=self.signals.check,
        )
        if checkpoint is not None:
            rollback.go_on(trainer, checkpoint)
            log.info(f"resuming at step {checkpoint.step}")
        self.log.guard(self.logger)
        self.log.open_bar(trainer.outer_steps, trainer.step)
        return trainer

    def _evaluate(self, trainer: Trainer) -> tuple[Evaluation, str, int]:
        """The one time that the final split is read, with the weights that validation chose; the rule and the
        step that it chose.
        """
        chosen, step = choose(self.store, self.spec.checkpoint, trainer.history)
        load_weights(trainer.algorithm, load_chosen(self.store, step).tensors)
        with trainer.timed("eval"):
            return trainer.strategy.evaluate(self.spec, self._between_batches), chosen, step

    def _planned(self, parts: Parts) -> Parts:
        """The parts with the plan to train with, which config.yaml then names, so that a resumed run takes
        the same.
        """
        settings = self.settings.part(self.cfg["device"]["ranks"])
        plan = chosen_plan(
            self._settled(), parts.algorithm, parts.source, settings, parts.device, self.signals.check
        )
        device = {**self.cfg["device"], "plan": plan.name, "chunk": plan.chunk, "compile": plan.compile}
        if device != self.cfg["device"]:
            self.cfg = {**self.cfg, "device": device}
            self.log.write_request(self.cfg, self.log.overrides())
        return replace(parts, plan=plan)

    def _checkpoint(self) -> Checkpoint | None:
        """Where to continue; None to begin at step 0. CheckpointError if there are checkpoints and none is
        valid.
        """
        if self.begin is None:
            return None
        self.store.recover()
        return self.store.newest() if self.store.steps() else None

    def _begin_again(self, checkpoint: Checkpoint | None) -> None:
        """Nothing is refused any more: write down what was asked, and that the run goes on."""
        assert self.begin is not None
        self.log.release()
        self._mark_begun()  # first: killed within the lines below, the run is one that was not finished
        self.begin(0 if checkpoint is None else checkpoint.step)
        if checkpoint is None:
            log.info(f"{self.log.run_dir} was stopped before its first checkpoint; starting again at step 0")
            self.log.rewind_metrics(0)

    def _updater(self, algorithm: Algorithm) -> Updater | None:
        optimizer = build_optimizer(self.cfg, algorithm)
        if optimizer is None or algorithm.trains_on is None:
            return None
        clip, limit = Clip(**self.cfg["optimizer"]["clip"]), LIMITS[self.settings.on_nan]
        return Updater(algorithm, optimizer, build_schedule(self.cfg), clip, limit=limit)

    def _environment(self, parts: Parts) -> None:
        places = absolute_paths(self._settled())
        now = environment(
            parts.source.fingerprint(), parts.device, self.cfg["device"]["ranks"], locations=places
        )
        then = self.log.read_json("env.json")
        if then is None:
            self.log.write_json("env.json", now)
            return
        if then.get("locations") != places:
            self.log.write_json("env.json", {**then, "locations": places})
        for line in differences(then, now):
            log.warning(f"{line} since the run began; bits may differ from a run that was never stopped")

    def _settled(self) -> dict[str, Any]:
        """The configuration with the places of its data as they are now."""
        return {**self.cfg, "data": self.data}

    def _specify(self, parts: Parts) -> None:
        """spec.json, before the first checkpoint that is loaded with it."""
        try:
            self.log.write_json(NAME_OF_FILE, describe(parts.source))
        except ValueError as error:
            (self.log.run_dir / NAME_OF_FILE).unlink(missing_ok=True)
            log.warning(f"{error}; metalearn.load will need the data of this run")

    def _report(
        self, parts: Parts, result: Evaluation, chosen: str, step: int, times: dict[str, float]
    ) -> None:
        """The result of the final split, of the weights that the rule `chosen` chose: files, plots and the
        closing table.
        """
        cfg, split = self.cfg, self.spec.split
        self.log.metric(step, split, {**flat(result.summary), "episodes": result.episodes, **times})
        self.log.sync_metrics()
        judged = judged_source(parts.source, self.spec.tasks, split)
        spec = limited(self.spec, judged)
        write_evaluation(self.log, spec, judged, result)
        fault("end:before_results")
        results = result_of(
            cfg, spec, judged, parts.algorithm, result, step=step, checkpoint=chosen, novelty=self.novelty
        )
        self.log.write_json("results.json", results)
        fault("end:after_results")
        try:
            draw_plots(replace(parts, source=judged), spec, result, self.log.run_dir)
        except Exception as error:  # noqa: BLE001 - the run has its result; whatever goes wrong with a picture must not take it away
            reason = (
                error.strerror
                if isinstance(error, OSError) and error.strerror
                else f"{type(error).__name__}: {error}"
            )
            log.warning(f"the plots could not be drawn: {' '.join(reason.split())}")
        log.info(tables.closing(self.log.run_dir))

    def _give_up(self, error: RankError) -> None:
        """Word of a lost rank, from beside a main thread that still waits for it."""
        self._note_failure(error)
        sys.stderr.write(f"error: {error}\n")

    def _between_batches(self, done: int) -> None:
        fault("test:batch")
        self.signals.check()

    def _preempted(self, stop: PreemptedError) -> int:
        self.log.close_bar()
        trainer = self.trainer
        if trainer is not None and trainer.saved_step < trainer.step:
            self._save_last(trainer)
        self.signals.last_word = say_nothing
        self.log.status("preempted", stop.exit_code, **self.restarts)
        log.info(f"{stop}; continue with: {self._way_on()}")
        if stop.number in slurm.warnings():
            self.requeue()
        return stop.exit_code

    def _way_on(self) -> str:
        """The command that continues this run."""
        trusted = [f"trusted=[{','.join(self.cfg['trusted'])}]"] if self.cfg["trusted"] else []
        return shlex.join(["metalearn", "resume", str(self.log.run_dir), *trusted])

    def _ended_at_once(self, code: int, reason: str) -> None:
        """Word from beside a main thread that does not get on: the status first, as there may be no time for
        more.
        """
        newest = self.store.path(max(self.store.steps(), default=0)).name
        reason = (
            f"ended at once, as {reason}; what came after {newest} will be done again by: {self._way_on()}"
        )
        self.log.status("preempted", code, reason=reason, **self.restarts)
        self.log.note(reason)
        sys.stderr.write(f"error: {reason}\n")
        sys.stderr.flush()

    def _save_last(self, trainer: Trainer) -> None:
        """Before leaving. What a rollback would undo is left to the resumed run, which comes to the same bad
        step.
        """
        try:
            trainer.save(must=True)
        except NonFiniteError:
            if self.settings.on_nan != "rollback":
                raise
