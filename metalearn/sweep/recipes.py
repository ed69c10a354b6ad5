"""Recipes as `metalearn reproduce` takes them: which there are, what their tiers are, and whether their data
are on this machine.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metalearn.config.about import is_number
from metalearn.config.compose import compose
from metalearn.config.loader import Library
from metalearn.config.schema import hint, show
from metalearn.errors import ConfigError, raise_if

TIERS = ("smoke", "cpu", "paper")
HOW = ("device", "trusted", "data.root", "data.cache_dir")  # keys that make no other experiment


class Recipe(NamedTuple):
    """A YAML of experiment/. cfg: what it composes as it stands. words: further overrides, which say only
    where and how it is computed.
    """

    name: str
    cfg: Mapping[str, Any]
    path: Path
    words: list[str]
    config_dir: str | None

    @property
    def about(self) -> Mapping[str, Any]:
        return self.cfg.get("about") or {}

    def for_tier(self, tier: str) -> list[str]:
        """The overrides of a tier; the recipe as it stands is tier cpu."""
        tiers = self.about.get("tiers") or {}
        if tier != "cpu" and tier not in tiers:
            known = ", ".join(["smoke", "cpu", *tiers])
            raise ConfigError(f"experiment={self.name} has no tier {tier}; its tiers are {known}")
        return [f"experiment={self.name}", *(tiers.get(tier) or []), *self.words]

    def why_passed_over(self, tier: str) -> str | None:
        """Why it is none of --all: it has no such tier or no figures, or its data are not on this machine.

        Nothing is fetched. None: it can be run. DataError for data that are not what was published.
        """
        if tier != "smoke":
            if not self.about.get("figures"):
                return "it names no figures"
            if tier != "cpu" and tier not in (self.about.get("tiers") or {}):
                return f"it has no tier {tier}"
        from metalearn.build.instantiate import BASES, resolve

        data = self.cfg["data"]
        if data.get("root") is not None:
            return None  # the source itself looks there
        source = resolve("data._target_", data["_target_"], BASES["data"], self.cfg["trusted"])
        missing = not_here(source, tuple(map(os.environ.get, ("METALEARN_DATA", "XDG_CACHE_HOME"))))
        return None if missing is None else f"data={self.cfg['choices']['data']} is {missing}"


@functools.cache
def not_here(source: Any, places: tuple[str | None, ...]) -> str | None:
    """What the class of a source says of data that are nowhere on this machine. places: where it looks."""
    try:
        source.audit()
    except FileNotFoundError as error:
        return str(error)
    return None


def recipe(name: str, words: Sequence[str] = (), config_dir: str | None = None) -> Recipe:
    """The recipe of this name, checked. ConfigError with the closest match if there is none."""
    library = Library(config_dir)
    options = library.options("experiment")
    if name not in options:
        close = hint(name, options) or f"; choose from {', '.join(options)}"
        raise ConfigError(f"experiment={name} does not exist{close}")
    refuse_science(words)
    found = Recipe(
        name,
        compose([f"experiment={name}", *words], config_dir),
        library.path("experiment", name),
        list(words),
        config_dir,
    )
    raise_if(
        f"experiment={name}: figure {figure['name']} has published={show(figure['published'])}, which is no "
        "number; write null if there is none"
        for figure in found.about.get("figures") or []
        if figure.get("published") is not None and not is_number(figure["published"])
    )
    return found


def refuse_science(words: Sequence[str]) -> None:
    for word in words:
        key = word.partition("=")[0]
        if key not in HOW and not key.startswith("device."):
            raise ConfigError(
                f"{word} would make it another experiment; beside a recipe's name stand only "
                f"{', '.join(HOW)} and device.*"
            )
