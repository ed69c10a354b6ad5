"""Which classes a YAML may name: `_target_` behind an allow-list, before anything is imported.

A configuration may come from a stranger's folder, so that a name in it must never run code. This file judges names
(prefixes); `metalearn.build` then judges the object that a name resolves to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

PREFIXES = ("metalearn.", "torch.optim.", "torch.nn.")
HYDRA_PREFIXES = ("hydra._internal.core_plugins.", "hydra_plugins.")
LOGGING = re.compile(r"logging\.(handlers\.)?\w*(Handler|Formatter)")
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


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
    """Whether a class of this dotted name may be imported."""
    return bool(NAME.fullmatch(target)) and target.startswith((*PREFIXES, *(f"{package}." for package in trusted)))


def target_problems(cfg: Mapping[str, Any], trusted: list[str]) -> list[str]:
    """Names outside the allow-list, and every other key or value through which a YAML could run code."""
    problems = [f"trusted={package} is no package name" for package in trusted if not NAME.fullmatch(str(package))]
    for path, key, value in nodes(without_about(cfg)):
        if key == "_target_":
            problems += judge_target(path, value, trusted)
        elif key.startswith("_") and key.endswith("_"):
            problems.append(f"{path}: the only special key that a configuration may use is _target_; remove {key}")
        if isinstance(value, str) and "${" in value:
            problems.append(f"{path}={value} is still an interpolation after everything was resolved; write the value itself")
    return problems


def without_about(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without the prose of a recipe and of its groups, which is never built."""
    groups = {key: value for key, value in cfg.items() if key != "about"}
    return {key: {k: v for k, v in value.items() if k != "about"} if isinstance(value, Mapping) else value for key, value in groups.items()}


def judge_target(path: str, value: Any, trusted: list[str]) -> list[str]:
    if isinstance(value, str) and is_allowed(value, trusted):
        return []
    package = str(value).partition(".")[0]
    if isinstance(value, str) and NAME.fullmatch(value) and package not in ("metalearn", "torch"):
        return [f"{path}={value} is outside the trusted packages; if you trust its code, add 'trusted=[{package}]' to the command line"]
    return [f"{path}={value} is not a class that a configuration may name; allowed are {', '.join(p + '*' for p in PREFIXES)}"]


def hydra_problems(hydra: Mapping[str, Any]) -> list[str]:
    """The same for Hydra's own settings: launchers, sweepers, and logging's handlers and formatters only."""
    problems = []
    for path, key, value in nodes(hydra, "hydra"):
        if key == "_target_" and not (isinstance(value, str) and NAME.fullmatch(value) and value.startswith(HYDRA_PREFIXES)):
            problems.append(f"{path}={value} is not one of Hydra's launchers and sweepers")
        if key in ("()", "class") and not (isinstance(value, str) and LOGGING.fullmatch(value)):
            problems.append(f"{path}={value} is not one of logging's handlers and formatters")
        if isinstance(value, str) and value.startswith(("ext://", "cfg://")) and value not in STREAMS:
            problems.append(f"{path}={value} is not one of {', '.join(STREAMS)}")
    for name in ("searchpath", "job.env_set", "job.env_copy"):
        node: Any = hydra
        for part in name.split("."):
            node = (node or {}).get(part)
        if node:
            problems.append(f"hydra.{name} may not be set; use --config-dir or environment variables instead")
    return problems
