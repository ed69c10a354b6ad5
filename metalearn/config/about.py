"""The `about:` blocks of recipes and groups, which nothing is built from, but which listings and closing
tables print, and which `metalearn reproduce` reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from metalearn.config.schema import show

MAPPINGS = ("ranges", "suits", "tiers", "smoke", "measured")
KINDS = {"algo": str, "data": str, "metric": str, "unit": str, "way": int, "shot": int}
NAMES_OF_KINDS = {str: "a name", int: "a whole number"}


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
        problems += [*shape_problems(path, about), *recipe_problems(path, about)]
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
            problems += figure_problems(f"{path}.figures", figures)
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
        for name in MAPPINGS
        if name in about and not isinstance(about[name], Mapping)
    ]


def recipe_problems(path: str, about: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the tiers of a recipe, the variants of its smoke test and what was recorded."""
    for key in ("tiers", "smoke"):
        if isinstance(about.get(key), Mapping):
            for name, words in about[key].items():
                yield from words_problems(f"{path}.{key}.{name}", words)
    if isinstance(about.get("measured"), Mapping):
        yield from (
            f"{path}.measured.{tier} is not what `metalearn reproduce NAME --tier {tier} --record` writes; "
            "remove it and record it again"
            for tier, record in about["measured"].items()
            if not (is_of_losses(record) if tier == "smoke" else is_of_figures(record))
        )


def is_of_losses(record: Any) -> bool:
    losses = record.get("losses") if isinstance(record, Mapping) else None
    return isinstance(losses, Mapping) and all(
        isinstance(values, list) and all(map(is_number, values)) for values in losses.values()
    )


def is_of_figures(record: Any) -> bool:
    if not isinstance(record, Mapping) or not isinstance(record.get("figures"), Mapping):
        return False
    seeds = record.get("seeds")
    return bool(isinstance(seeds, list) and seeds and all(map(is_number, seeds))) and all(
        isinstance(figure, Mapping) and all(is_number(figure.get(key)) for key in ("mean", "ci95"))
        for figure in record["figures"].values()
    )


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def figure_problems(path: str, figures: list[Mapping[str, Any]]) -> Iterator[str]:
    """What is wrong with the figures of a recipe. That one of them is its headline is asked of ours only, as
    recipes once had none.
    """
    for figure in figures:
        yield from place_problems(path, figure)
        for key in ("eval", "train"):
            if key in figure:
                yield from words_problems(f"{path}.{key}", figure[key])
        if not isinstance(figure.get("published_protocol", {}), Mapping):
            yield f"{path}.published_protocol={show(figure['published_protocol'])} is not several keys"
    names = [str(figure["name"]) for figure in figures if figure.get("headline")]
    if len(names) > 1:
        yield f"{path} has {len(names)} headlines, {', '.join(names)}; mark one figure"


def words_problems(path: str, words: Any) -> Iterator[str]:
    if not isinstance(words, list) or not all(isinstance(word, str) and "=" in word for word in words):
        yield f"{path}={show(words)} is not a list of overrides, such as [data.way=20]"


def place_problems(path: str, figure: Mapping[str, Any]) -> list[str]:
    """Where and in what a figure was measured, which results are held against: data and algo are names, way
    and shot whole numbers.
    """
    wrong = [
        key for key, kind in KINDS.items() if figure.get(key) is not None and type(figure[key]) is not kind
    ]
    return [f"{path}.{key}={show(figure[key])} is not {NAMES_OF_KINDS[KINDS[key]]}" for key in wrong]


def headline(about: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The one figure that lists show: the marked one, else the first; None for a recipe without figures."""
    figures = about.get("figures") or []
    return next((figure for figure in figures if figure.get("headline")), figures[0] if figures else None)
