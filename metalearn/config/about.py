"""The `about:` blocks of recipes and groups, which nothing is built from, but which listings and closing
tables print.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metalearn.config.schema import show


def about_problems(cfg: Mapping[str, Any]) -> list[str]:
    """What tables could not print of the prose of a recipe and of its groups. Nothing else of it is
    judged.
    """
    places = {
        "about": cfg.get("about"),
        **{f"{key}.about": value.get("about") for key, value in cfg.items() if isinstance(value, Mapping)},
    }
    problems = []
    for path, about in places.items():
        if about is None:
            continue
        if not isinstance(about, Mapping):
            problems.append(f"{path}={show(about)} is not several keys, such as title and paper")
            continue
        problems += shape_problems(path, about)
        figures = about.get("figures") or []
        named = isinstance(figures, list) and all(
            isinstance(figure, Mapping) and "name" in figure for figure in figures
        )
        published = about.get("published")
        if not named:
            problems.append(
                f"{path}.figures={show(figures)} is not a list of figures, each with a name and what was "
                "published"
            )
        if published and not (isinstance(published, Mapping) and "value" in published):
            problems.append(f"{path}.published={show(published)} is not a figure with value, unit and source")
        if named:
            problems += [
                problem for figure in figures for problem in place_problems(f"{path}.figures", figure)
            ]
        problems += place_problems(f"{path}.published", published) if isinstance(published, Mapping) else []
        problems += place_problems(path, about)
        if (published or figures) and not isinstance(about.get("paper"), str):
            problems.append(
                f"{path}.paper={show(about.get('paper'))} is not text, but figures need their source"
            )
        if not isinstance(about.get("deviation", ""), str):
            problems.append(f"{path}.deviation={show(about['deviation'])} is not text")
    return problems


def shape_problems(path: str, about: Mapping[str, Any]) -> list[str]:
    """What is read from an `about:` block before a run, and does not have its shape."""
    return [
        f"{path}.{name}={show(about[name])} is not several keys"
        for name in ("ranges", "suits")
        if name in about and not isinstance(about[name], Mapping)
    ]


def place_problems(path: str, figure: Mapping[str, Any]) -> list[str]:
    """Where a figure was measured, which results are held against: data and algo are names, way and shot
    whole numbers.
    """
    kinds = {"algo": str, "data": str, "way": int, "shot": int}
    wrong = [
        key for key, kind in kinds.items() if figure.get(key) is not None and type(figure[key]) is not kind
    ]
    return [
        f"{path}.{key}={show(figure[key])} is not {'a name' if kinds[key] is str else 'a whole number'}"
        for key in wrong
    ]
