"""What may stand beside what: metrics and protocols that are alike, and the tasks that results share."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from metalearn.errors import ConfigError
from metalearn.report.methods import TASK_FACTS, Method
from metalearn.rundir import registry
from metalearn.rundir.registry import Scores

INDUCTIVE = "_inductive"  # ends the name of a metric for which it is no matter how queries met in the other
Task = tuple[str, int]  # sha256, and which of the times that it was drawn


def numbered(tasks: Sequence[str]) -> list[Task]:
    """Tasks that are told apart where one was drawn again: its first time, its second, …"""
    seen: Counter[str] = Counter()
    found = []
    for task in tasks:
        found.append((task, seen[task]))
        seen[task] += 1
    return found


def aligned(scores: Scores, names: list[Task], wanted: Sequence[Task]) -> list[float]:
    value = dict(zip(names, scores.values, strict=True))
    return [value[task] for task in wanted]


def shared_tasks(
    methods: Sequence[Method], tasks: Sequence[Sequence[list[Task]]], *, common: bool, anyway: bool
) -> list[Task] | None:
    """The tasks to compare on, in the order of the first result; None for methods that are compared unpaired.

    tasks: of each result of each method.
    """
    for method, results in zip(methods, tasks, strict=True):
        _refuse_unlike_seeds(method, results, common=common)
    every = [one for results in tasks for one in results]
    sets = [{*one} for one in every]
    both = sets[0].intersection(*sets[1:])
    equal = all(len(one) == len(both) for one in sets)
    if not equal:
        if anyway and not (common and both):
            return None
        least, most = min(map(len, sets)), max(map(len, sets))
        have = f"{least:,} tasks" if least == most else f"{least:,} to {most:,} tasks"
        if not both:
            names = " and ".join(method.label for method in methods)
            raise ConfigError(
                f"no task is shared by all results of {names} ({have} each); judge both on the same "
                "tasks with metalearn eval, or compare unpaired with --anyway"
            )
        if not common:
            raise ConfigError(
                f"these results have {have} each, of which all share {len(both):,}; compare on those alone "
                "with --common"
            )
    if len(both) < 2:
        raise ConfigError("1 task is shared, from which no interval follows; judge more (eval.episodes)")
    return [task for task in every[0] if task in both]


def _refuse_unlike_seeds(method: Method, tasks: Sequence[list[Task]], *, common: bool) -> None:
    """The seeds of a method are one table of scores, which nothing stands in for, not even --anyway."""
    first = {*tasks[0]}
    both = first.intersection(*tasks[1:])
    if (common and both) or all({*one} == first for one in tasks):
        return
    way = ", or compare on the tasks that all results share with --common" if both else ""
    raise ConfigError(
        f"seeds of {method.label} met different tasks, of which they share {len(both):,}; name runs that "
        f"were judged on the same{way}"
    )


def primary_of(methods: Sequence[Method]) -> str:
    primary = [str(method.results[0].results["primary"]) for method in methods]
    if len({*primary}) > 1:
        told = _told(methods, primary)
        raise ConfigError(f"the primary metric is {told}; choose one that all have with --metric NAME")
    return primary[0]


def unlike_facts(methods: Sequence[Method], metric: str) -> dict[str, list[Any]]:
    """The facts of the protocols that should be equal and are not, with the value of each method."""
    facts = [registry.comparable_facts(method.results[0].results) for method in methods]
    names = dict.fromkeys(name for found in facts for name in found if name not in TASK_FACTS)
    if metric.endswith(INDUCTIVE):
        names.pop("transductive", None)
    values = {name: [found.get(name) for found in facts] for name in names}
    return {name: found for name, found in values.items() if any(value != found[0] for value in found)}


def refusal(methods: Sequence[Method], unlike: dict[str, list[Any]]) -> str:
    told = "; ".join(f"{name} is {_told(methods, values)}" for name, values in unlike.items())
    return (
        f"these results have unlike protocols: {told}; judge both alike with metalearn eval, or compare "
        "unpaired with --anyway"
    )


def _told(methods: Sequence[Method], values: Sequence[Any]) -> str:
    """'5 for algo=maml and 20 for algo=protonet'."""
    said = [f"{json.dumps(value)} for {method.label}" for value, method in zip(values, methods, strict=True)]
    return " and ".join([", ".join(said[:-1]), said[-1]])
