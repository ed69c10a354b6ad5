"""What the values of a configuration may be: ranges, choices, and rules between keys. Checked without torch.

The tables hold the range of a shared key, and the words that a key chooses from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metalearn.schema import hint, leaves, show

# Lowest value that is allowed; exclusive where the table says so.
AT_LEAST: dict[str, int] = {
    "seed": 0,
    "trainer.outer_steps": 0,
    "trainer.meta_batch_size": 1,
    "trainer.batch_size": 1,
    "trainer.log_every": 1,
    "trainer.eval_every": 1,
    "trainer.checkpoint_every": 1,
    "trainer.keep_last": 1,
    "trainer.keep_best": 1,
    "trainer.patience": 1,
    "trainer.shutdown_timeout_s": 1,
    "eval.episodes": 2,
    "eval.val_episodes": 2,
    "eval.seed": 0,
    "eval.batch_size": 1,
    "data.way": 2,
    "data.shot": 1,
    "data.query_shot": 1,
    "data.train.way": 2,
    "data.train.shot": 1,
    "data.train.query_shot": 1,
    "data.seed": 0,
    "data.partition_seed": 0,
    "data.image_size": 1,
    "data.min_images": 0,
    "data.num_classes": 1,
    "data.num_drawings": 1,
    "data.num_items": 1,
    "data.num_users": 1,
    "data.min_ratings": 1,
    "data.max_ratings": 1,
    "data.channels": 1,
    "model.channels": 1,
    "model.embedding_dim": 1,
    "algo.adaptation_steps": 0,
    "algo.eval_adaptation_steps": 0,
    "algo.inner_batch_size": 1,
    "algo.eval_inner_batch_size": 1,
    "optimizer.weight_decay": 0,
    "optimizer.schedule.final": 0,
    "optimizer.schedule.every": 1,
    "device.chunk": 0,
    "device.threads": 1,
    "device.ranks": 1,
}
LARGEST_SEED = 2**63 - 1  # the tasks are hashed from int64
AT_MOST = {
    **dict.fromkeys(("seed", "eval.seed", "data.seed", "data.partition_seed"), LARGEST_SEED),
    "trainer.shutdown_timeout_s": 86_400,  # a day
}
ABOVE_ZERO = {"algo.inner_lr", "optimizer.lr", "optimizer.schedule.gamma", "optimizer.clip.norm", "optimizer.clip.value"}

CHOICES: dict[str, tuple[str, ...]] = {
    "trainer.on_nan": ("stop", "skip", "rollback"),
    "eval.split": ("train", "val", "test"),
    "optimizer.schedule.name": ("constant", "cosine", "linear", "step"),
    "device.plan": ("auto", "loop", "vmap"),
    "device.compile": ("auto", "true", "false"),
    "device.precision": ("float32", "float64", "bfloat16"),
}
SPLITS = ("train", "val", "test")


def value_problems(cfg: Mapping[str, Any]) -> list[str]:
    """Values out of range, unknown words, and keys that contradict each other. Wrong types are not judged here."""
    problems = []
    for name, value in leaves(cfg):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number and value < AT_LEAST.get(name, value):
            problems.append(f"{name}={value} must be at least {AT_LEAST[name]}")
        if number and value > AT_MOST.get(name, value):
            problems.append(f"{name}={value} must be at most {AT_MOST[name]}")
        if number and name in ABOVE_ZERO and value <= 0:
            problems.append(f"{name}={value} must be greater than 0")
        if isinstance(value, str) and value not in CHOICES.get(name, (value,)):
            problems.append(f"{name}={value} is none of {', '.join(CHOICES[name])}{hint(value, CHOICES[name])}")
    return problems + rules(cfg)


def rules(cfg: Mapping[str, Any]) -> list[str]:
    """Rules between keys, and dials whose other settings do not exist yet."""
    get = dict(leaves(cfg)).get
    problems = []
    problems += rank_problems(get("device.ranks"), get("trainer.meta_batch_size"))
    if get("optimizer.clip.norm") is not None and get("optimizer.clip.value") is not None:
        problems.append("optimizer.clip.norm and optimizer.clip.value are both set; set one of them to null")
    gamma = get("optimizer.schedule.gamma")
    if isinstance(gamma, float) and gamma > 1:
        problems.append(f"optimizer.schedule.gamma={gamma} would raise the learning rate; it must be at most 1")
    checkpoint = get("eval.checkpoint")
    if isinstance(checkpoint, str) and checkpoint not in ("best", "last") and not checkpoint.removeprefix("step-").isdecimal():
        problems.append(f"eval.checkpoint={checkpoint} is none of best, last, step-NUMBER{hint(checkpoint, ['best', 'last'])}")
    rotations = get("data.rotations")
    for split in rotations if isinstance(rotations, list) else []:
        if split not in SPLITS:
            problems.append(f"data.rotations names {show(split)}, which is none of train, val, test{hint(str(split), SPLITS)}")
    return problems


def rank_problems(ranks: Any, tasks: Any) -> list[str]:
    if isinstance(ranks, str) and ranks != "auto":
        return [f"device.ranks={ranks} is neither a whole number nor auto{hint(ranks, ['auto'])}"]
    if type(ranks) is int and type(tasks) is int and 1 <= tasks < ranks:
        return [
            f"device.ranks={ranks} but trainer.meta_batch_size={tasks}: a rank without a task has nothing to do; use device.ranks={tasks}"
        ]
    return []


def unkept_problems(cfg: Mapping[str, Any]) -> list[str]:
    """A checkpoint for the final evaluation of training that may be gone by then."""
    checkpoint = dict(leaves(cfg)).get("eval.checkpoint")
    if not isinstance(checkpoint, str) or not checkpoint.removeprefix("step-").isdecimal():
        return []
    return [
        f"eval.checkpoint={checkpoint}: training keeps its best and its newest checkpoints only, and judges one of them; "
        f"choose best or last, and judge another one that was kept with: metalearn eval RUN_DIR eval.checkpoint={checkpoint}"
    ]
