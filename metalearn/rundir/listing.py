"""Runs as rows that can be filtered, ranked and sorted: what `metalearn ls runs` prints.

The run folders are the registry. What results.json and status.json hold is read of every run; of config.yaml
only the key that is asked for, and only where the others do not have it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from metalearn.errors import DataError
from metalearn.rundir.choices import GROUPS, KEY, NAMED_IN_RESULTS
from metalearn.rundir.config_text import ABSENT, value_of
from metalearn.rundir.reader import names_of, read_results, state, state_of
from metalearn.rundir.registry import protocol_key

OF_A_RESULT = ("split", "primary", "episodes", "step")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)
RESULT = "result"  # to sort by: the mean of the primary metric, the best first
KEYS = (*NAMED_IN_RESULTS, "seed", "state", *OF_A_RESULT)  # which every run that has ended answers to


class Filter(NamedTuple):
    """algo=maml, or one of several values: seed=0,1."""

    key: str
    values: list[Any]

    def holds(self, run: ListedRun) -> bool:
        exists, value = run.value(self.key)
        return exists and any(_equal(value, wanted) for wanted in self.values)


class ListedRun:
    """A run of a list. results: of the run itself, None before it ended; unreadable where the file is no
    result.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unreadable = False
        try:
            self.results = read_results(folder / "results.json")
        except DataError:
            self.results, self.unreadable = None, True

    @functools.cached_property
    def state_in_words(self) -> str:
        status = self.folder / "status.json"
        return state_of(status) if status.exists() else state(self.folder)

    @property
    def condition(self) -> str:
        return self.state_in_words.partition(";")[0]

    @functools.cached_property
    def names(self) -> dict[str, Any]:
        """algo, data, model and experiment; of a run without a result, those that its configuration says."""
        if self.results is not None and "algo" in self.results:
            return {name: self.results.get(name) for name in NAMED_IN_RESULTS}
        found = self.saved(KEY)[1]
        known = found if isinstance(found, dict) else names_of(self.folder)  # which suggests them
        return {name: known.get(name) for name in NAMED_IN_RESULTS if name in known}

    @property
    def seed(self) -> Any:
        return self.results["seed"] if self.results else self.saved("seed")[1]

    def saved(self, key: str) -> tuple[bool, Any]:
        """A key of config.yaml; absent where the file is gone or damaged, as `metalearn doctor` will say."""
        try:
            return value_of(self.folder / "config.yaml", key)
        except (OSError, ValueError):
            return ABSENT

    def value(self, key: str) -> tuple[bool, Any]:
        """Whether the run has something of this name, and what: of its result, its state, its protocol, its
        choices, or its configuration.
        """
        if key == "state":
            return True, self.condition
        if key in NAMED_IN_RESULTS:
            return key in self.names, self.names.get(key)
        if key == "seed":
            return self.seed is not None, self.seed
        if key in OF_A_RESULT:
            return self.results is not None, (self.results or {}).get(key)
        if self.results is not None and key in self.results["protocol"]:
            return True, self.results["protocol"][key]
        if key in GROUPS:
            chosen = self.saved(KEY)[1]
            return (key in chosen, chosen.get(key)) if isinstance(chosen, dict) else ABSENT
        return self.saved(key)

    @property
    def mean(self) -> float | None:
        """Of the primary metric; None without a result, or where it is not finite."""
        return self.results["metrics"][self.results["primary"]]["mean"] if self.results else None

    @property
    def goodness(self) -> float:
        """The mean, larger for better whatever the metric; minus infinity without one."""
        if self.mean is None or self.results is None:
            return float("-inf")
        return self.mean if rises(self.results) else -self.mean


def rises(results: dict[str, Any]) -> bool:
    """Whether more of the primary metric is better; results that are older than this fact have accuracies."""
    declared = (results.get("formats") or {}).get(results["primary"]) or {}
    return bool(declared.get("higher_is_better", results["primary"].startswith("accuracy")))


def parsed(word: str) -> Filter:
    """What a word such as seed=0,1 asks for."""
    key, _, text = word.partition("=")
    whole = _plain(text)
    several = [_plain(part) for part in text.split(",")] if isinstance(whole, str) and "," in text else []
    return Filter(key, [whole, *several])


def filtered(
    runs: Sequence[ListedRun], filters: Sequence[Filter], progress: Callable[[Any], Iterable[ListedRun]]
) -> list[ListedRun]:
    """Those for which every filter holds. progress: wraps what takes long."""
    left: Iterable[ListedRun] = runs
    for wanted in filters:
        left = [run for run in progress(left) if wanted.holds(run)]
    return list(left)


def unknown_keys(
    runs: Sequence[ListedRun], keys: Iterable[str], progress: Callable[[Any], Iterable[ListedRun]]
) -> list[str]:
    """Those of the keys that none of the runs has."""
    return [key for key in keys if key not in KEYS and not any(run.value(key)[0] for run in progress(runs))]


def keys_of(runs: Sequence[ListedRun]) -> list[str]:
    """Names that runs answer to, as far as the newest of them tells: what a mistyped key is compared with."""
    ended = next((run.results for run in reversed(runs) if run.results), None)
    found = [*KEYS, *GROUPS, *(ended["protocol"] if ended else ())]
    for run in reversed(runs[-5:]):
        for group in ("algo", "data", "model", "optimizer", "trainer", "eval", "device"):
            node = run.saved(group)[1]
            found += [f"{group}.{key}" for key in node] if isinstance(node, dict) else []
    return list(dict.fromkeys(found))


def best_of_each_protocol(runs: Iterable[ListedRun]) -> list[ListedRun]:
    """The run with the best primary metric among those that were measured alike; none without a result."""
    best: dict[str, ListedRun] = {}
    for run in runs:
        if run.results is None or run.mean is None:
            continue
        key = protocol_key(run.results)
        if key not in best or run.goodness > best[key].goodness:
            best[key] = run
    return list(best.values())


def in_order_of(runs: Iterable[ListedRun], key: str) -> list[ListedRun]:
    """Numbers by size, then words by the alphabet, then those that have none; results from the best on."""
    if key == RESULT:
        return sorted(runs, key=lambda run: -run.goodness)

    def rank(run: ListedRun) -> tuple[int, float, str]:
        exists, value = run.value(key)
        if not exists or value is None:
            return 2, 0.0, ""
        number = isinstance(value, (int, float))
        return (0, float(value), "") if number else (1, 0.0, str(value))

    return sorted(runs, key=rank)


def _plain(text: str) -> Any:
    if NUMBER.fullmatch(text):  # also 1e-3, which YAML takes for a word
        return float(text)
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def _equal(value: Any, wanted: Any) -> bool:
    if isinstance(value, bool) or isinstance(wanted, bool):
        return value is wanted
    return bool(value == wanted) or (isinstance(value, str) and value == str(wanted))
