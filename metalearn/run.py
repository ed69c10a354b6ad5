"""The life of a run: train, resume, evaluate. Configuration comes in as plain dicts; nothing here parses a command line.

A run writes config.yaml first, rehearses on copies, saves step-000000, trains with validations that choose the best
checkpoint, reads the test split once, and writes results.json. Killed at any moment, `resume` brings the same end.
"""

from __future__ import annotations

import copy
import json
import secrets
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml

from metalearn import build, config
from metalearn.analysis import plots, preview, tables
from metalearn.analysis.runfiles import shown
from metalearn.core import Algorithm, Source, Task, blank_query
from metalearn.engine.checkpoint import Checkpoint, CheckpointStore
from metalearn.engine.environment import differences, environment
from metalearn.engine.evaluate import Evaluation, draw_tasks, evaluate, frozen
from metalearn.engine.execution import TaskPlan
from metalearn.engine.faults import fault
from metalearn.engine.identity import refuse_new_science, science
from metalearn.engine.preflight import rehearse
from metalearn.engine.results import choose, protocol_name, result_of
from metalearn.engine.runlog import RunLog, echo
from metalearn.engine.signals import Preempted, StopSignals
from metalearn.engine.state import load_weights
from metalearn.engine.trainer import Settings, Trainer, flat
from metalearn.engine.update import Clip, Updater
from metalearn.errors import CheckpointError, ConfigError, DataError, MetalearnError


@dataclass(frozen=True)
class Parts:
    """Everything that a configuration names, built."""

    source: Source
    algorithm: Algorithm
    plan: TaskPlan
    device: torch.device

    @staticmethod
    def build(cfg: dict[str, Any]) -> Parts:
        build.prepare_host(cfg)
        device = build.build_device(cfg)
        source = build.build_source(cfg, device)
        return Parts(source, build.build_algorithm(cfg, source, device), build.build_plan(cfg), device)


def new_run_dir(cfg: dict[str, Any]) -> Path:
    """run_dir, or outputs/<algo>_<data>/<date>_<time>_<4 hex digits>."""
    if cfg.get("run_dir"):
        return Path(cfg["run_dir"])
    names = "_".join(_name(cfg[group]["_target_"]) for group in ("algo", "data"))
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    return Path("outputs") / names / f"{stamp}_{secrets.token_hex(2)}"


def train(cfg: dict[str, Any], overrides: list[str], run_dir: Path) -> int:
    """A new run; its exit code. ConfigError if the folder already holds one."""
    with StopSignals() as signals, RunLog(run_dir) as log:
        if log.is_run:
            raise ConfigError(f"{run_dir} already holds a run; continue it with: metalearn resume {run_dir}, or choose another run_dir")
        log.write_request(cfg, overrides)
        fault("start:config")
        try:
            code = Life(cfg, log, signals).live()
        except (ConfigError, DataError):
            if not CheckpointStore(run_dir).steps():
                log.discard()  # it never began: leave the folder to the corrected command
            raise
        if cfg["trainer"]["dry_run"]:
            log.discard()
        return code


def resume(run_dir: Path, overrides: list[str]) -> int:
    """Continue a run exactly where its newest valid checkpoint stands; its exit code."""
    old = read_config(run_dir)
    with StopSignals() as signals, RunLog(run_dir) as log:
        cfg = config.reopen(old, overrides)
        refuse_new_science(science(old), science(cfg))
        if log.finished and cfg["trainer"]["outer_steps"] == old["trainer"]["outer_steps"]:
            echo(f"{run_dir} is finished; nothing to do")
            return 0
        if cfg != old:
            log.write_request(cfg, [*log.overrides(), *overrides])
        return Life(cfg, log, signals, resuming=True).live()


class Life:
    """One process's share in a run."""

    def __init__(self, cfg: dict[str, Any], log: RunLog, signals: StopSignals, *, resuming: bool = False) -> None:
        self.cfg, self.log, self.signals, self.resuming = cfg, log, signals, resuming
        trainer = cfg["trainer"]
        self.store = CheckpointStore(log.run_dir, keep_last=trainer["keep_last"], keep_best=trainer["keep_best"], warn=self._warn)
        self.trainer: Trainer | None = None

    def live(self) -> int:
        """Run to the end, and leave in status.json how it went."""
        self.log.status("running")
        try:
            self._run()
        except Preempted as stop:
            return self._preempted(stop)
        except BaseException as error:
            code = error.exit_code if isinstance(error, MetalearnError) else 1
            self.log.note(f"failed: {error}")
            self.log.status("failed", code)
            raise
        self.log.status("finished", 0)
        return 0

    def _run(self) -> None:
        cfg = self.cfg
        checkpoint = self._checkpoint()
        parts = Parts.build(cfg)
        self._environment(parts)
        fault("start:built")
        self.signals.check()
        settings = settings_of(cfg)
        if checkpoint is None:
            self._rehearse(parts, settings)
        if cfg["trainer"]["dry_run"]:
            return
        self.signals.check()
        updater = self._updater(parts.algorithm)
        facts = {"config": science(cfg), "data_sha256": parts.source.fingerprint()}
        self.trainer = Trainer(
            parts.algorithm, updater, parts.source, parts.plan, self.store, self.log, settings, facts=facts, check=self.signals.check
        )
        if checkpoint is not None:
            self._continue(self.trainer, checkpoint)
        self.log.open_bar(self.trainer.outer_steps, self.trainer.step)
        self.trainer.train()
        self.log.close_bar()
        self._test(parts, self.trainer)

    def _checkpoint(self) -> Checkpoint | None:
        """Where to continue; None to begin at step 0. CheckpointError if there are checkpoints and none is valid."""
        if not self.resuming:
            return None
        self.store.recover()
        if not self.store.steps():
            self.log.say(f"{self.log.run_dir} was stopped before its first checkpoint; starting again at step 0")
            self.log.rewind_metrics(0)
            return None
        return self.store.newest()

    def _continue(self, trainer: Trainer, checkpoint: Checkpoint) -> None:
        refuse_new_science(checkpoint.facts["config"], science(self.cfg))
        if checkpoint.facts["data_sha256"] != trainer.facts["data_sha256"]:
            raise DataError(
                f"the data is not what this run was trained on (sha256 {trainer.facts['data_sha256'][:12]}…, "
                f"was {checkpoint.facts['data_sha256'][:12]}…); restore it, or start a new run"
            )
        if trainer.updater is not None and trainer.outer_steps < checkpoint.step:
            raise ConfigError(
                f"trainer.outer_steps={trainer.outer_steps} but the run is at step {checkpoint.step}; give at least that many"
            )
        self.store.set_aside(after=checkpoint.step)
        trainer.resume(checkpoint)
        self._verify_best(trainer)
        self.log.say(f"resuming at step {checkpoint.step}")

    def _verify_best(self, trainer: Trainer) -> None:
        """The pointer follows the record; a best checkpoint that was lost leaves the record, with a warning."""
        while (best := trainer.record.best()) is not None:
            try:
                self.store.load(best)
            except CheckpointError as error:
                self._warn(f"{error}; the best of the other validations takes its place")
                trainer.record.forget(best)
                continue
            self.store.point("best", best)
            return

    def _rehearse(self, parts: Parts, settings: Settings) -> None:
        evaluation = self.cfg["eval"]
        forecast = rehearse(parts.algorithm, self._updater, parts.source, parts.plan, settings, evaluation["split"], self.log.run_dir)
        steps = settings.outer_steps if parts.algorithm.trains_on is not None else 0
        self.log.say(forecast.describe(settings, steps, evaluation["episodes"]))

    def _updater(self, algorithm: Algorithm) -> Updater | None:
        optimizer = build.build_optimizer(self.cfg, algorithm)
        if optimizer is None or algorithm.trains_on is None:
            return None
        return Updater(algorithm, optimizer, build.build_schedule(self.cfg), Clip(**self.cfg["optimizer"]["clip"]))

    def _environment(self, parts: Parts) -> None:
        now = environment(parts.source.fingerprint(), parts.device)
        then = self.log.read_json("env.json")
        if then is None:
            self.log.write_json("env.json", now)
            return
        for line in differences(then, now):
            self._warn(f"{line} since the run began; bits may differ from a run that was never stopped")

    def _test(self, parts: Parts, trainer: Trainer) -> None:
        """The one time that the final split is read, with the weights that validation chose."""
        cfg, evaluation = self.cfg, self.cfg["eval"]
        chosen, step = choose(self.store, evaluation["checkpoint"], trainer.record)
        load_weights(parts.algorithm, self.store.load(step).tensors)
        with trainer.timed("eval"):
            result = judge_split(cfg, parts, on_batch=self._between_batches)
        split = evaluation["split"]
        self.log.metric(step, split, {**flat(result.summary), "episodes": result.episodes, **trainer.take_times()})
        self.log.write_csv(f"eval_{split}.csv", result.columns)
        fault("end:before_results")
        self.log.write_json("results.json", result_of(cfg, parts.source, parts.algorithm, result, step=step, checkpoint=chosen))
        fault("end:after_results")
        draw_plots(cfg, parts, self.log.run_dir)
        self.log.say(tables.closing(self.log.run_dir))

    def _between_batches(self, done: int) -> None:
        fault("test:batch")
        self.signals.check()

    def _preempted(self, stop: Preempted) -> int:
        self.log.close_bar()
        trainer = self.trainer
        if trainer is not None and trainer.saved_step < trainer.step:
            trainer.save()
        self.log.status("preempted", stop.exit_code)
        self.log.say(f"{stop}; continue with: metalearn resume {shlex.quote(str(self.log.run_dir))}")
        return stop.exit_code

    def _warn(self, message: str) -> None:
        self.log.say(f"warning: {message}")


def evaluate_run(run_dir: Path, overrides: list[str]) -> int:
    """Judge a run's checkpoint, under another protocol if overrides say so; writes only RUN_DIR/evals/<protocol>/."""
    cfg = config.reopen(pin_training(read_config(run_dir)), overrides)
    store = CheckpointStore(run_dir)
    if not store.steps():
        raise CheckpointError(f"{run_dir} has no checkpoint yet; train it first with: metalearn resume {run_dir}")
    parts = Parts.build(cfg)
    chosen, step = choose(store, cfg["eval"]["checkpoint"])
    load_weights(parts.algorithm, store.load(step).tensors)
    folder = run_dir / "evals" / protocol_name(cfg["eval"]["split"], overrides)
    with StopSignals() as signals, RunLog(folder) as log:
        try:
            result = judge_split(cfg, parts, on_batch=lambda done: signals.check())
        except Preempted as stop:
            return stop.exit_code
        split = cfg["eval"]["split"]
        log.write_csv(f"eval_{split}.csv", result.columns)
        summary = result_of(cfg, parts.source, parts.algorithm, result, step=step, checkpoint=chosen)
        log.write_json("results.json", summary)
    echo(beside(run_dir, folder))
    return 0


def judge_split(cfg: dict[str, Any], parts: Parts, on_batch: Callable[[int], None]) -> Evaluation:
    """The final evaluation that `eval.*` describes."""
    evaluation = cfg["eval"]
    return evaluate(
        parts.algorithm,
        parts.source,
        evaluation["split"],
        seed=evaluation["seed"],
        episodes=evaluation["episodes"],
        plan=parts.plan,
        batch_size=evaluation["batch_size"],
        on_batch=on_batch,
    )


def draw_plots(cfg: dict[str, Any], parts: Parts, run_dir: Path) -> None:
    """plots/*.png: learning curve, adaptation curve, three episodes of the final split with their predictions."""
    plots.learning_curve(run_dir)
    plots.adaptation_curve(run_dir)
    algorithm, split = parts.algorithm, cfg["eval"]["split"]
    tasks = draw_tasks(algorithm, parts.source, split, seed=cfg["eval"]["seed"], first=0, count=3)

    def predict(task: Task) -> torch.Tensor:
        adapted = algorithm.adapt(blank_query(task), steps=algorithm.eval_adaptation_steps)
        return algorithm.predict(adapted, task.query.x, task.query.mask)

    with frozen(algorithm), torch.no_grad():
        preview.episodes(run_dir / "plots" / "episodes.png", tasks, parts.plan.map(predict, tasks), count=3)


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


def read_config(run_dir: Path) -> dict[str, Any]:
    """config.yaml of a run folder; ConfigError if there is none or it is damaged."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise ConfigError(
            f"{run_dir} is no run (it has no config.yaml); give the folder that metalearn train printed, or see metalearn ls runs"
        )
    try:
        cfg = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; restore it from a backup") from error
    if not isinstance(cfg, dict) or not {"trainer", "eval", "data", "algo"} <= set(cfg):
        raise ConfigError(f"{path} is not the configuration of a run; restore it from a backup")
    return cfg


def pin_training(cfg: dict[str, Any]) -> dict[str, Any]:
    """The configuration with the sizes of training tasks written out, so that another data.way is one of evaluation only."""
    cfg = copy.deepcopy(cfg)
    train = cfg["data"].get("train") or {}
    train.update({name: cfg["data"].get(name) for name, value in train.items() if value is None})
    return cfg


def beside(run_dir: Path, folder: Path) -> str:
    """The table of an evaluation, with the run's own result under it."""
    own = run_dir / "results.json"
    text = tables.closing(folder)
    if not own.exists():
        return text
    results = json.loads(own.read_text(encoding="utf-8"))
    value = results["metrics"][results["primary"]]
    return f"{text}\n\nthe run's own result: {results['primary']} {shown(results['primary'], value['mean'], value['ci95'])} ({results['episodes']} tasks)"


def _name(target: str) -> str:
    """omniglot from metalearn.data.omniglot.Omniglot."""
    return target.split(".")[-2] if "." in target else target
