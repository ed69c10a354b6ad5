"""Which keys make a run the run that it is, and which may change when it is resumed.

Free to change: `device.*` (bits may then differ), how long to train, and what is only looked at: logging, saving,
what to keep, and the final evaluation. Everything else is science: weights or recorded numbers follow from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from metalearn.errors import ConfigError

FREE = ("run_dir", "trusted", "device", "trainer.outer_steps", "trainer.checkpoint_every", "trainer.keep_last", "trainer.dry_run")
FREE_EVAL = ("eval.episodes", "eval.split", "eval.checkpoint", "eval.batch_size")
PROSE = ("about",)


def science(cfg: dict[str, Any]) -> dict[str, Any]:
    """{dotted key: value} of everything that a resumed run must share with its beginning."""
    return {key: value for key, value in _leaves(cfg) if not _is_free(key)}


def refuse_new_science(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise ConfigError with a diff if two results of `science` differ."""
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    if not changed:
        return
    diff = "\n".join(f"  {key}: {old.get(key)} -> {new.get(key)}" for key in changed)
    allowed = ", ".join([*(f"{name}.*" if name == "device" else name for name in FREE[2:-1]), *FREE_EVAL])
    raise ConfigError(
        f"a resumed run must keep its method and data, but:\n{diff}\nStart a new run with metalearn train. These may change: {allowed}"
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
