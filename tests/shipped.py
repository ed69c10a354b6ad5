"""Objects of our classes with the values of the YAML that names them, where a test says nothing else."""

from __future__ import annotations

import functools
from typing import Any

from omegaconf import OmegaConf

from metalearn.config.loader import Library, packaged_options

GROUPS = ("algo", "data", "model")


def built(cls: type, *given: Any, **dials: Any) -> Any:
    """cls(*given, **dials), with what its YAML, or that of the class it derives from, says of other keys."""
    return cls(*given, **{**arguments(cls), **dials})


def arguments(cls: type) -> dict[str, Any]:
    """The keys of the YAML of a class, references replaced by what they are by themselves."""
    targets = yamls()
    name = next(name for base in cls.__mro__ if (name := f"{base.__module__}.{base.__qualname__}") in targets)
    return {key: value for key, value in targets[name].items() if key not in ("about", "_target_")}


@functools.cache
def yamls() -> dict[str, dict[str, Any]]:
    """Every YAML that names a class of ours itself, by the name of the class."""
    library = Library()
    found: dict[str, dict[str, Any]] = {}
    for group in GROUPS:
        for option in packaged_options(group):
            if "_target_" not in library.files(group, option)[-1][1]:
                continue  # a variant, with the class of another
            node: Any = OmegaConf.to_container(OmegaConf.create(library.read(group, option)), resolve=True)
            found[node["_target_"]] = node
    return found
