"""What a recipe was measured to give: `about.measured` of its YAML, by tier, read and written by `metalearn
reproduce`, so that nobody types a measured figure.

Writing replaces the lines of one tier's record and no other byte of the file.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from metalearn.config.loader import packaged_folder
from metalearn.errors import ConfigError
from metalearn.files import MISTAKES, sync_folder, write_synced

KEY = "measured"
COMMENT = " # written by metalearn reproduce --record"
LINE_END = re.compile("\r\n|[\r\n\x85\u2028\u2029]")  # as PyYAML and str.splitlines count what YAML may hold


def recorded(about: Mapping[str, Any], tier: str) -> dict[str, Any] | None:
    """The record of a tier: {seeds, steps, minutes, date, commit, machine, runs, plan, figures: {name: {mean,
    ci95, std, episodes}}}, or, for smoke, {torch, cpu, capability, date, commit, losses: {variant: [loss]}}.
    """
    found = (about.get(KEY) or {}).get(tier)
    return dict(found) if found else None


def require_writable(path: Path) -> None:
    """ConfigError for a recipe that is not to be changed: of an installed wheel, or read-only."""
    ours = packaged_folder().resolve()
    if path.resolve().is_relative_to(ours) and not (ours.parent / "pyproject.toml").is_file():
        raise ConfigError(
            f"{path} belongs to an installed metalearn; --record works in a checkout (pip install -e .), or "
            "for a recipe of your own with --config-dir"
        )
    path = path.resolve()  # a link's own folder is not written
    # root may write what nobody else may, and would not be told by os.access
    may = path.stat().st_mode & 0o222 and os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
    if not may:
        raise ConfigError(f"{path} cannot be written, and --record keeps its figures there; chmod u+w {path}")


def write(path: Path, tier: str, record: Mapping[str, Any]) -> bool:
    """Put a tier's record into the recipe's YAML; whether its bytes changed. ConfigError for a file that
    cannot be written, or whose `about:` block cannot be changed line by line.

    A link stays a link, and the file keeps its mode. Who writes another record meanwhile waits.
    """
    try:
        with alone(path.resolve()) as real:
            before = real.read_bytes().decode("utf-8")
            after = with_record(before, tier, record)
            if others(before, tier) != others(after, tier):
                raise ValueError(
                    "something else than the record would change; write `about:` without aliases"
                )
            if outside(before, tier) != outside(after, tier):
                raise ValueError("a byte of another line would change; write `about:` as a plain block")
            if after != before:
                replace(real, after.encode("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
    except (*MISTAKES, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the record has no place: {' '.join(str(error).split())}") from error
    return after != before


@contextlib.contextmanager
def alone(path: Path) -> Iterator[Path]:
    """Within, no other process of ours writes a record of this folder; the lock leaves nothing there."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield path
    finally:
        os.close(folder)


def replace(path: Path, content: bytes) -> None:
    """Write a file anew, with the mode that it has: every reader sees the old content or the new."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write_synced(temporary, content)
        temporary.chmod(path.stat().st_mode & 0o7777)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def outside(text: str, tier: str) -> tuple[str, str]:
    """What stands before a tier's record, and what stands behind it, without the line ends between them.

    Where it is the only record, the line `measured:` belongs to it.
    """
    lines = text.splitlines(keepends=True)
    about = entry_of(yaml.compose(text, Loader=yaml.SafeLoader), "about")
    assert about is not None
    measured = entry_of(about[1], KEY)
    place = last_line(about[1]) + 1
    first, end = place, place
    if measured is not None:
        old = entry_of(measured[1], tier)
        if not is_block(measured[1]) or [key.value for key, _ in measured[1].value] == [tier]:
            first, end = measured[0].start_mark.line, last_line(measured[1]) + 1
        elif old is not None:
            first, end = old[0].start_mark.line, last_line(old[1]) + 1
        else:
            first = end = last_line(measured[1]) + 1
    return "".join(lines[:first]).rstrip("\r\n"), "".join(lines[end:])


def with_record(text: str, tier: str, record: Mapping[str, Any]) -> str:
    """The YAML of a recipe with another record of a tier. ValueError if its `about:` is no block."""
    about = entry_of(yaml.compose(text, Loader=yaml.SafeLoader), "about")
    if about is None or not is_block(about[1]):
        raise ValueError("it needs an `about:` block, with a key on each line, that says what it is")
    indent = " " * about[1].value[0][0].start_mark.column
    measured = entry_of(about[1], KEY)
    if measured is None:
        place = last_line(about[1]) + 1
        return replaced(text, place, place, [f"{indent}{KEY}:{COMMENT}", *lines_of(tier, record, indent * 2)])
    if not is_block(measured[1]):
        if measured[1].value not in ("", "null", "~", []):
            raise ValueError(f"about.{KEY} must have a tier on each line; write them on lines of their own")
        first, last = measured[0].start_mark.line, last_line(measured[1])
        return replaced(
            text, first, last + 1, [f"{indent}{KEY}:{COMMENT}", *lines_of(tier, record, indent * 2)]
        )
    inner = " " * measured[1].value[0][0].start_mark.column
    old = entry_of(measured[1], tier)
    if old is None:
        place = last_line(measured[1]) + 1
        return replaced(text, place, place, lines_of(tier, record, inner))
    return replaced(text, old[0].start_mark.line, last_line(old[1]) + 1, lines_of(tier, record, inner))


def others(text: str, tier: str) -> Any:
    """All that a recipe says, but for one tier's record."""
    content = yaml.safe_load(text)
    measured = content["about"].pop(KEY, None) or {}
    return content, {name: record for name, record in measured.items() if name != tier}


def entry_of(node: Any, key: str) -> tuple[Any, Any] | None:
    """The key and the value of this name in a mapping of YAML."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next((pair for pair in pairs if pair[0].value == key), None)


def is_block(node: Any) -> bool:
    return isinstance(node, yaml.MappingNode) and not node.flow_style and bool(node.value)


def last_line(node: Any) -> int:
    """The number, from 0, of the last line of a node. A block's own end is only where the next thing
    begins.
    """
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return last_line(last[1] if isinstance(last, tuple) else last)
    if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
        buffer = node.start_mark.buffer
        assert buffer is not None
        written = buffer[: node.end_mark.index].rstrip("\0").rstrip()
        return len(LINE_END.findall(written))
    return int(node.end_mark.line)


def replaced(text: str, first: int, end: int, new: list[str]) -> str:
    """A text with other lines in place of those from `first` up to `end`, with the line ends that it has."""
    lines = text.splitlines(keepends=True)
    newline = next((end for end in ("\r\n", "\n", "\r") if end in text), "\n")
    content = [f"{line}{newline}" for line in new]
    head, tail = lines[:first], lines[end:]
    if head and not LINE_END.search(head[-1]):
        head[-1] += newline
    if not tail and lines and not LINE_END.search(lines[-1]):
        content[-1] = content[-1].removesuffix(newline)
    return "".join([*head, *content, *tail])


def lines_of(tier: str, record: Mapping[str, Any], indent: str) -> list[str]:
    """A record as lines of YAML: a line for each key, and for each entry of one that is a mapping."""
    lines = [f"{indent}{tier}:"]
    for key, value in record.items():
        if isinstance(value, Mapping):
            lines.append(f"{indent}  {key}:")
            lines += [f"{indent}    {flow(name)}: {flow(entry)}" for name, entry in value.items()]
        else:
            lines.append(f"{indent}  {key}: {value if key == 'date' else flow(value)}")
    return lines


def flow(value: Any) -> str:
    """A value as YAML on one line."""
    text: str = yaml.safe_dump(
        [value], default_flow_style=True, width=math.inf, allow_unicode=True, sort_keys=False
    )
    return text.strip()[1:-1]


def rounded(mean: float, ci95: float, std: float | None) -> dict[str, float | None]:
    """To two digits of the half-width, as no reader can use more, and the spread to two of its own."""
    return {
        "mean": round(mean, digits(ci95)),
        "ci95": round(ci95, digits(ci95)),
        "std": None if std is None else round(std, digits(std)),
    }


def digits(value: float) -> int:
    """How many behind the point make two digits of a value; six of one that has none."""
    return 1 - math.floor(math.log10(value)) if 0 < value < math.inf else 6
