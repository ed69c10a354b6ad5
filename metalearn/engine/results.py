"""results.json: a number never travels without its interval, its number of tasks, its protocol, seed and
step.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save as dump_tensors

from metalearn.core import Algorithm, Source, Split
from metalearn.engine.evaluate import Evaluation
from metalearn.engine.formats import formats
from metalearn.engine.history import ValidationHistory
from metalearn.errors import CheckpointError, ConfigError
from metalearn.rundir.checkpoints import Checkpoint, CheckpointStore
from metalearn.rundir.choices import NAMED_IN_RESULTS, chosen
from metalearn.rundir.log import RunLog

WRITTEN = ("eval_*.csv", "predictions_*.safetensors")  # by `write_evaluation`
LONGEST_NAME = 120  # bytes of a file's name are limited to 255
REQUIRED = (
    "way",
    "shot",
    "query_shot",
    "split",
    "partition",
    "norm_statistics",
    "transductive",
    "adaptation_steps",
    "augmentation",
    "checkpoint",
    "seen_in",
)


def result_of(
    cfg: dict[str, Any],
    source: Source,
    algorithm: Algorithm,
    evaluation: Evaluation,
    *,
    step: int,
    checkpoint: str,
    novelty: dict[str, Any],
) -> dict[str, Any]:
    """The content of results.json: no time and no path, so that equal runs give equal bytes.

    step: outer step of the weights that were judged. checkpoint: the rule that chose them.
    novelty: whether the run has met, in training, who was judged; see `metalearn.engine.membership`.
    """
    split = cfg["eval"]["split"]
    objective = source.spec(split).objective
    train = source.protocol("train")
    protocol = {
        **source.protocol(split),
        **{f"train_{size}": train[size] for size in ("way", "shot", "query_shot") if size in train},
        **algorithm.protocol(),
        "split": split,
        "norm_statistics": algorithm.norm_statistics,
        "transductive": algorithm.transductive,
        "adaptation_steps": algorithm.eval_adaptation_steps,
        "train_adaptation_steps": algorithm.adaptation_steps,
        "checkpoint": checkpoint,
        "monitor": (cfg["eval"]["monitor"] or objective.primary) if checkpoint == "best" else None,
        "eval_seed": cfg["eval"]["seed"],
        **novelty,
    }
    names = chosen(cfg)
    return {
        **{group: names[group] for group in NAMED_IN_RESULTS},
        "split": split,
        "trains_on": algorithm.trains_on,
        "primary": objective.primary,
        "metrics": evaluation.summary,
        "formats": {
            name: asdict(form) for name, form in formats(objective, algorithm, evaluation.summary).items()
        },
        "episodes": evaluation.episodes,
        "step": step,
        "protocol": protocol,
        "seed": cfg["seed"],
    }


def write_evaluation(runlog: RunLog, split: Split, evaluation: Evaluation) -> None:
    """What results.json, which is written last, is a summary of."""
    predictions = f"predictions_{split}.safetensors"
    # Those of an earlier evaluation in the same folder belong to other scores.
    (runlog.run_dir / predictions).unlink(missing_ok=True)
    runlog.write_csv(f"eval_{split}.csv", evaluation.columns)
    if evaluation.rows:
        rows = {name: values.contiguous() for name, values in evaluation.rows.items()}
        runlog.write(predictions, dump_tensors(rows))


def withdraw_evaluation(folder: Path) -> None:
    """Remove what an evaluation has written."""
    for path in (folder / "results.json", *(path for name in WRITTEN for path in folder.glob(name))):
        path.unlink(missing_ok=True)


def choose(store: CheckpointStore, rule: str, history: ValidationHistory | None = None) -> tuple[str, int]:
    """The rule that really held and the step it chose, for eval.checkpoint = best, last or step-NUMBER.

    `best` without any validation (a method that does not train) is the last checkpoint, and is called so.
    history: the run's own validations; without it the pointer `best` in the folder counts.
    """
    best = history.best() if history is not None else store.pointed("best")
    last = store.pointed("last")
    if rule == "best" and best is not None:
        return rule, best
    if rule in ("best", "last"):
        return "last", last if last is not None else store.steps()[-1]
    step = int(rule.removeprefix("step-"))
    if step not in store.steps():
        kept = ", ".join(store.path(s).name for s in store.steps())
        raise ConfigError(
            f"eval.checkpoint={rule} is not there; this run kept {kept}; choose one of them, best or last"
        )
    return rule, step


def load_chosen(store: CheckpointStore, step: int) -> Checkpoint:
    """The weights and metadata of the checkpoint that `choose` chose; CheckpointError naming the valid
    others if they are not as they were saved.
    """
    try:
        return store.load(step, weights_only=True)
    except CheckpointError as error:
        others = [
            other for other in store.steps() if other != step and store.is_valid(other, weights_only=True)
        ]
        if not others:
            raise CheckpointError(
                f"{error}; no other checkpoint is valid; restore it from a backup"
            ) from error
        names = [
            *(["last"] if store.pointed("last") in others else []),
            *(store.path(other).name for other in others),
        ]
        raise CheckpointError(
            f"{error}; choose another with eval.checkpoint=NAME of: {', '.join(names)}"
        ) from error


def protocol_name(split: str, overrides: list[str]) -> str:
    """Name of the folder of an evaluation: the split and whatever was changed, such as test_data.way=20.

    Where characters had to be replaced or cut, a hash of the words keeps different protocols apart.
    """
    words = "_".join([split, *sorted(word for word in overrides if not word.startswith("eval.split="))])
    name = re.sub(r"[^\w.=,+-]", "-", words)[:LONGEST_NAME]
    if name == words:
        return name
    return f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(words.encode()).hexdigest()[:8]}"
