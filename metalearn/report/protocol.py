"""What was measured, in plain words: the facts that stand above a table, since no number travels without
them.
"""

from __future__ import annotations

import json
from typing import Any

from metalearn.rundir.registry import comparable_facts

SAID = ("data", "split", "way", "shot", "query_shot", "transductive", "cross_domain", "trained_on")


def heading(results: dict[str, Any]) -> str:
    """omniglot, 5-way 1-shot: accuracy on test tasks."""
    sizes = [
        f"{size}-{word}" for word in ("way", "shot") if (size := results["protocol"].get(word)) is not None
    ]
    where = ", ".join(part for part in (data_of(results), " ".join(sizes)) if part)
    return f"{where}: {results['primary'].replace('_', ' ')} on {results['split']} tasks"


def data_of(results: dict[str, Any]) -> str:
    return str(results["protocol"].get("data") or results.get("data") or "unnamed data")


def sentence(results: dict[str, Any]) -> str:
    """How the tasks were drawn and judged, in one or two sentences."""
    protocol = results["protocol"]
    parts = []
    if protocol.get("way") is not None:
        queries = protocol.get("query_shot")
        shots = protocol.get("shot")
        parts.append(
            f"Each task tells {protocol['way']} classes apart after {shots} "
            f"{'example' if shots == 1 else 'examples'} of each, judged on {queries} "
            f"{'query' if queries == 1 else 'queries'} per class"
        )
    elif protocol.get("shot") is not None:
        parts.append(f"Each task is learned from {protocol['shot']} examples")
    if "transductive" in protocol and "transductive" in comparable_facts(results):
        parts.append(
            "The queries of a task are seen together (transductive)"
            if protocol["transductive"]
            else "Each query stands alone (inductive)"
        )
    if protocol.get("cross_domain"):
        parts.append(f"Methods were trained on other data ({protocol.get('trained_on')})")
    return ". ".join(parts) + "." if parts else ""


def remaining_facts(results: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of every further fact that all rows of a table share."""
    facts = comparable_facts(results)
    return [
        (name.replace("_", " "), as_text(value))
        for name, value in sorted(facts.items())
        if name not in SAID and value is not None
    ]


def own_facts(results: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of the facts in which the rows of a table may differ."""
    shared = comparable_facts(results)
    return [
        (name.replace("_", " "), as_text(value))
        for name, value in sorted(results["protocol"].items())
        if name not in shared and value is not None and name not in ("checkpoint", "data_sha256")
    ]


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
