"""What was measured, in plain words: the facts that stand above a table, since no number travels without
them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from metalearn.rundir.registry import protocol_facts

MOST_WORDS, MOST_LETTERS = 3, 16  # of what tells two headings apart
SAID = ("data", "split", "way", "shot", "query_shot", "transductive", "cross_domain", "trained_on")


def headings(several: Sequence[dict[str, Any]]) -> list[str]:
    """One heading per table, with the facts that tell apart those that would bear the same."""
    plain = [heading(results) for results in several]
    found = []
    for results, own in zip(several, plain, strict=True):
        facts = protocol_facts(results)
        alike = [protocol_facts(other) for other, text in zip(several, plain, strict=True) if text == own]
        names = [name for name in facts if any(other.get(name) != facts[name] for other in alike)]
        words = [_in_words(name, facts[name]) for name in names[:MOST_WORDS]]
        found.append(f"{own} ({', '.join(words)})" if words else own)
    return found


def _in_words(name: str, value: Any) -> str:
    """transductive, not cross domain, partition random."""
    if isinstance(value, bool):
        return (
            "inductive"
            if (name, value) == ("transductive", False)
            else ("" if value else "not ") + _said(name)
        )
    return f"{_said(name)} {as_text(value)[:MOST_LETTERS]}"


def _said(name: str) -> str:
    return name.replace("_", " ")


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
    if "transductive" in protocol and "transductive" in protocol_facts(results):
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
    facts = protocol_facts(results)
    return [
        (_said(name), as_text(value))
        for name, value in sorted(facts.items())
        if name not in SAID and value is not None
    ]


def own_facts(results: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of the facts in which the rows of a table may differ."""
    shared = protocol_facts(results)
    return [
        (_said(name), as_text(value))
        for name, value in sorted(results["protocol"].items())
        if name not in shared and value is not None and name not in ("checkpoint", "data_sha256")
    ]


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
