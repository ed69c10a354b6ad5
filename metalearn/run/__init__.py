"""The verbs of a run: train, resume, evaluate, load. Configuration comes in as plain dicts; no command line is parsed.

A run writes config.yaml first, rehearses on copies, saves step-000000, trains with validations that choose the best
checkpoint, reads the test split once, and writes results.json. Killed at any moment, `resume` brings the same end.
"""

from __future__ import annotations

import logging
import shlex
import sys
from pathlib import Path
from typing import Any

from metalearn import config, slurm
from metalearn.analysis import tables
from metalearn.build import Prebuilt
from metalearn.engine.checkpoint import CheckpointStore, SaveError
from metalearn.engine.explain import explained
from metalearn.engine.faults import fault
from metalearn.engine.identity import refuse_new_science, science
from metalearn.engine.lock import refuse_links
from metalearn.engine.ranks import RankError
from metalearn.engine.results import choose, load_chosen, protocol_name, result_of
from metalearn.engine.runlog import RunLog
from metalearn.engine.signals import PreemptedError, StopSignals
from metalearn.engine.state import load_weights
from metalearn.errors import CheckpointError, ConfigError, DataError
from metalearn.run.folder import holds_run, new_run_dir, pin_training
from metalearn.run.judging import judge_split
from metalearn.run.life import Life
from metalearn.run.loaded import Loaded, load
from metalearn.run.parts import Parts
from metalearn.run.places import moved_places, places_of, settled, without_words
from metalearn.run.ranks import open_crew, pinned
from metalearn.run.splits import novelty, reopen_to_judge

log = logging.getLogger(__name__)

OLD_END = {
    "log_every": "metrics.jsonl keeps its line of training",
    "eval_every": "its validation stays in metrics.jsonl and may choose the best checkpoint",
}

__all__ = ["Loaded", "evaluate_run", "holds_run", "load", "new_run_dir", "resume", "train"]


def train(
    cfg: dict[str, Any],
    overrides: list[str],
    run_dir: Path,
    *,
    prebuilt: Prebuilt | None = None,
    requeue: slurm.Requeue = slurm.requeue,
) -> int:
    """A new run; its exit code. ConfigError if the folder already holds one.

    prebuilt: what a check has built; what was said meanwhile goes into train.log, too.
    requeue: called when SLURM's warning has stopped the run.
    """
    config.refuse_existing_run(dict(cfg, run_dir=run_dir))
    cfg = pinned(cfg)
    with StopSignals(*slurm.warnings()) as signals, RunLog(run_dir) as runlog:
        config.refuse_existing_run(dict(cfg, run_dir=run_dir))  # again: another process may have been faster to the lock
        try:
            runlog.write_request(cfg, overrides)
            fault("start:config")
            code = Life(cfg, runlog, signals, requeue=requeue, prebuilt=prebuilt).live()
        except (ConfigError, DataError):
            if not CheckpointStore(run_dir).steps():
                runlog.discard()  # it never began: leave the folder to the corrected command
            raise
        if cfg["trainer"]["dry_run"]:
            runlog.discard()
        return code


def resume(run_dir: Path, overrides: list[str], *, prebuilt: Prebuilt | None = None, requeue: slurm.Requeue = slurm.requeue) -> int:
    """Continue a run exactly where its newest valid checkpoint stands; its exit code. prebuilt, requeue: as in `train`."""
    old, notes = config.read_saved_with_notes(run_dir)
    with StopSignals(*slurm.warnings()) as signals, RunLog(run_dir) as runlog:
        cfg = pinned(config.reopen(old, overrides))
        refuse_new_science(science(old), science(cfg), places_of(cfg))
        if runlog.finished and cfg["trainer"]["outer_steps"] == old["trainer"]["outer_steps"]:
            refuse_unused_evaluation(run_dir, old["eval"], cfg["eval"], overrides)
            why = "; a logger hears of a run only while it trains" if cfg["logger"] != old["logger"] else ""
            why += "; its data is read again only by an evaluation" if cfg["data"] != old["data"] else ""
            log.info(f"{run_dir} is finished; nothing to do{why}")
            return 0

        def begin(step: int) -> None:
            if cfg["trainer"]["outer_steps"] != old["trainer"]["outer_steps"]:
                reopen_end(cfg, runlog, old["trainer"]["outer_steps"], step)
            for note in notes:
                log.info(note)
            if notes or cfg != old:
                runlog.write_request(cfg, [*runlog.overrides(), *overrides])

        place = settled(cfg, old, run_dir, overrides)["data"]
        return Life(cfg, runlog, signals, begin=begin, requeue=requeue, data=place, prebuilt=prebuilt).live()


def refuse_unused_evaluation(run_dir: Path, old: dict[str, Any], new: dict[str, Any], overrides: list[str]) -> None:
    """A finished run was judged once; what asks for another judgement would be ignored."""
    if new != old:
        words = [word for word in overrides if word.startswith("eval.")]
        raise ConfigError(
            f"{run_dir} is finished, so resume would ignore {shlex.join(words)}; "
            f"judge it that way with: metalearn eval {shlex.join([str(run_dir), *words])}"
        )


def reopen_end(cfg: dict[str, Any], runlog: RunLog, old_end: int, step: int) -> None:
    """The run will end elsewhere: its results so far are withdrawn, and what then differs from a run of that length is named.

    step: where it stands; at its old end it has already done what is due at the last step.
    """
    for path in (runlog.run_dir / "results.json", *runlog.run_dir.glob("eval_*.csv")):
        path.unlink(missing_ok=True)
    schedule = cfg["optimizer"]["schedule"]["name"]
    if schedule in ("cosine", "linear"):
        log.warning(f"optimizer.schedule.name={schedule} depends on trainer.outer_steps; a run of that length from the start would differ")
    for key, effect in OLD_END.items():
        every = cfg["trainer"][key]
        if step == old_end and old_end % every:
            log.warning(f"step {step}, the former end, is no multiple of trainer.{key}={every}: {effect}, unlike a run of that length")


def evaluate_run(run_dir: Path, overrides: list[str], config_dir: str | None = None) -> int:
    """Judge a run's checkpoint, under another protocol or on other data if overrides say so; writes only RUN_DIR/evals/<protocol>/."""
    saved, notes = config.read_saved_with_notes(run_dir)
    for note in notes:
        log.info(note)
    trained = pin_training(saved)
    del trained["logger"]  # an evaluation has none, so that its class need not be trusted
    refuse_links(run_dir)
    cfg = pinned(reopen_to_judge(run_dir, trained, overrides, config_dir))
    if cfg["eval"]["monitor"] != trained["eval"]["monitor"]:
        raise ConfigError(
            f"eval.monitor={cfg['eval']['monitor']}: the best checkpoint was chosen while the run trained; "
            "leave it out, or name a checkpoint with eval.checkpoint=step-NUMBER"
        )
    store = CheckpointStore(run_dir)
    if not store.steps():
        raise CheckpointError(f"{run_dir} has no checkpoint yet; train it first with: metalearn resume {run_dir}")
    moved = moved_places(trained, cfg)
    cfg, split = settled(cfg, trained, run_dir, overrides), cfg["eval"]["split"]
    parts = Parts.build(cfg, trained={"data": trained["data"], "trusted": cfg["trusted"], "run_dir": str(run_dir)})
    chosen, step = choose(store, cfg["eval"]["checkpoint"])
    checkpoint = load_chosen(store, step)
    facts = novelty(parts, checkpoint, split, named=any(word.startswith("data=") for word in overrides))
    load_weights(parts.algorithm, checkpoint.tensors)
    same_data = parts.source.fingerprint() == checkpoint.facts["data_sha256"]
    folder = run_dir / "evals" / protocol_name(split, without_words(overrides, moved) if same_data else overrides)
    with StopSignals() as signals, RunLog(folder) as runlog:
        signals.timeout = cfg["trainer"]["shutdown_timeout_s"]

        def give_up(error: RankError) -> None:
            discard_evaluation(runlog)
            sys.stderr.write(f"{error.details}error: {error}\n")

        try:
            with (
                explained(parts.algorithm, parts.source),
                open_crew(cfg, parts, check=signals.check, give_up=give_up) as crew,
            ):
                result = judge_split(cfg, crew, on_batch=lambda done: signals.check())
            runlog.write_csv(f"eval_{split}.csv", result.columns)
            results = result_of(cfg, parts.source, parts.algorithm, result, step=step, checkpoint=chosen, novelty=facts)
            runlog.write_json("results.json", results)
        except BaseException as error:
            discard_evaluation(runlog)
            if isinstance(error, RankError):
                sys.stderr.write(error.details)  # an evaluation has no log of its own
            if isinstance(error, SaveError):
                raise ConfigError(f"{error.what}; nothing was written; free space and run the same command again") from error
            if not isinstance(error, PreemptedError):
                raise
            log.info(f"{error}; nothing was written; run the same command again")
            return error.exit_code
    log.info(tables.beside(run_dir, folder))
    return 0


def discard_evaluation(runlog: RunLog) -> None:
    """Remove the folder of an evaluation without a result, and `evals` if it was the only one."""
    if not (runlog.run_dir / "results.json").exists():  # of an earlier evaluation under the same protocol
        for path in runlog.run_dir.glob("eval_*.csv"):
            path.unlink()
    runlog.discard()
    evals = runlog.run_dir.parent
    if not any(evals.iterdir()):
        evals.rmdir()
