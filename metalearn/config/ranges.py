"""What the values of a plugin's keys may be: `about.ranges` of its YAML, read without torch.

    about:
      ranges:
        inner_lr: float > 0
        momentum: float >= 0 < 1
        train.way: int >= 2 | null
        downsample: stride | pool
        rotations: [train | val | test]
        adapts: text | [text]
        root: path | null

The keys are those beside `about:`, dotted where they are nested. A range is one or more alternatives with `|`
between them, and an alternative is

- a kind: int, float, bool, text, path, map (keys with values) or null. int and float may be followed by
  bounds, each of them one of >=, >, <=, < (or ≥, ≤) and a number;
- a word, or a number, that stands for itself; 0.5 and 0.50 are one number;
- a list in brackets of any length, whose elements have the range within; YAML's own brackets do as well.

A range goes before the type of the default: null is allowed where the range, or the default, says so. A key
without a range may have any value of its default's type. What a group shares stands in its `_base.yaml`,
which may name keys that only some of its YAMLs have.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KINDS: dict[str, type] = {
    "int": int,
    "float": float,
    "bool": bool,
    "text": str,
    "path": str,
    "map": dict,
    "null": type(None),
}
BOUNDS = {">=": "at least", ">": "greater than", "<=": "at most", "<": "less than"}
NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
KIND = re.compile(rf"(?P<kind>{'|'.join(KINDS)})(?P<bounds>(?:\s*(?:>=|<=|>|<)\s*{NUMBER})*)")
BOUND = re.compile(rf"(>=|<=|>|<)\s*({NUMBER})")
SWITCH = "{!r}: a switch has the range bool; write bool, as in auto | bool"
WORD_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
WORD = re.compile(r"[\w.+-]+")


@dataclass(frozen=True)
class Alternative:
    """One of the kinds, or `word`, or `list`. bounds: pairs of a comparison and a number."""

    kind: str
    bounds: tuple[tuple[str, float], ...] = ()
    word: str = ""
    elements: Range | None = None

    @property
    def number(self) -> float | None:
        """What a word means, if it is a number."""
        if self.kind != "word" or not WORD_NUMBER.fullmatch(self.word):
            return None
        return _number(self.word)

    def broken(self, value: float) -> str | None:
        """`at least 2`, of the first bound that a number is outside of."""
        for comparison, bound in self.bounds:
            holds = {
                ">=": value >= bound,
                ">": value > bound,
                "<=": value <= bound,
                "<": value < bound,
            }
            if not holds[comparison]:
                return f"{BOUNDS[comparison]} {bound}"
        return None


@dataclass(frozen=True)
class Range:
    """What a key may be: any of the alternatives."""

    alternatives: tuple[Alternative, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """The words that a value may be, as they are typed."""
        return tuple(one.word for one in self.alternatives if one.kind == "word")

    @property
    def few(self) -> tuple[str, ...]:
        """All that is worth offering to someone who types a value."""
        return self.words + (("true", "false") if self.has("bool") else ())

    @property
    def numbers(self) -> tuple[float, ...]:
        """The numbers among the words."""
        return tuple(one.number for one in self.alternatives if one.number is not None)

    @property
    def types(self) -> tuple[type, ...]:
        """Of a value that is not null; none where null is all that is allowed. Numbers among the words are
        all of one type.
        """
        whole = not self.has("float") and all(isinstance(number, int) for number in self.numbers)
        found = [self._type(one, whole) for one in self.alternatives if one.kind != "null"]
        return tuple(dict.fromkeys(found))

    @property
    def elements(self) -> Range | None:
        """The range of the elements of a list."""
        return next((one.elements for one in self.alternatives if one.kind == "list"), None)

    def has(self, *kinds: str) -> bool:
        return any(one.kind in kinds for one in self.alternatives)

    @staticmethod
    def _type(one: Alternative, whole: bool) -> type:
        if one.kind == "list":
            return list
        if one.kind != "word":
            return KINDS[one.kind]
        return str if one.number is None else int if whole else float


def parse(written: Any) -> Range:
    """The range that a YAML says. ValueError for what is none."""
    return _parsed(_text(written))


def _text(written: Any) -> str:
    """A range as one text; YAML's own reading of brackets, null and numbers is undone."""
    if isinstance(written, list):
        if len(written) != 1 or isinstance(written[0], (list, Mapping)):
            raise ValueError("a list has one range for all of its elements, such as [train | val | test]")
        return f"[{_text(written[0])}]"
    if written is None:
        return "null"
    if isinstance(written, bool):
        raise ValueError(SWITCH.format(str(written).lower()))
    if not isinstance(written, (str, int, float)):
        raise ValueError("a range is text, such as int >= 2 | null")
    return str(written)


@functools.lru_cache(maxsize=4096)
def _parsed(text: str) -> Range:
    normal = re.sub(r"\s*([|\[\]])\s*", r"\1", text.replace("≥", ">=").replace("≤", "<=").strip())
    parts = re.findall(r"\[[^\[\]]*\]|[^|\[\]]+", normal)
    between = re.sub(r"\[[^\[\]]*\]|[^|\[\]]+", "", normal)
    if not parts or between != "|" * (len(parts) - 1):
        raise ValueError(f"{text!r}: alternatives stand between single |, and lists are not nested")
    found = tuple(_alternative(part.strip()) for part in parts)
    if sum(one.kind == "list" for one in found) > 1:
        raise ValueError(f"{text!r} has two kinds of lists; write one, as [int | null]")
    return Range(found)


def _alternative(text: str) -> Alternative:
    if text.startswith("["):
        return Alternative("list", elements=_parsed(text[1:-1]))
    kind = KIND.fullmatch(text)
    if kind is not None:
        bounds = tuple((comparison, _number(value)) for comparison, value in BOUND.findall(kind["bounds"]))
        if bounds and kind["kind"] not in ("int", "float"):
            raise ValueError(f"{text!r}: only int and float have bounds")
        return Alternative(kind["kind"], bounds)
    if text.lower() in ("true", "false"):
        raise ValueError(SWITCH.format(text))
    if WORD.fullmatch(text):
        return Alternative("word", word=text)
    raise ValueError(
        f"{text!r} is neither a word nor one of {', '.join(KINDS)} with bounds, such as int >= 2 or float > 0"
    )


def _number(text: str) -> float:
    """Whole where it can be: the largest seeds are no floats."""
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)


def of_plugins(tree: Mapping[str, Any]) -> dict[str, Range]:
    """The ranges that the groups of a configuration have in their `about:` blocks, by dotted key of the
    whole.

    What is no range is left out: `problems_of_plugins` has a sentence for it.
    """
    found: dict[str, Range] = {}
    for prefix, ranges in _blocks(tree):
        for key, written in ranges.items():
            try:
                found[f"{prefix}.{key}"] = parse(written)
            except ValueError:
                continue
    return found


def problems_of_plugins(tree: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(dotted name of the range, what is wrong with it) for every one that cannot be read."""
    found = []
    for prefix, ranges in _blocks(tree):
        for key, written in ranges.items():
            try:
                parse(written)
            except ValueError as error:
                found.append((f"{prefix}.about.ranges.{key}", str(error)))
    return found


def _blocks(tree: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(group, its ranges) of every group of a configuration that has some."""
    found = []
    for group, node in tree.items():
        about = node.get("about") if isinstance(node, Mapping) else None
        ranges = about.get("ranges") if isinstance(about, Mapping) else None
        if isinstance(ranges, Mapping):
            found.append((group, ranges))
    return found
