"""Continuing a run where its newest valid checkpoint stands."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path
from typing import Any

from metalearn.build.checks import Prebuilt
from metalearn.build.places import places_of, settled
from metalearn.config.compatibility import refuse_new_science, science
from metalearn.config.compose import reopen
from metalearn.config.saved import read_saved_with_notes
from metalearn.distributed.launch import pinned
from metalearn.engine.results import withdraw_evaluation
from metalearn.errors import ConfigError
from metalearn.run import slurm
from metalearn.run.session import Session
from metalearn.run.signals import StopSignals
from metalearn.rundir.log import RunLog

log = logging.getLogger(__name__)

OLD_END = {
    "log_every": "metrics.jsonl keeps its line of training",
    "eval_every": "its validation stays in metrics.jsonl and may choose the best checkpoint",
}


def resume(
    run_dir: Path,
    overrides: list[str],
    *,
    prebuilt: Prebuilt | None = None,
    requeue: slurm.Requeue = slurm.requeue,
) -> int:
    """Continue a run exactly where its newest valid checkpoint stands; its exit code. prebuilt, requeue: as
    in `train`.
    """
    old, notes = read_saved_with_notes(run_dir)
    with StopSignals(*slurm.warnings()) as signals, RunLog(run_dir) as runlog:
        cfg = pinned(reopen(old, overrides))
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
        return Session(
            cfg, runlog, signals, begin=begin, requeue=requeue, data=place, prebuilt=prebuilt
        ).run()


def refuse_unused_evaluation(
    run_dir: Path, old: dict[str, Any], new: dict[str, Any], overrides: list[str]
) -> None:
    """A finished run was evaluated once; what asks for another evaluation would be ignored."""
    if new != old:
        words = [word for word in overrides if word.startswith("eval.")]
        raise ConfigError(
            f"{run_dir} is finished, so resume would ignore {shlex.join(words)}; "
            f"judge it that way with: metalearn eval {shlex.join([str(run_dir), *words])}"
        )


def reopen_end(cfg: dict[str, Any], runlog: RunLog, old_end: int, step: int) -> None:
    """The run will end elsewhere: its results so far are withdrawn, and what then differs from a run of that
    length is named.

    step: where it stands; at its old end it has already done what is due at the last step.
    """
    withdraw_evaluation(runlog.run_dir)
    schedule = cfg["optimizer"]["schedule"]["name"]
    if schedule in ("cosine", "linear"):
        log.warning(
            f"optimizer/schedule={schedule} depends on trainer.outer_steps; a run of that length from "
            "the start would differ"
        )
    for key, effect in OLD_END.items():
        every = cfg["trainer"][key]
        if step == old_end and old_end % every:
            log.warning(
                f"step {step}, the former end, is no multiple of trainer.{key}={every}: {effect}, unlike a "
                "run of that length"
            )
