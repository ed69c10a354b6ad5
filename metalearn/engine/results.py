"""results.json: a number never travels without its interval, its number of tasks, its protocol, seed and
step.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save as dump_tensors

from metalearn.core import Algorithm, Objective, Source
from metalearn.engine.answers import Answers, breakdown
from metalearn.engine.evaluate import (
    FIRST_LOOK,
    LOOK_EVERY,
    EvalSpec,
    Evaluation,
    in_files,
    summarise,
)
from metalearn.engine.formats import formats
from metalearn.engine.history import ValidationHistory
from metalearn.engine.task_names import tasks_sha256
from metalearn.errors import CheckpointError, ConfigError
from metalearn.rundir.checkpoints import Checkpoint, CheckpointStore
from metalearn.rundir.choices import NAMED_IN_RESULTS, chosen
from metalearn.rundir.log import RunLog

# by `write_evaluation` and `metalearn.run.pictures`
WRITTEN = ("eval_*.csv", "breakdown_*.csv", "predictions_*.safetensors", "worst_*.png")
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
    spec: EvalSpec,
    source: Source,
    algorithm: Algorithm,
    evaluation: Evaluation,
    *,
    step: int,
    checkpoint: str,
    novelty: dict[str, Any],
) -> dict[str, Any]:
    """The content of results.json: no time and no path, so that equal runs give equal bytes.

    spec: as `metalearn.engine.evaluate.limited` left it. source: where the judged tasks came from. step:
    outer step of the weights that were judged. checkpoint: the rule that chose them.
    novelty: whether the run has met, in training, who was judged; see `metalearn.engine.membership`.
    """
    split, objective = spec.split, source.spec(spec.split).objective
    train = source.protocol("train")
    judged = {**source.protocol(split), "split": split}
    own = {
        **{f"train_{size}": train[size] for size in ("way", "shot", "query_shot") if size in train},
        **algorithm.protocol(),
        "norm_statistics": algorithm.norm_statistics,
        "adaptation_steps": algorithm.eval_adaptation_steps,
        "train_adaptation_steps": algorithm.adaptation_steps,
        "checkpoint": checkpoint,
        "monitor": (spec.monitor or objective.primary) if checkpoint == "best" else None,
        "eval_seed": spec.seed,
        "preprocessing": source.preprocessing(),
    }
    inputs = {name for name in ("image_size", *source.preprocessing()) if name in judged}
    protocol = {
        **judged,
        **own,
        "transductive": algorithm.transductive,
        "data_sha256": source.content_sha256(),
        **novelty,
        **asked(spec, evaluation, objective),
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
        "tasks_sha256": tasks_sha256(evaluation.columns["task_sha256"]),
        "protocol": protocol,
        "may_differ": sorted({*own, *inputs, *source.training_facts}),
        "seed": cfg["seed"],
        **by_seed(evaluation, objective),
        **reliability(evaluation, objective),
    }


def asked(spec: EvalSpec, evaluation: Evaluation, objective: Objective) -> dict[str, Any]:
    """Facts of a protocol that not every evaluation has."""
    facts: dict[str, Any] = {}
    if spec.seeds > 1:
        facts["eval_seeds"] = spec.seeds
    if spec.ci_target is not None:
        width = evaluation.summary[objective.primary]["ci95"]
        facts["ci_target"] = spec.ci_target
        facts["ci_rule"] = (
            f"looked at after {FIRST_LOOK} tasks and every {LOOK_EVERY} more, up to {spec.total}; ended at "
            "the first half-width that is not above ci_target"
        )
        facts["ci_reached"] = width <= in_files(spec, objective)
    return facts


def by_seed(evaluation: Evaluation, objective: Objective) -> dict[str, Any]:
    """The primary metric for each task seed, where there are several."""
    seeds = evaluation.columns.get("eval_seed")
    if seeds is None:
        return {}
    scores = zip(seeds, evaluation.columns[objective.primary], strict=True)
    parts: dict[int, list[float]] = {}
    for seed, score in scores:
        parts.setdefault(seed, []).append(score)
    return {"by_eval_seed": {str(seed): summarise(part) for seed, part in parts.items() if len(part) > 1}}


def reliability(evaluation: Evaluation, objective: Objective) -> dict[str, Any]:
    """The reliability diagram, of an objective that has one."""
    diagram = getattr(objective, "reliability", None)
    return {"reliability": diagram(evaluation.sums)} if diagram is not None and evaluation.sums else {}


def write_evaluation(runlog: RunLog, spec: EvalSpec, source: Source, evaluation: Evaluation) -> None:
    """What results.json, which is written last, is a summary of."""
    split = spec.split
    answers = Answers.of(evaluation, source, spec) if evaluation.rows else None
    written = {f"eval_{split}.csv"}
    runlog.write_csv(f"eval_{split}.csv", evaluation.columns)
    if answers is not None:
        names = {"classes": json.dumps(answers.owners), "items": json.dumps(answers.items)}
        runlog.write(f"predictions_{split}.safetensors", dump_tensors(answers.tensors(), names))
        written.add(f"predictions_{split}.safetensors")
        if table := breakdown(answers, source.groups()):
            runlog.write_csv(f"breakdown_{split}.csv", table)
            written.add(f"breakdown_{split}.csv")
    # Those of an earlier evaluation in the same folder belong to other scores.
    for path in [path for pattern in WRITTEN for path in runlog.run_dir.glob(pattern)]:
        if path.name not in written:
            path.unlink()


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
