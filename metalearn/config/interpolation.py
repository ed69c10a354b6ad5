"""What `${…}` in a YAML may say, judged before it is resolved.

A reference is `${KEY}`, `${oc.env:NAME}` or `${oc.select:KEY,DEFAULT}`. Any other resolver is code that
somebody registered in this process, `eval` being a popular one. What a reference resolves to is judged
afterwards, as if it had been written out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from metalearn.config.safety import nodes

RESOLVERS = ("oc.env", "oc.select")
REFERENCE = re.compile(r"\$\{(?:(?P<resolver>oc\.env|oc\.select):(?P<words>[^${}]*)|(?P<key>[^${}:]*))\}")
LARGEST = 1_000_000  # characters and values that a configuration may grow to
Place = tuple[str, ...]  # keys from the root of a tree to one of its values


def reference_problems(tree: Mapping[str, Any]) -> list[str]:
    """What may not be resolved: other resolvers, references within references, and those that multiply."""
    problems = [
        f"{path}={value}: a reference is ${{KEY}}, ${{oc.env:NAME}} or ${{oc.select:KEY,DEFAULT}}, and "
        "nothing else may stand in it"
        for path, _, value in nodes(tree)
        if isinstance(value, str) and "${" in REFERENCE.sub("", value)
    ]
    if not problems and Expansion(tree).size(()) > LARGEST:
        problems.append(
            f"references make the configuration larger than {LARGEST} values, or go in a circle; write the "
            "values out"
        )
    return problems


def saved_problems(saved: Mapping[str, Any]) -> list[str]:
    """What no run writes into its configuration: references, which were resolved before, and values that are
    not plain.
    """
    problems = []
    for path, _, value in nodes(saved):
        if isinstance(value, str) and "${" in value:
            problems.append(f"{path}={value} is a reference; a run saves values only")
        elif not isinstance(value, (str, int, float, bool, dict, list, type(None))):
            problems.append(f"{path} is a {type(value).__name__}; expected text, numbers, lists and keys")
        if isinstance(value, dict):
            problems += [
                f"{path} has the key {key!r}; expected text" for key in value if not isinstance(key, str)
            ]
    return problems + [f"the key {key!r} is no text" for key in saved if not isinstance(key, str)]


class Expansion:
    """How large a tree becomes when every reference is replaced by what it refers to; each place is measured
    once.
    """

    def __init__(self, tree: Mapping[str, Any]) -> None:
        self.tree = tree
        self.sizes: dict[Place, int] = {}

    def size(self, place: Place) -> int:
        """Characters and values, at most LARGEST + 1, which is also the size of what refers to itself."""
        if place not in self.sizes:
            self.sizes[place] = LARGEST + 1  # for whoever comes here again before it is known
            self.sizes[place] = min(self.measure(place), LARGEST + 1)
        return self.sizes[place]

    def measure(self, place: Place) -> int:
        value: Any = self.tree
        for depth, key in enumerate(place):
            if isinstance(value, str):  # a reference, whose target has the rest of the keys
                return self.size(place[:depth])
            value = entry(value, key)
        if isinstance(value, str):
            return 1 + len(value) + sum(map(self.size, targets(value, place)))
        children = (
            value if isinstance(value, Mapping) else range(len(value)) if isinstance(value, list) else ()
        )
        return 1 + sum(self.size((*place, str(key))) for key in children)


def entry(value: Any, key: str) -> Any:
    """The entry of a mapping or a list, None if there is none."""
    if isinstance(value, list):
        return value[int(key)] if key.isdecimal() and int(key) < len(value) else None
    return (
        next((found for name, found in value.items() if str(name) == key), None)
        if isinstance(value, Mapping)
        else None
    )


def targets(value: str, place: Place) -> Iterator[Place]:
    """The places that the references in a value mean. place: where it stands, since leading dots count from
    there.
    """
    for found in REFERENCE.finditer(value):
        if found["resolver"] == "oc.env":
            continue
        words = (found["words"].partition(",")[0] if found["resolver"] else found["key"]).strip()
        key = words.lstrip(".")
        base = place[: -(len(words) - len(key))] if len(words) > len(key) else ()
        yield (*base, *(part for part in re.split(r"[.\[\]]+", key) if part))
