"""One key of a config.yaml, without making the values of all others: of ten thousand runs in seconds.

A run writes its configuration as a block mapping indented by two. A file that is written in another way (in
braces, with quoted keys, with anchors) is read whole instead.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from metalearn.files import MAX_YAML, MISTAKES, read_text, read_yaml

ABSENT: tuple[bool, Any] = (False, None)


class _UnusualError(Exception):
    """The text is not as a run writes it."""


def value_of(path: Path, key: str) -> tuple[bool, Any]:
    """Whether a YAML file has a dotted key, and its value. OSError or ValueError for a file that cannot be
    read.
    """
    text = read_text(path, MAX_YAML)
    try:
        return _scanned(text, key.split("."))
    except _UnusualError:
        tree = read_yaml(path)
    for part in key.split("."):
        if not isinstance(tree, Mapping) or part not in tree:
            return ABSENT
        tree = tree[part]
    return True, tree


def _scanned(text: str, parts: list[str]) -> tuple[bool, Any]:
    start, end = 0, len(text)
    for depth, part in enumerate(parts):
        header, after = _patterns(part, 2 * depth)
        found = header.search(text, start, end)
        if found is None:
            if _may_hide(text[start:end], part, 2 * depth):
                raise _UnusualError
            return ABSENT
        left = after.search(text, found.end(), end)
        start, end = found.end(), left.start() if left else end
        inline = found[1].strip()
        if depth == len(parts) - 1:
            made = _read(text[found.start() : end])
            if not isinstance(made, dict) or part not in made:  # a key such as `on` is no word in YAML
                raise _UnusualError
            return True, made[part]
        if inline and not inline.startswith("#"):
            if inline[0] in "{*&!<":
                raise _UnusualError
            return ABSENT
    raise ValueError("a key has at least one part")


@functools.cache
def _patterns(part: str, indent: int) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """The line of a key, and the first line after its value: as deep or less deep, and no item of a list."""
    return (
        re.compile(rf"^ {{{indent}}}{re.escape(part)}:((?:[ \t].*)?)$", re.MULTILINE),
        re.compile(rf"^ {{0,{indent}}}(?![ #\n]|-(?: |$))(?=.)", re.MULTILINE),
    )


def _may_hide(block: str, part: str, indent: int) -> bool:
    """Whether a block that has no line for a key may yet hold it, since a run would not write it so."""
    quoted = re.search(rf"""['"]{re.escape(part)}['"]\s*:""", block)
    first = re.search(r"^( *)(?=[^\s#])(.)", block, re.MULTILINE)
    odd = first is not None and (first[2] in "{[&*!?" or (len(first[1]) != indent and first[2] != "-"))
    return bool(quoted) or odd or "<<:" in block


@functools.lru_cache(maxsize=10_000)
def _read(lines: str) -> Any:
    """The mapping of one key; lines that are indented as a whole are a mapping, too."""
    if re.search(r"(?:^|[\s\[{,:-])[&*!]\S", lines):
        raise _UnusualError  # an anchor may lie elsewhere, or make a value of any size
    try:
        return yaml.safe_load(lines)
    except MISTAKES as error:
        raise _UnusualError from error
