"""Files that list tasks, to judge on exactly these: JSON lines, as `metalearn data lock` writes them, or CSV.

A line of JSON is {"task": name, "support": [row, …], "query": [row, …]}. A row names its picture by
{"class": …, "drawing": 5} or {"file": "a/b.png"} (or its user and item), and may say the "label"; without
labels, classes are numbered in the order in which the support names them. A row of a function is
{"x": [...], "y": [...]}, in JSON only. A CSV has a row for each row of a task, with columns task, part
(support or query), and class, file, … as above. Other libraries' words are understood: episode, set,
filename, image, path, user.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metalearn import files
from metalearn.core import Row
from metalearn.errors import ConfigError, DataError

MAX_BYTES = 1 << 30
WORDS: dict[str, tuple[str, ...]] = {
    "task": ("task", "episode", "task_id", "episode_id"),
    "part": ("part", "set", "role", "subset"),
    "owner": ("class", "user", "category", "wnid"),
    "item": ("file", "drawing", "item", "row", "filename", "image", "path"),
}
PARTS = {"support": "support", "query": "query", "target": "query", "train": "support", "test": "query"}


class TaskLine(NamedTuple):
    """A task of a file. rows: mappings as they stand there. place: where, for messages."""

    name: str
    source: str | None
    support: list[dict[str, Any]]
    query: list[dict[str, Any]]
    place: str


def read_tasks(path: Path) -> list[TaskLine]:
    """ConfigError for a file that is not there or lists no task, DataError for one that is broken."""
    if path.suffix not in (".jsonl", ".json", ".csv"):
        raise ConfigError(f"eval.tasks={path} is neither a .jsonl nor a .csv file; see `metalearn data lock`")
    try:
        text = files.read_bytes(path, MAX_BYTES).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"eval.tasks={path} does not exist; write one with: metalearn data lock") from error
    except (OSError, ValueError) as error:
        raise DataError(f"eval.tasks={path} cannot be read: {error}") from error
    found = list(_of_csv(path, text) if path.suffix == ".csv" else _of_json(path, text))
    if not found:
        raise ConfigError(f"eval.tasks={path} lists no task; a line of it is one task")
    for task in found:
        for part in ("support", "query"):
            if not getattr(task, part):
                raise DataError(f"{task.place}: task {task.name!r} has no {part} row")
    return found


def _of_json(path: Path, text: str) -> Iterator[TaskLine]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            tree = json.loads(line)
            support, query = ([dict(row) for row in tree[part]] for part in ("support", "query"))
            source = tree.get("source")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(
                f'{place} is no task: expected {{"support": [{{"class": …}}, …], "query": […]}} ({error})'
            ) from error
        yield TaskLine(str(_word(tree, "task", number - 1)), source, support, query, place)


def _of_csv(path: Path, text: str) -> Iterator[TaskLine]:
    reader = csv.DictReader(text.splitlines(), strict=True)
    tasks: dict[str, TaskLine] = {}
    columns = [name.strip() for name in reader.fieldnames or ()]
    reader.fieldnames = columns
    for word in ("task", "part"):
        if not any(name in columns for name in WORDS[word]):
            raise DataError(
                f"{path} has no column {word}, only {', '.join(columns) or 'none'}; expected task, part "
                "(support or query), and class and file of each row"
            )
    try:
        for row in reader:
            place = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                raise DataError(f"{place} has not {len(columns)} cells, as the first line has")
            name, part = str(_word(row, "task")), str(_word(row, "part")).strip().lower()
            if part not in PARTS:
                raise DataError(f"{place}: {part!r} is neither support nor query")
            task = tasks.setdefault(name, TaskLine(name, None, [], [], place))
            getattr(task, PARTS[part]).append({key: value for key, value in row.items() if value != ""})
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}") from error
    yield from tasks.values()


def rows_of(line: TaskLine, part: str) -> list[Row]:
    """The rows by name, labels only where the file has them. DataError for a row that names nothing."""
    rows = []
    for entry in getattr(line, part):
        owner, item = _word(entry, "owner", ""), _word(entry, "item")
        if isinstance(item, float) and item.is_integer():
            item = int(item)
        if item is not None and (isinstance(item, bool) or not isinstance(item, (int, str))):
            raise DataError(f"{line.place}: {item!r} of a {part} row is neither a name nor a whole number")
        if item is None:
            raise DataError(
                f"{line.place}: a {part} row names no picture; expected one of {', '.join(WORDS['item'])}, "
                f"found {', '.join(map(str, entry)) or 'nothing'}"
            )
        label, turned = entry.get("label"), entry.get("turned", 0)
        if not owner and isinstance(label, str) and not label.isdecimal():
            owner, label = label, None  # a class by its name, as other libraries' files have it
        try:
            rows.append(Row(str(owner), item, None if label is None else _number(label), int(turned)))
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(
                f"{line.place}: label={label}, turned={turned} of a {part} row; {error}"
            ) from error
    return rows


def _number(label: Any) -> int | float:
    value = float(label)
    return int(value) if value == int(value) else value


def _word(entry: Mapping[str, Any], word: str, default: Any = None) -> Any:
    """The value under one of the names of a word."""
    return next((entry[name] for name in WORDS[word] if name in entry), default)


def numbers_of(lines: Sequence[TaskLine], part: str, name: str) -> list[list[Any]]:
    """The entries `name` of the rows of each task. DataError for one that is missing."""
    try:
        return [[row[name] for row in getattr(line, part)] for line in lines]
    except LookupError as error:
        raise DataError(f"{lines[0].place} and below: a {part} row has no {name!r}") from error
