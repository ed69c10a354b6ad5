"""What results.json of a run holds: the shape on which everything that reads results relies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

LARGEST = 10**300  # whole number that is still a float
DEEPEST = 50  # levels of a protocol
SPLITS = ("train", "val", "test")
NAMES = ("algo", "data", "model", "experiment", "trains_on", "tasks_sha256")  # words, or null


def problem_of(results: dict[str, Any]) -> str:
    """What is not as a run writes it, in a few words; empty if nothing is. Keys that an older run does not
    have may be missing.
    """
    return next(_problems(results), "")


def is_number(value: Any) -> bool:
    """Whether a value is a number or null, which stands for one that JSON cannot write."""
    if isinstance(value, float) or value is None:
        return True
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST


def _problems(results: dict[str, Any]) -> Iterator[str]:
    for name in ("primary", "split", "episodes", "step", "seed", "metrics", "protocol"):
        if name not in results:
            yield f"it has no {name}"
    if results["split"] not in SPLITS:
        yield f"split is none of {', '.join(SPLITS)}"
    for name in ("episodes", "step", "seed"):
        if not isinstance(results[name], int) or isinstance(results[name], bool):
            yield f"{name} is no whole number"
    for name in NAMES:
        if not isinstance(results.get(name), (str, type(None))):
            yield f"{name} is no name"
    for name in ("metrics", "protocol", "formats", "reliability"):
        if not isinstance(results.get(name, {}), dict):
            yield f"{name} is not several keys"
    if _is_deep(results["protocol"], DEEPEST):
        yield "protocol is nested too deeply"
    if not isinstance(results["primary"], str) or results["primary"] not in results["metrics"]:
        yield "primary is none of its metrics"
    for name, value in results["metrics"].items():
        if not (
            isinstance(value, dict) and is_number(value.get("mean", "")) and is_number(value.get("ci95", ""))
        ):
            yield f"metrics.{name} is no mean with ci95"
    for name, form in results.get("formats", {}).items():
        if not isinstance(form, dict) or not _is_format(form):
            yield f"formats.{name} is no format"
    free = results.get("may_differ")
    if free is not None and not (isinstance(free, list) and all(isinstance(word, str) for word in free)):
        yield "may_differ is no list of names"


def _is_format(form: dict[str, Any]) -> bool:
    return (
        isinstance(form.get("percent"), bool)
        and isinstance(form.get("unit"), str)
        and isinstance(form.get("higher_is_better", True), bool)
    )


def _is_deep(value: Any, left: int) -> bool:
    if not isinstance(value, (dict, list)):
        return False
    return not left or any(_is_deep(part, left - 1) for part in _parts(value))


def _parts(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value
