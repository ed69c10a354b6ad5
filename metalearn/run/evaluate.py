"""Evaluating a finished run under another protocol or on other data."""

from __future__ import annotations

import hashlib
import logging
import sys
from pathlib import Path
from typing import Any

from metalearn.build.parts import Parts
from metalearn.build.places import moved_places, settled, without_words
from metalearn.config.compose import reopen
from metalearn.config.saved import read_saved, read_saved_with_notes
from metalearn.distributed.launch import open_strategy, pinned
from metalearn.distributed.strategy import RankError
from metalearn.engine.evaluate import EvalSpec, Evaluation, limited
from metalearn.engine.explain import explained
from metalearn.engine.results import (
    choose,
    load_chosen,
    protocol_name,
    result_of,
    withdraw_evaluation,
    write_evaluation,
)
from metalearn.errors import CheckpointError, ConfigError
from metalearn.report import tables
from metalearn.run.folder import pin_training
from metalearn.run.grid import evaluate_grid
from metalearn.run.pictures import draw_worst
from metalearn.run.signals import PreemptedError, StopSignals
from metalearn.run.splits import novelty, reopen_to_evaluate
from metalearn.rundir.checkpoints import CheckpointStore, SaveError
from metalearn.rundir.lock import refuse_links
from metalearn.rundir.log import RunLog
from metalearn.rundir.state import load_weights

log = logging.getLogger(__name__)

SIZES = ("data.way", "data.shot", "data.query_shot")  # of the tasks that are judged


def evaluate_run(run_dir: Path, overrides: list[str], config_dir: str | None = None) -> int:
    """Evaluate a run's checkpoint, under another protocol or on other data if overrides say so; writes only
    RUN_DIR/evals/<protocol>/, for each cell where `eval.grid` asks for several. The exit code.
    """
    saved = read_saved(run_dir)
    del saved["logger"]  # an evaluation has none, so that its class need not be trusted
    grid = reopen(saved, overrides, config_dir, sizes=saved["data"])["eval"]["grid"]
    if grid is not None:
        return evaluate_grid(run_dir, overrides, grid, lambda words: judge(run_dir, words, config_dir))
    code, folder = judge(run_dir, overrides, config_dir)
    if code == 0:
        log.info(tables.beside(run_dir, folder))
    return code


def judge(run_dir: Path, overrides: list[str], config_dir: str | None = None) -> tuple[int, Path]:
    """One evaluation: its exit code, and the folder of its result."""
    saved, notes = read_saved_with_notes(run_dir)
    for note in notes:
        log.info(note)
    trained = pin_training(saved)
    del trained["logger"]  # an evaluation has none, so that its class need not be trusted
    refuse_links(run_dir)
    cfg = pinned(reopen_to_evaluate(run_dir, trained, overrides, config_dir))
    if cfg["eval"]["monitor"] != trained["eval"]["monitor"]:
        raise ConfigError(
            f"eval.monitor={cfg['eval']['monitor']}: the best checkpoint was chosen while the run trained; "
            "leave it out, or name a checkpoint with eval.checkpoint=step-NUMBER"
        )
    store = CheckpointStore(run_dir)
    if not store.steps():
        raise CheckpointError(
            f"{run_dir} has no checkpoint yet; train it first with: metalearn resume {run_dir}"
        )
    moved = moved_places(trained, cfg)
    cfg = settled(cfg, trained, run_dir, overrides)
    refuse_sizes(cfg, overrides)
    parts = Parts.build(
        cfg, trained={"data": trained["data"], "trusted": cfg["trusted"], "run_dir": str(run_dir)}
    )
    spec = limited(EvalSpec(**cfg["eval"]), parts.source)
    chosen, step = choose(store, spec.checkpoint)
    checkpoint = load_chosen(store, step)
    facts = novelty(parts, checkpoint, spec, named=any(word.startswith("data=") for word in overrides))
    load_weights(parts.algorithm, checkpoint.tensors)
    same_data = parts.source.fingerprint() == checkpoint.metadata["data_sha256"]
    words = without_words(overrides, moved) if same_data else overrides
    folder = run_dir / "evals" / protocol_name(spec.split, [by_content(word, spec.tasks) for word in words])
    with StopSignals() as signals, RunLog(folder) as runlog:
        signals.timeout = cfg["trainer"]["shutdown_timeout_s"]

        def give_up(error: RankError) -> None:
            discard_evaluation(runlog)
            sys.stderr.write(f"{error.details}error: {error}\n")

        try:
            with (
                explained(parts.algorithm, parts.source),
                open_strategy(cfg, parts, check=signals.check, give_up=give_up) as strategy,
            ):
                result = strategy.evaluate(spec, lambda done: signals.check())
            write_evaluation(runlog, spec, parts.source, result)
            results = result_of(
                cfg, spec, parts.source, parts.algorithm, result, step=step, checkpoint=chosen, novelty=facts
            )
            runlog.write_json("results.json", results)
            picture(parts, spec, result, folder)
        except BaseException as error:
            discard_evaluation(runlog)
            if isinstance(error, RankError):
                sys.stderr.write(error.details)  # an evaluation has no log of its own
            if isinstance(error, SaveError):
                raise ConfigError(
                    f"{error.what}; nothing was written; free space and run the same command again"
                ) from error
            if not isinstance(error, PreemptedError):
                raise
            log.info(f"{error}; nothing was written; run the same command again")
            return error.exit_code, folder
    return 0, folder


def refuse_sizes(cfg: dict[str, Any], overrides: list[str]) -> None:
    """A file of tasks has sizes of its own, beside which others would mean nothing."""
    typed = [word for word in overrides if word.partition("=")[0] in SIZES]
    if cfg["eval"]["tasks"] is not None and typed:
        raise ConfigError(
            f"{typed[0]} beside eval.tasks={cfg['eval']['tasks']}, whose tasks have the sizes that the file "
            "lists; leave one of them out, the file with eval.tasks=null"
        )


def by_content(word: str, tasks: str | None) -> str:
    """The word that names a file of tasks, with what is in it in place of where it lies."""
    if tasks is None or word.partition("=")[0] != "eval.tasks":
        return word
    content = hashlib.sha256(Path(tasks).read_bytes()).hexdigest()
    return f"eval.tasks={Path(tasks).name}-{content[:8]}"


def picture(parts: Parts, spec: EvalSpec, result: Evaluation, folder: Path) -> None:
    """The worst tasks; whatever goes wrong with a picture must not take the result away."""
    try:
        draw_worst(parts, spec, result, folder)
    except Exception as error:  # noqa: BLE001 - see above
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        log.warning(f"the worst tasks could not be drawn: {reason}")


def discard_evaluation(runlog: RunLog) -> None:
    """Remove the folder of an evaluation without a result, and `evals` if it was the only one."""
    if not (runlog.run_dir / "results.json").exists():  # of an earlier evaluation under the same protocol
        withdraw_evaluation(runlog.run_dir)
    runlog.discard()
    evals = runlog.run_dir.parent
    if not any(evals.iterdir()):
        evals.rmdir()
