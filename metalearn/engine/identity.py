"""Which keys make a run the run that it is, and which may change when it is resumed.

Free to change: `device.*` (bits may then differ), the logger, how long to train, and what is only looked at: logging, saving,
what to keep, what a non-finite loss does, and the final evaluation. Everything else is science: weights or recorded
numbers follow from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from metalearn.errors import ConfigError, DataError

FREE = (
    "run_dir",
    "trusted",
    "device",
    "logger",
    "choices",  # names, from which nothing follows
    "trainer.outer_steps",
    "trainer.checkpoint_every",
    "trainer.keep_last",
    "trainer.on_nan",
    "trainer.shutdown_timeout_s",
    "trainer.dry_run",
)
FREE_EVAL = ("eval.episodes", "eval.split", "eval.checkpoint", "eval.batch_size")
PROSE = ("about",)
METHOD = ("algo", "data", "model", "optimizer")  # what a run lacks here is never filled in
# Keys of `data` that say who is in which split: with others, a run would be judged on what it was trained on.
DIVISION = ("partition", "partition_seed", "fractions", "min_images", "num_classes", "num_users")
# Keys of `data` that leave the data and its division as they are.
SIZES = ("root", "cache_dir", "way", "shot", "query_shot", "train")


def science(cfg: dict[str, Any]) -> dict[str, Any]:
    """{dotted key: value} of everything that a resumed run must share with its beginning."""
    return {key: value for key, value in _leaves(cfg) if not _is_free(key)}


def refuse_new_science(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise ConfigError with a diff if two results of `science` differ. A key of the trainer that is newer than `old` says nothing."""
    newer = {key for key in new if key not in old and key.partition(".")[0] not in METHOD}
    changed = [key for key in sorted({*old, *new} - newer) if old.get(key) != new.get(key)]
    if not changed:
        return
    diff = "\n".join(f"  {key}: {old.get(key)} -> {new.get(key)}" for key in changed)
    allowed = ", ".join([*(f"{name}.*" if name == "device" else name for name in FREE[2:-1]), *FREE_EVAL])
    raise ConfigError(
        f"a resumed run must keep its method and data, but:\n{diff}\nStart a new run with metalearn train. These may change: {allowed}"
    )


def refuse_leaks(old: dict[str, Any], new: dict[str, Any], trained_on: str, found: str) -> None:
    """Raise if an evaluation could meet, in its split, classes or users that the run was trained on.

    old, new: the `data` nodes of the run and of the evaluation. trained_on, found: sha256 of the data then and now.
    """
    changed = [key for key in new if new[key] != old.get(key)]
    moved = [f"data.{key}={new[key]} (was {old.get(key)})" for key in changed if key in DIVISION]
    if moved:
        raise ConfigError(
            f"{', '.join(moved)}: the split would hold what this run was trained on; leave it as it was, or train a run with it"
        )
    if trained_on != found and set(changed) <= set(SIZES):
        raise DataError(
            f"the data is not what this run was trained on (sha256 {found[:12]}…, was {trained_on[:12]}…), so that its split may "
            "hold what was trained on; restore the data, or train a new run"
        )


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if key in PROSE:
            continue
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in (*FREE, *FREE_EVAL))
