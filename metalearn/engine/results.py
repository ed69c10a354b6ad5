"""results.json: a number never travels without its interval, its number of tasks, its protocol, seed and step."""

from __future__ import annotations

import re
from typing import Any

from metalearn.core import Algorithm, Source
from metalearn.engine.checkpoint import CheckpointStore
from metalearn.engine.evaluate import Evaluation
from metalearn.engine.record import Record
from metalearn.errors import ConfigError

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
)


def result_of(
    cfg: dict[str, Any], source: Source, algorithm: Algorithm, evaluation: Evaluation, *, step: int, checkpoint: str
) -> dict[str, Any]:
    """The content of results.json: no time and no path, so that equal runs give equal bytes.

    step: outer step of the weights that were judged. checkpoint: the rule that chose them.
    """
    split = cfg["eval"]["split"]
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
        "eval_seed": cfg["eval"]["seed"],
    }
    return {
        "split": split,
        "primary": source.spec(split).objective.primary,
        "metrics": evaluation.summary,
        "episodes": evaluation.episodes,
        "step": step,
        "protocol": protocol,
        "seed": cfg["seed"],
    }


def choose(store: CheckpointStore, rule: str, record: Record | None = None) -> tuple[str, int]:
    """The rule that really held and the step it chose, for eval.checkpoint = best, last or step-NUMBER.

    `best` without any validation (a method that does not train) is the last checkpoint, and is called so.
    record: the run's own validations; without it the pointer `best` in the folder counts.
    """
    best = record.best() if record is not None else store.pointed("best")
    last = store.pointed("last")
    if rule == "best" and best is not None:
        return rule, best
    if rule in ("best", "last"):
        return "last", last if last is not None else store.steps()[-1]
    step = int(rule.removeprefix("step-"))
    if step not in store.steps():
        kept = ", ".join(store.path(s).name for s in store.steps())
        raise ConfigError(f"eval.checkpoint={rule} is not there; this run kept {kept}")
    return rule, step


def protocol_name(split: str, overrides: list[str]) -> str:
    """Name of the folder of an evaluation: the split and whatever was changed, such as test_data.way=20."""
    words = [split, *sorted(word for word in overrides if not word.startswith("eval.split="))]
    return re.sub(r"[^\w.=,+-]", "-", "_".join(words))[:120]
