"""The words of a command line, one by one: choices, values, and a sentence for each that cannot be used."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from metalearn.config import compatibility, schema
from metalearn.config.hydra_parts import Override
from metalearn.config.loader import Library
from metalearn.config.schema import hint
from metalearn.errors import ConfigError
from metalearn.rundir.choices import GROUPS

CHOSEN_ANEW = ("device", "logger")  # groups of a run that is resumed


@dataclass
class Request:
    """Overrides sorted: choices of groups, values of keys, and a sentence for each that cannot be used."""

    choices: list[str] = field(default_factory=list)
    values: list[Override] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read_overrides(overrides: list[str], library: Library) -> Request:
    """Sort the words of a command line. A misspelt choice is replaced by what was probably meant, to check
    the rest.
    """
    request = Request()
    for text in overrides:
        try:
            [override] = library.parse([text])
        except ConfigError as error:
            request.problems += error.problems
            continue
        problem = form_problem(override)
        if (
            problem is None
            and override.key_or_group in library.groups
            and not isinstance(override.value(), dict)
        ):
            problem, choice = judge_choice(override, library)
            request.choices += [choice] if choice else []
        elif problem is None:
            request.values.append(override)
        request.problems += [problem] if problem else []
    return request


def form_problem(override: Override) -> str | None:
    """What is wrong with the form of an override, whatever it names."""
    text, key = written(override), override.key_or_group
    if override.is_add() or override.is_force_add():
        return (
            f"{text}: keys cannot be added, the YAML lists all of them; to set one, write {text.lstrip('+')}"
        )
    if override.is_delete() and key in GROUPS:
        return (
            f"{text}: a group cannot be removed; choose another {key} with {key}=NAME, see: metalearn ls "
            f"{key}"
        )
    if override.is_delete():
        return f"{text}: keys cannot be removed; to switch one off, write {key}=null"
    if key == "hydra.searchpath":  # composing with it would already import what it names
        return "hydra.searchpath may not be set; use --config-dir or METALEARN_CONFIG_DIR instead"
    if override.package is not None:
        return f"{text}: a group cannot be moved to another place; write {key}=…"
    if override.is_sweep_override():
        return f"{text} gives several values; add -m to run each of them, or write [a,b] for a list"
    return None


def written(override: Override) -> str:
    """The words of the command line that were parsed."""
    return str(override.input_line)


def judge_choice(override: Override, library: Library) -> tuple[str | None, str | None]:
    """What is wrong with the choice of a group, and the choice to go on with."""
    group, value = override.key_or_group, override.value()
    if value is None and group == "experiment":
        return None, None
    options = library.options(group)
    if isinstance(value, str) and value in options:
        return None, f"{group}={value}"
    if not options:
        return f"{written(override)}: there is no {group} to choose yet", None
    if group == "hydra/launcher" and value == "joblib":
        return (
            f"{written(override)} needs a plugin that is not installed; install it with: pip install "
            "'metalearn-runner[joblib]'",
            None,
        )
    meant = schema.closest(str(value), options)
    question = f"; did you mean {group}={meant}?" if meant else ";"
    return (
        f"{group}={schema.show(value)} does not exist{question} choices: {', '.join(options)}",
        f"{group}={meant}" if meant else None,
    )


def known_values(
    values: list[Override], allowed: dict[str, Any], library: Library
) -> tuple[list[str], list[str]]:
    """The overrides whose key exists, and a sentence with the closest match for each of the others."""
    known, problems = [], []
    names = [name for name in schema.known_keys(allowed) if not name.startswith("hydra.")]
    for override in values:
        key = override.key_or_group
        exists, _ = schema.lookup(allowed, key)
        if key in compatibility.MOVED:
            problems.append(moved(override))
            continue
        if key.replace(".", "/") in library.groups and not isinstance(override.value(), dict):
            problems.append(group_by_its_key(override, library))
            continue
        candidates = (
            schema.known_keys(allowed["hydra"], "hydra.")
            if key.startswith("hydra.") and "hydra" in allowed
            else [*names, *GROUPS]
        )
        if exists and "about" not in key.split("."):
            known.append(written(override))
        else:
            homes = [f"{key.partition('.')[0]}={option}" for option in options_with(key, library)]
            known_from = f"; it is a key of {', '.join(homes)}" if homes else hint(key, candidates)
            problems.append(
                f"{written(override)}: {key} is not a key{' of this choice' if homes else ''}{known_from}"
            )
    return known, problems


def group_by_its_key(override: Override, library: Library) -> str:
    """The answer to a choice of a nested group that is written as the value of a key."""
    key, value = override.key_or_group, override.value()
    group = key.replace(".", "/")
    options = library.options(group)
    meant = value if value in options else schema.closest(str(value), options)
    return (
        f"{written(override)}: {key} is a group; write {group}={meant or 'NAME'}, "
        f"choices: {', '.join(options)}"
    )


def options_with(key: str, library: Library) -> list[str]:
    """The options of the key's group that have it."""
    group, _, rest = key.partition(".")
    options = library.options(group) if rest and group in GROUPS else []
    return [option for option in options if schema.lookup(library.read(group, option), rest)[0]]


def moved(override: Override) -> str:
    """The answer to a key that has another name now."""
    key, new = override.key_or_group, compatibility.MOVED[override.key_or_group]
    words, value = compatibility.REWORDED.get(new, {}), override.value()
    word = words.get(value) if isinstance(value, str | bool) else None
    return (
        f"{written(override)}: {key} is now {new}; write {new}={word or override.get_value_element_as_str()}"
    )


def fixed_group(override: Override) -> str | None:
    """The nested group that a key is, or once was, the choice of, which a run does not make anew."""
    key = override.key_or_group
    group = compatibility.MOVED.get(key, key.replace(".", "/"))
    nested = "/" in group and group in GROUPS and group not in CHOSEN_ANEW
    return group if nested and not isinstance(override.value(), dict) else None


def fixed(word: str, group: str) -> str:
    """The answer to another choice for a run that has begun."""
    return f"{word}: {group} was fixed when the run began; start a new run with metalearn train to change it"
