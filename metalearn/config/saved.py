"""What the configuration of a run folder must hold, and what it may lack because the run is older than the
key.

A key of `trainer`, `eval`, `device` or of a group that is newer than a run has there the value that does what
was done before it (`compatibility.BEFORE`), and so has a key that its class has gained (`GAINED`), or whose
value the constructor of its class filled in then (`CONSTRUCTED`). Nothing stands in for another key of
`algo`, `data`, `model` or `optimizer`, from which results follow.
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from metalearn.config import plugins, ranges, schema
from metalearn.config.about import about_problems
from metalearn.config.compatibility import BEFORE, RENAMED, SAVED, as_today, left_out, new_name
from metalearn.config.interpolation import saved_problems
from metalearn.config.loader import Library
from metalearn.config.safety import nodes
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
            allowed = schema.common_ranges().get(name)
            yield from schema.fit(name, None if is_reference(default) else default, value, allowed)[1]
        elif group in absent or (group not in ALWAYS and group not in saved):
            continue
        elif key and not isinstance(saved.get(group), dict):
            yield f"{group} is missing"
            absent.add(group)
        elif group in BUILT:
            yield f"{name} is missing, and results follow from it, so that no default can stand in for it"
        elif name not in BEFORE:
            yield f"{name} is missing"
    for name, _ in schema.leaves({group: saved[group] for group in CLOSED if group in saved}):
        if name not in primary_values():
            yield f"{name} is not a key of this version{schema.hint(name, primary_values())}"


def with_new_words(saved: dict[str, Any]) -> dict[str, Any]:
    """A saved configuration with the keys that were renamed since, under their present names."""
    for old, new in RENAMED.items():
        there, value = schema.lookup(saved, old)
        if there and not schema.lookup(saved, new)[0]:
            group, _, key = old.partition(".")
            saved = with_values(
                {**saved, group: {k: v for k, v in saved[group].items() if k != key}},
                dict([new_name(old, value)]),
            )
    return saved


def newer_keys(saved: dict[str, Any]) -> dict[str, Any]:
    """Dotted names of the keys that are newer than a saved configuration without damages, with the values
    that do what was done before them.
    """
    before = {**BEFORE, **left_out(dict(schema.leaves(saved)))}
    return {name: value for name, value in before.items() if not schema.lookup(saved, name)[0]}


def marked(saved: dict[str, Any]) -> dict[str, Any]:
    """A saved configuration whose groups say that they are, where only the classes that they name can tell
    which keys are newer than the run.
    """
    found = dict(saved)
    for group in BUILT:
        node = saved[group]
        ours = node["_target_"].startswith(("metalearn.", "torch."))
        if not ours or [key for _, key, _ in nodes(node)].count("_target_") > 1:
            found[group] = {**node, "about": {**(node.get("about") or {}), SAVED: True}}
    return found


@functools.cache
def defaults() -> Mapping[str, Any]:
    """Dotted names and defaults of the keys of trainer, eval, device and logger. A job of a sweep is known by
    what differs from them, so that a new key makes no new jobs.
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


def primary_values() -> Mapping[str, Any]:
    """Dotted names and defaults of everything that a run reads besides the keys of its classes."""
    # One run's configuration asks for them twenty times; a folder of one's own may change meanwhile.
    return _primary_values() if os.environ.get("METALEARN_CONFIG_DIR") else _packaged_values()


@functools.cache
def _packaged_values() -> Mapping[str, Any]:
    return _primary_values()


def _primary_values() -> Mapping[str, Any]:
    library = Library()
    values = {
        key: value for key, value in library.primary().items() if key not in ("defaults", "hydra", "sweep")
    }
    values["device"] = library.read("device", "auto")
    values["logger"] = library.read("logger", "none")
    values["optimizer"] = {
        "schedule": library.read("optimizer/schedule", "constant"),
        "clip": library.read("optimizer/clip", "none"),
    }
    return dict(schema.leaves(values))


def read_saved(run_dir: Path) -> dict[str, Any]:
    """The configuration that a run was started with. ConfigError naming everything that is damaged in it.

    A run that is older than some key has the value there that does what was done before it. Not so for
    `algo`, `data`, `model` and `optimizer`, from which results follow. Ranges are the run's own, if any.
    """
    return read_with_newer(run_dir)[0]


def read_saved_with_notes(run_dir: Path) -> tuple[dict[str, Any], list[str]]:
    """The same, and a sentence for whoever goes on with a run that is older than some keys."""
    cfg, newer = read_with_newer(run_dir)
    if not newer:
        return cfg, []
    values = ", ".join(f"{name}={schema.show(value)}" for name, value in newer.items())
    return cfg, [
        f"{run_dir / 'config.yaml'} is older than {', '.join(newer)}; going on with what was done before: "
        f"{values}"
    ]


def read_with_newer(run_dir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `read_saved` returns, and of it the keys that the run is older than, with their values."""
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
        *(f"{name}: {problem}" for name, problem in ranges.problems_of_plugins(groups)),
        *damages(groups),
    ]
    raise_if(f"{path} is damaged: {problem}; restore it from a backup" for problem in problems)
    groups = plugins.with_todays(as_today(groups))
    newer = newer_keys(groups)
    return {**marked(with_values(groups, newer)), choices.KEY: choices.chosen(groups)}, newer
