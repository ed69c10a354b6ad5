"""The metadata that stands beside the tensors of a checkpoint, checked when it is read.

Its sha256 only says that it is as somebody wrote it: whoever changes a checkpoint can write that anew too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metalearn.errors import CheckpointError

COUNTS = (
    "step",
    "evaluated_step",
    "window_count",
    "metrics_offset",
    "shift",
    "rollbacks",
    "refused",
    "refused_row",
)
KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(COUNTS, (int,)),
    **dict.fromkeys(("record", "optimizer", "chunks", "units"), (list,)),
    **dict.fromkeys(("config", "plan"), (dict,)),
    **dict.fromkeys(("data_sha256", "splits_sha256"), (str,)),
    "best": (int, type(None)),
}
PLAN = {"name": "loop", "chunk": 0, "compile": False}
LARGEST_CHUNK = 2**31
LARGEST_COUNT = 2**50  # the tasks are numbered in int64


class Metadata(dict[str, Any]):
    """Metadata that was read. CheckpointError, not KeyError, for one that is not there."""

    def __init__(self, metadata: dict[str, Any], path: Path) -> None:
        super().__init__(metadata)
        self.path = path

    def __missing__(self, name: str) -> Any:
        raise CheckpointError(f"{self.path.parent} is not valid: its {self.path.name} says nothing of {name}")


def checked(metadata: Any, step: int, path: Path) -> Metadata:
    """The metadata of a step, from the file at path. ValueError or TypeError for some that a run could not go
    on with.
    """
    if not isinstance(metadata, dict):
        raise ValueError(f"{path.name} holds a {type(metadata).__name__}")
    for name, kinds in KINDS.items():
        if name in metadata and (not isinstance(metadata[name], kinds) or isinstance(metadata[name], bool)):
            raise ValueError(f"{path.name}: {name} is {short(metadata[name])}")
    if not isinstance(metadata.get("scheduled", True), bool):
        raise ValueError(f"{path.name}: scheduled is {short(metadata['scheduled'])}")
    if metadata.get("step", step) != step or any(
        not 0 <= metadata.get(name, 0) < LARGEST_COUNT for name in COUNTS
    ):
        raise ValueError(f"{path.name} is of another step, or of none")
    for number, value in metadata.get("record", []):
        if not isinstance(number, int) or not isinstance(value, (int, float, type(None))):
            raise ValueError(f"{path.name}: a validation at step {short(number)} gave {short(value)}")
    for parameter, key, value in metadata.get("optimizer", []):
        if not isinstance(parameter, int) or not isinstance(key, str) or isinstance(value, (list, dict)):
            raise ValueError(f"{path.name}: the optimizer's {short(key)} is {short(value)}")
    for unit in metadata.get("units", []):
        if not isinstance(unit, list) or [*map(type, unit)] != [str, int, int, bool, int] or unit[-1] < 1:
            raise ValueError(f"{path.name}: an evaluation took {short(unit)} tasks at once")
    if not all(type(chunk) is int and chunk in range(LARGEST_CHUNK) for chunk in metadata.get("chunks", [])):
        raise ValueError(f"{path.name}: the chunks are {short(metadata['chunks'])}")
    if not is_plan(metadata.get("plan", PLAN)):
        raise ValueError(f"{path.name}: the plan is {short(metadata['plan'])}")
    return Metadata(metadata, path)


def is_scheduled(metadata: dict[str, Any]) -> bool:
    """Whether a run that is never stopped has this checkpoint too. Older versions did not say."""
    return bool(metadata.get("scheduled", True))


def is_plan(plan: dict[str, Any]) -> bool:
    """Whether these are the dials of a way to map tasks."""
    right = {
        "name": plan.get("name") in ("loop", "vmap"),
        "chunk": plan.get("chunk", -1) in range(LARGEST_CHUNK),
    }
    return plan.keys() == PLAN.keys() and all(right.values()) and isinstance(plan["compile"], bool)


def short(value: Any) -> str:
    return f"{str(value)[:40]!r}"
