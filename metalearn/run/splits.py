"""`splits.json` of a run: who was train, val and test. Written before the first step, compared before an
evaluation.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

from metalearn.build.parts import Parts, own_source, trained_spec
from metalearn.config.compose import reopen
from metalearn.core import InputSpec, Source, TaskSpec
from metalearn.engine.evaluate import EvalSpec
from metalearn.engine.locked import LockedTasks, judged_source
from metalearn.engine.membership import (
    FILE,
    NAMED,
    SeenError,
    Splits,
    digest,
    members_of,
    refuse_seen,
    seen_in,
)
from metalearn.errors import ConfigError, DataError
from metalearn.files import read_json
from metalearn.rundir.checkpoints import Checkpoint
from metalearn.rundir.log import RunLog

log = logging.getLogger(__name__)

SURROGATES = re.compile("[\ud800-\udfff]")

MET = {
    "none": "nobody who is judged was met in training",
    "val": "some of those who are judged chose the checkpoint",
    "train": "all who are judged were trained on",
}


def keep_splits(runlog: RunLog, source: Source) -> str:
    """Write who is in which split, unless that is what stands there; its digest."""
    tree = Splits.of(source).to_json()
    there = runlog.read_json(FILE)
    if there != tree:
        if there is not None:
            log.warning(
                f"{runlog.run_dir / FILE} did not say who is in the splits of this run's data; written anew"
            )
        text = json.dumps(tree, indent=1, ensure_ascii=False)
        # A name of a folder may be no Unicode, which only JSON's escapes can write.
        runlog.write(FILE, (json.dumps(tree, indent=1) if SURROGATES.search(text) else text) + "\n")
    return digest(tree)


def novelty(parts: Parts, checkpoint: Checkpoint, spec: EvalSpec, *, named: bool) -> dict[str, Any]:
    """Facts for the protocol: whether the run has met, in training, who is judged. ConfigError if it has and
    must not.

    named: whether `data=` was typed; without it, nobody may have meant to judge other data than the run's.
    """
    then, now = checkpoint.metadata["data_sha256"], parts.source.fingerprint()
    assert parts.trained is not None
    if spec.tasks is not None:
        return met(splits_of_run(parts.trained, checkpoint), parts.source, spec)
    # A fingerprint may be of the content alone, whatever the division.
    if now == then and checkpoint.metadata.get("splits_sha256") in (
        None,
        digest(Splits.of(parts.source).to_json()),
    ):
        return {"seen_in": seen_in(spec.split)}
    facts = met(splits_of_run(parts.trained, checkpoint), parts.source, spec)
    other = "is divided otherwise than when" if now == then else "is not as"
    sums = "" if now == then else f" (sha256 {now[:12]}…, was {then[:12]}…)"
    if "anyway" in facts:
        return facts
    tell = log.info if named else log.warning
    tell(f"the data {other} this run was trained on it{sums}; {MET[facts['seen_in']]}")
    return facts


def novelty_of_file(source: Source, spec: EvalSpec) -> dict[str, Any]:
    """The same for the final evaluation of a run that begins, whose tasks may stand in a file."""
    if spec.tasks is None:
        return {"seen_in": seen_in(spec.split)}
    judged = judged_source(source, spec.tasks, spec.split)
    return met(Splits.of(source), judged, spec)


def met(known: Splits, judged: Source, spec: EvalSpec) -> dict[str, Any]:
    """Facts for the protocol, SeenError for who was trained on; with `--anyway` a fact of it instead."""
    try:
        return refuse_seen(known, spec.split, members_of(judged, spec.split), judged.name)
    except SeenError as error:
        if spec.anyway:
            log.warning(f"{error}; judged all the same (--anyway)")
            return error.facts
        if not isinstance(judged, LockedTasks):
            raise
        tasks = judged.tasks_of(error.names)
        some = ", ".join(tasks[:NAMED]) + (f" and {len(tasks) - NAMED} more" if len(tasks) > NAMED else "")
        raise ConfigError(
            f"{len(tasks)} of the {judged.num_tasks(spec.split)} tasks of eval.tasks={spec.tasks} hold "
            f"classes that this run was trained on or that chose its checkpoint: {some}; leave these lines "
            "out, or judge all of them and say so in the protocol with --anyway"
        ) from error


def splits_of_run(trained: dict[str, Any], checkpoint: Checkpoint) -> Splits:
    """From splits.json if it is what the checkpoint knows, else from the run's data if that is still what it
    was.

    trained: as in `Parts.build`.
    """
    run_dir = Path(trained["run_dir"])
    expected = checkpoint.metadata.get("splits_sha256")
    try:
        tree = read_json(run_dir / FILE)
        if expected is not None and digest(tree) == expected:
            return Splits.from_json(tree)
        reason = (
            f"{FILE} is not what the checkpoint was trained with"
            if expected
            else "the checkpoint is older than its file of splits"
        )
    except FileNotFoundError:
        reason = f"there is no {FILE}"
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        reason = f"{FILE} cannot be read ({error})"
    try:
        source = own_source(trained)
        sha256 = source.fingerprint()
        if sha256 != checkpoint.metadata["data_sha256"]:
            raise DataError(f"it has sha256 {sha256[:12]}…, was {checkpoint.metadata['data_sha256'][:12]}…")
        splits = Splits.of(source)
        if expected not in (None, digest(splits.to_json())):
            raise DataError("it is divided otherwise now")
    except (ConfigError, DataError) as error:
        raise ConfigError(
            f"{run_dir}: {reason}, and the data that the run was trained on is not here to tell who was in "
            f"it ({error}), so that nobody "
            "knows whether it has met who is judged; restore one of them, or judge the run on its own data"
        ) from error
    log.warning(
        f"{run_dir}: {reason}; its splits were taken from its data, which has the sha256 that the checkpoint "
        "knows"
    )
    return splits


def reopen_to_evaluate(
    run_dir: Path, saved: dict[str, Any], overrides: list[str], config_dir: str | None
) -> dict[str, Any]:
    """The configuration of an evaluation; other data takes the sizes of its tasks over from the run.

    saved: configuration of the run, the sizes of its training tasks written out.
    """
    sizes = saved["data"]
    if any(word.startswith("data=") for word in overrides):
        # Of the command line alone, as what the folder trusts counts nowhere.
        trusted = reopen(saved, overrides, config_dir, sizes=sizes)["trusted"]
        sizes = {
            **sizes,
            **image_sizes(trained_spec({"data": saved["data"], "trusted": trusted, "run_dir": str(run_dir)})),
        }
    return reopen(saved, overrides, config_dir, sizes=sizes)


def image_sizes(spec: TaskSpec) -> dict[str, int]:
    """Keys of `data` that give images of another source the shape that the run's model takes."""
    shape = spec.input_spec.shape if isinstance(spec.input_spec, InputSpec) else ()
    return {"channels": shape[0], "image_size": shape[-1]} if len(shape) == 3 else {}
