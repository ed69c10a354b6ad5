"""From a `_target_` to the class that it names, and from a group's keys to an object of it.

The names in a configuration passed the allow-list as text; here the object that a name resolves to must be a
class of the right kind whose own module is allowed, so that no import inside an allowed module is a way
around the list.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from hydra.errors import HydraException
from hydra.utils import instantiate
from torch import nn

from metalearn.config.compatibility import SAVED, earlier
from metalearn.config.safety import PREFIXES, is_allowed, nodes, target_problems
from metalearn.config.schema import show
from metalearn.core import Algorithm, Source
from metalearn.errors import ConfigError, raise_if
from metalearn.loggers import Logger

log = logging.getLogger(__name__)

Config = dict[str, Any]
BASES: dict[str, type] = {
    "algo": Algorithm,
    "data": Source,
    "model": nn.Module,
    "optimizer": torch.optim.Optimizer,
    "logger": Logger,
}
# Keys of a group that steer the run and are no arguments of its class.
NOT_ARGUMENTS = {"optimizer": ("schedule", "clip")}


def construct(cfg: Config, group: str, **given: Any) -> Any:
    """The object that a group's `_target_` names, from its keys and the given arguments. Sources within it
    get the device too, and classes of a saved run what they did before they had a key.
    """
    dropped = ("about", *NOT_ARGUMENTS.get(group, ()))
    node = {key: value for key, value in cfg[group].items() if key not in dropped}
    raise_if(target_problems({group: node}, cfg["trusted"]))
    cls = resolve(f"{group}._target_", node["_target_"], BASES[group], cfg["trusted"])
    within = classes_within(node, group, cfg["trusted"])
    if (cfg[group].get("about") or {}).get(SAVED):
        node = with_keys(node, group, newer_keys(node, group, {group: cls, **within}))
    if "device" in given:
        sources = [path for path, kind in within.items() if issubclass(kind, Source)]
        node = with_keys(node, group, {path: {"device": given["device"]} for path in sources})
    # Bound first, called second: Hydra would turn the given arguments into configuration nodes and wrap their
    # errors.
    try:
        factory = instantiate({**node, "_partial_": True}, _convert_="all")
        arguments_of(cls).bind(*factory.args, **factory.keywords, **given)
    except (HydraException, TypeError) as error:
        raise ConfigError(
            f"{group}: {node['_target_']} cannot be built from its YAML: {str(error).splitlines()[0]}"
        ) from error
    try:
        return factory(**given)
    except ValueError as error:  # of a class that is not ours, it names no key
        says_where = any(f"{group}{mark}" in str(error) for mark in ".=")
        raise ConfigError(str(error) if says_where else f"{group}: {error}") from error


def arguments_of(cls: type) -> inspect.Signature:
    """Of a constructor; `**dials` stand for the arguments of the class that it derives from.

    One that is wrapped, with `*args` too, may be given anything.
    """
    own, base = inspect.signature(cls), cls.__mro__[1]
    kinds = {p.kind for p in own.parameters.values()}
    if (
        kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
        != {inspect.Parameter.VAR_KEYWORD}
        or getattr(base, "__init__", None) is object.__init__
    ):
        return own
    named = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    further = [p for p in arguments_of(base).parameters.values() if p.name not in own.parameters]
    return own.replace(parameters=sorted([*named, *further], key=lambda p: p.kind))


def classes_within(node: Config, group: str, trusted: list[str]) -> dict[str, type]:
    """The classes that a group names besides its own, by the path of the keys that are theirs."""
    own = f"{group}._target_"
    return {
        path.removesuffix("._target_"): resolve(path, name, tuple(BASES.values()), trusted)
        for path, key, name in nodes(node, group)
        if key == "_target_" and path != own
    }


def newer_keys(node: Config, group: str, classes: Mapping[str, type]) -> dict[str, Config]:
    """Of a saved run, by path: keys that its classes need today and its YAML could leave out, with what was
    done without them.
    """
    trees = {group: node, **{path: tree for path, _, tree in nodes(node, group)}}
    found = {}
    for path, cls in classes.items():
        before: Config = {}
        for base in reversed(cls.__mro__):
            before |= earlier(f"{base.__module__}.{base.__qualname__}")
        needed = [p.name for p in arguments_of(cls).parameters.values() if p.default is p.empty]
        found[path] = {key: before[key] for key in needed if key in before and key not in trees[path]}
        if found[path]:
            values = ", ".join(f"{path}.{key}={show(value)}" for key, value in found[path].items())
            log.info(
                f"{path}: {trees[path]['_target_']} is of a run that is older than {', '.join(found[path])}; "
                f"going on with what was done before: {values}"
            )
    return found


def with_keys(tree: Any, path: str, keys: Mapping[str, Config]) -> Any:
    """A copy of nested keys that has more of them at these paths."""
    if isinstance(tree, dict):
        copy = {key: with_keys(value, f"{path}.{key}", keys) for key, value in tree.items()}
        return {**copy, **keys.get(path, {})}
    if isinstance(tree, list):
        return [with_keys(value, f"{path}[{i}]", keys) for i, value in enumerate(tree)]
    return tree


def resolve(path: str, target: str, base: type | tuple[type, ...], trusted: list[str]) -> type:
    """The class of this name. ConfigError if it is absent, not a class, not of the kind, or defined outside
    the allow-list.
    """
    found = locate(path, target, trusted)
    kinds = base if isinstance(base, tuple) else (base,)
    if not isinstance(found, type) or not issubclass(found, kinds):
        names = " or ".join(map(public_name, kinds))
        raise ConfigError(f"{path}={target} is not a class that derives from {names}")
    if not is_allowed(f"{found.__module__}.{found.__qualname__}", trusted):
        raise ConfigError(
            f"{path}={target} is defined in {found.__module__}, outside {', '.join(PREFIXES)} and the "
            "trusted packages"
        )
    return found


def locate(path: str, target: str, trusted: list[str]) -> Any:
    """What a name means, found as Hydra finds it (an attribute goes before a module), but never through a
    module of another name.
    """
    if trusted and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    first, *parts = target.split(".")
    found, name = import_part(path, target, first), first
    if found is None:
        where = f" (looked in the working folder, {os.getcwd()}, too)" if trusted else ""
        raise ConfigError(f"{path}={target}: there is no package {first}{where}")
    for part in parts:
        owner, module, name = found, name, f"{name}.{part}"
        found = getattr(owner, part, None)
        if found is None and isinstance(owner, ModuleType):
            found = import_part(path, target, name)
        if found is None:
            raise ConfigError(f"{path}={target}: {module} has no {part}")
        if isinstance(found, ModuleType) and found.__name__ != name:
            raise ConfigError(
                f"{path}={target}: {name} is the module {found.__name__}, which {module} only imports"
            )
    return found


def import_part(path: str, target: str, name: str) -> ModuleType | None:
    """The module of this name, None if there is none."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            return None
        raise ConfigError(f"{path}={target}: {name} needs {error.name}, which is not installed") from error
    except Exception as error:
        raise ConfigError(
            f"{path}={target}: importing {name} failed: {type(error).__name__}: {error}"
        ) from error


def public_name(kind: type) -> str:
    """By which a class is imported: from the package that exports it, or else from its module."""
    package = kind.__module__.rpartition(".")[0]
    exported = getattr(sys.modules.get(package), kind.__qualname__, None) is kind
    return f"{package if exported else kind.__module__}.{kind.__qualname__}"
