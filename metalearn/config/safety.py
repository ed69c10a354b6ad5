"""What a YAML may name and refer to: `_target_`, Hydra's own settings and `${…}`, judged before anything is
imported or resolved.

A configuration may come from a stranger's folder, so that nothing in it must ever run code. This file judges
names and references as text; `metalearn.build.instantiate` then judges the object that a name resolves to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

PREFIXES = ("metalearn.", "torch.optim.", "torch.nn.")
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
# Of Hydra, launchers and sweepers; Hydra itself then takes only classes that were installed as its plugins.
PLUGINS = {
    "hydra.launcher._target_": re.compile(
        r"(hydra\._internal\.core_plugins|hydra_plugins\.\w+)\.\w+\.[A-Z]\w*Launcher"
    ),
    "hydra.sweeper._target_": re.compile(
        r"(hydra\._internal\.core_plugins|hydra_plugins\.\w+)\.\w+\.[A-Z]\w*Sweeper"
    ),
}
JOB_NAME = re.compile(r"[\w-]+")


def nodes(tree: Any, path: str = "") -> Iterator[tuple[str, str, Any]]:
    """(dotted path, last key, value) of every entry of nested mappings and lists."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            name = f"{path}.{key}" if path else str(key)
            yield name, str(key), value
            yield from nodes(value, name)
    elif isinstance(tree, (list, tuple)):
        for i, value in enumerate(tree):
            yield f"{path}[{i}]", "", value
            yield from nodes(value, f"{path}[{i}]")


def is_allowed(target: str, trusted: list[str]) -> bool:
    """Whether a class of this dotted name may be imported. Nothing with two underscores is a class of
    anyone's method.
    """
    prefixes = (*PREFIXES, *(f"{package}." for package in trusted))
    return bool(NAME.fullmatch(target)) and "__" not in target and target.startswith(prefixes)


def target_problems(cfg: Mapping[str, Any], trusted: list[str]) -> list[str]:
    """Names outside the allow-list, and every other key or value through which a YAML could run code."""
    problems = [
        f"trusted={package} is no package name" for package in trusted if not NAME.fullmatch(str(package))
    ]
    for path, key, value in nodes(without_about(cfg)):
        if key == "_target_":
            problems += judge_target(path, value, trusted)
        elif key.startswith("_") and key.endswith("_"):
            problems.append(
                f"{path}: the only special key that a configuration may use is _target_; remove {key}"
            )
        if isinstance(value, str) and "${" in value:
            problems.append(
                f"{path}={value} is still an interpolation after everything was resolved; write the value "
                "itself"
            )
    return problems


def without_about(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without the prose of a recipe and of its groups, which is never built."""
    groups = {key: value for key, value in cfg.items() if key != "about"}
    return {
        key: {k: v for k, v in value.items() if k != "about"} if isinstance(value, Mapping) else value
        for key, value in groups.items()
    }


def judge_target(path: str, value: Any, trusted: list[str]) -> list[str]:
    if isinstance(value, str) and is_allowed(value, trusted):
        return []
    package = str(value).partition(".")[0]
    if isinstance(value, str) and NAME.fullmatch(value) and package not in ("metalearn", "torch"):
        return [
            f"{path}={value} is outside the trusted packages; if you trust its code, add "
            f"'trusted=[{package}]' to the command line"
        ]
    return [
        f"{path}={value} is not a class that a configuration may name; allowed are "
        f"{', '.join(p + '*' for p in PREFIXES)}"
    ]


def hydra_problems(hydra: Mapping[str, Any]) -> list[str]:
    """The same for Hydra's own settings: its launchers and sweepers only.

    Logging is not judged: a YAML may configure it only for who typed `trusted=[hydra]`.
    """
    problems = []
    for path, key, value in nodes(hydra, "hydra"):
        if key == "_target_" and not (
            path in PLUGINS and isinstance(value, str) and PLUGINS[path].fullmatch(value)
        ):
            problems.append(f"{path}={value} is not one of Hydra's launchers and sweepers")
    for name in ("searchpath", "job.env_set", "job.env_copy", "callbacks"):
        if inner(hydra, name):
            problems.append(f"hydra.{name} may not be set; use --config-dir or environment variables instead")
    job = inner(hydra, "job.name")
    if job is not None and not JOB_NAME.fullmatch(str(job)):
        problems.append(
            f"hydra.job.name={job} is the name of a log file; it may hold letters, digits, _ and - only"
        )
    return problems


def inner(tree: Any, key: str) -> Any:
    """What stands at a dotted key, None where there is nothing."""
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree
