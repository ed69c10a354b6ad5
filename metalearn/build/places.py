"""Where the data of a run lies. It goes on from wherever they were moved to, as long as their sha256 is
equal.

The class of a source says which of its keys name places (`Source.locations`). config.yaml keeps what was
typed, and env.json the absolute paths that it meant, which a relative one still means, wherever one works,
for as long as they exist.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from metalearn.build.instantiate import resolve
from metalearn.core import Location, Source
from metalearn.errors import ConfigError, DataError
from metalearn.rundir.log import RunLog


def places_of(cfg: Mapping[str, Any]) -> dict[str, Location]:
    """The keys of the data that may name places, by dotted name. ConfigError for a class that cannot be
    imported.
    """
    return {key: location for key, _, location in _found(cfg["data"], cfg["trusted"], "data")}


def absolute_paths(cfg: Mapping[str, Any]) -> dict[str, str]:
    """What the places of a configuration mean from the present working folder, for env.json."""
    return {key: os.path.abspath(os.path.expanduser(value)) for key, value, _ in _paths(cfg)}


def settled(
    cfg: dict[str, Any],
    saved: Mapping[str, Any],
    run_dir: Path,
    overrides: Sequence[str] = (),
    advice: str = "say where it is with {key}=PATH",
) -> dict[str, Any]:
    """The configuration to build from: as cfg, with relative places taken from the run's env.json, or else
    from the working folder.

    saved: config.yaml of the run. overrides: words of the command line; a place that was just typed means
    what it says.
    advice: for whom the data is gone, which raises DataError.
    """
    typed = {word.partition("=")[0] for word in overrides}
    cfg = {**cfg, "data": copy.deepcopy(cfg["data"])}
    typed_then = {key: value for key, value, _ in _paths({**saved, "trusted": cfg["trusted"]})}
    recorded = (RunLog(run_dir).read_json("env.json") or {}).get("locations")
    recorded = recorded if isinstance(recorded, dict) else {}
    problems = []
    for key, node, location in _found(cfg["data"], cfg["trusted"], "data"):
        value = node.get(location.key)
        if value is None or value != typed_then.get(key) or not typed.isdisjoint({key, "data"}):
            continue
        there = None if os.path.isabs(os.path.expanduser(value)) else recorded.get(key)
        if isinstance(there, str) and os.path.isabs(there) and os.path.exists(there):
            # first: what bears the same name in the working folder is not the run's
            node[location.key] = there
        elif not location.made and not os.path.exists(os.path.expanduser(value)):
            problems.append(f"{_lost(key, value, there)}; {advice.format(key=key)}")
    if problems:
        raise DataError("\n".join(problems))
    return cfg


def moved_places(old: Mapping[str, Any], new: Mapping[str, Any]) -> set[str]:
    """The keys that name a place in both configurations: what lies there is compared by its sha256."""
    values = [{f"data.{key}": value for key, value in cfg["data"].items()} for cfg in (old, new)]
    return {
        key for key, place in places_of(new).items() if all(place.holds(node.get(key)) for node in values)
    }


def without_words(overrides: list[str], places: Collection[str]) -> list[str]:
    """The words of a command line that do more than to say where the data lie."""
    return [word for word in overrides if word.partition("=")[0] not in places]


def _lost(key: str, value: str, there: Any) -> str:
    if os.path.isabs(os.path.expanduser(value)):
        return f"{key}={value} is not there any more"
    here = os.path.abspath(value)
    if isinstance(there, str) and there != here:
        return f"{key}={value} is neither at {here} nor at {there}, where this run found it"
    return f"{key}={value} is not at {here}"


def _paths(cfg: Mapping[str, Any]) -> Iterator[tuple[str, str, Location]]:
    """(dotted key, path, location) of every place that a configuration names."""
    for key, node, location in _found(cfg["data"], cfg["trusted"], "data"):
        value = node.get(location.key)
        if value is not None and location.holds(value):
            yield key, value, location


def _found(tree: Any, trusted: list[str], path: str) -> Iterator[tuple[str, dict[str, Any], Location]]:
    """(dotted key, the mapping that has it, location) for the class of a source and of those within it."""
    if not isinstance(tree, dict):
        return
    target = tree.get("_target_")
    cls = resolve(f"{path}._target_", target, object, trusted) if isinstance(target, str) else object
    for location in cls.locations if issubclass(cls, Source) else ():
        if not isinstance(location, Location):
            what = f"{path}._target_={target}: its locations hold {location!r}"
            raise ConfigError(f"{what}; expected metalearn.core.Location(KEY)")
        yield f"{path}.{location.key}", tree, location
    for key, value in tree.items():
        yield from _found(value, trusted, f"{path}.{key}")
