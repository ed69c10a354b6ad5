"""What the configuration of a run folder must hold, and what it may lack because the run is older than the
key.

A new key of `trainer`, `eval`, `device` or of a new group has its default of today in older runs. Nothing
stands in for a key of `algo`, `data`, `model` or `optimizer`, from which results follow; an argument that a
class did not have then is left to the class: its own default, or a refusal if it has none.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from metalearn.config import schema
from metalearn.config.about import about_problems
from metalearn.config.interpolation import saved_problems
from metalearn.config.loader import Library
from metalearn.errors import ConfigError, raise_if
from metalearn.files import read_yaml
from metalearn.rundir import choices
from metalearn.rundir.choices import GROUPS

BUILT = ("algo", "data", "model", "optimizer")  # groups that name a class
GROWING = ("trainer", "eval", "device")  # groups whose keys have defaults
CLOSED = ("trainer", "eval")  # groups that are read as a whole
# What every metalearn has written: a configuration without one of these is damaged, not old.
ALWAYS = ("seed", "run_dir", "trusted", *BUILT, *GROWING)


def damages(saved: dict[str, Any]) -> Iterator[str]:
    """What a saved configuration lacks, and what in it has the wrong type, judged by train.yaml."""
    for group in BUILT:
        if not isinstance(saved.get(group), dict) or not isinstance(saved[group].get("_target_"), str):
            yield f"{group} names no class (_target_)"
    absent = {"optimizer"} - saved.keys()
    for name, default in primary_values().items():
        group, _, key = name.partition(".")
        exists, value = schema.lookup(saved, name)
        if exists:
            yield from schema.fit(name, None if is_reference(default) else default, value)[1]
        elif group in absent or (group not in ALWAYS and group not in saved):
            continue
        elif key and not isinstance(saved.get(group), dict):
            yield f"{group} is missing"
            absent.add(group)
        elif group in BUILT:
            yield f"{name} is missing, and results follow from it, so that no default can stand in for it"
        elif name not in defaults():
            yield f"{name} is missing"
    for name, _ in schema.leaves({group: saved[group] for group in CLOSED if group in saved}):
        if name not in primary_values():
            yield f"{name} is not a key of this version{schema.hint(name, primary_values())}"


def with_new_words(saved: dict[str, Any]) -> dict[str, Any]:
    """A saved configuration with the keys that were renamed since, under their present names."""
    for old, new in schema.RENAMED.items():
        there, value = schema.lookup(saved, old)
        if there and not schema.lookup(saved, new)[0]:
            group, _, key = old.partition(".")
            saved = with_values(
                {**saved, group: {k: v for k, v in saved[group].items() if k != key}}, {new: value}
            )
    return saved


def newer_keys(saved: dict[str, Any]) -> dict[str, Any]:
    """Dotted names and defaults of the keys that are newer than a saved configuration without damages."""
    return {name: default for name, default in defaults().items() if not schema.lookup(saved, name)[0]}


@functools.cache
def defaults() -> Mapping[str, Any]:
    """Dotted names of the keys that a run may lack, with the values that it then means. Keys of classes are
    not among them.
    """
    needed = {*ALWAYS} - {*GROWING}
    return {
        name: value
        for name, value in primary_values().items()
        if name.partition(".")[0] not in needed and not is_reference(value)
    }


def with_values(tree: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a tree with more values, by their dotted names."""
    tree = copy.deepcopy(tree)
    for name, value in values.items():
        *groups, key = name.split(".")
        functools.reduce(lambda node, group: node.setdefault(group, {}), groups, tree)[key] = value
    return tree


def is_reference(default: Any) -> bool:
    """Whether a default is another key's value."""
    return isinstance(default, str) and "${" in default


def primary_values() -> dict[str, Any]:
    """Dotted names and defaults of everything that a run reads besides the keys of its classes."""
    library = Library()
    values = {
        key: value for key, value in library.primary().items() if key not in ("defaults", "hydra", "sweep")
    }
    values["device"] = library.read("device", "auto")
    values["logger"] = library.read("logger", "none")
    values["optimizer"] = {key: library.read("optimizer", "adam")[key] for key in ("schedule", "clip")}
    return dict(schema.leaves(values))


def read_saved(run_dir: Path) -> dict[str, Any]:
    """The configuration that a run was started with. ConfigError naming everything that is damaged in it.

    A run that is older than some key has that key's default of today. Not so for `algo`, `data`, `model` and
    `optimizer`, from which results follow: there, only the arguments of a class may be left to the class.
    """
    return read_saved_with_notes(run_dir)[0]


def read_saved_with_notes(run_dir: Path) -> tuple[dict[str, Any], list[str]]:
    """The same, and a sentence for whoever goes on with a run that is older than some keys."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise ConfigError(
            f"{run_dir} is no run (it has no config.yaml); give the folder that metalearn train printed, or "
            "see metalearn ls runs"
        )
    try:
        saved = read_yaml(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; restore it from a backup") from error
    groups = with_new_words(saved) if isinstance(saved, dict) else {}
    if not any(group in groups for group in GROUPS):
        raise ConfigError(f"{path} is not the configuration of a run; restore it from a backup")
    problems = [
        *saved_problems(groups),
        *about_problems(groups),
        *choices.choice_problems(groups),
        *damages(groups),
    ]
    raise_if(f"{path} is damaged: {problem}; restore it from a backup" for problem in problems)
    newer = newer_keys(groups)
    values = ", ".join(f"{name}={schema.show(value)}" for name, value in newer.items())
    notes = (
        [f"{path} is older than {', '.join(newer)}; going on with today's defaults: {values}"]
        if newer
        else []
    )
    return {**with_values(groups, newer), choices.KEY: choices.chosen(groups)}, notes
