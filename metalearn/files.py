"""Files: read safely, written whole or not at all. Nothing here needs torch.

YAML and JSON may be a stranger's: regular files of a sane size that unpack to a sane size. Everything that
can be wrong with a document is a ValueError with a reason; a file that cannot be read is an OSError.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import uuid
from pathlib import Path
from typing import Any

import yaml

MAX_YAML, MAX_JSON = 1 << 20, 64 << 20  # bytes; a megabyte of YAML takes seconds
# values of a YAML after its aliases are written out: a few lines of aliases of aliases make billions
MAX_NODES = 100_000
# YAMLError and ValueError are PyYAML's answers to a bad document; the others are its own mistakes on odd
# tags.
MISTAKES = (yaml.YAMLError, ValueError, RecursionError, LookupError, AttributeError, TypeError, OverflowError)


def read_text(path: Path, max_bytes: int | None) -> str:
    """The text of a regular file."""
    return read_bytes(path, max_bytes).decode("utf-8")


def read_bytes(path: Path, max_bytes: int | None) -> bytes:
    """The content of a regular file. A pipe or a device in its place would be read for ever."""
    if path.exists() and not path.is_file():
        raise ValueError("it is not a file")
    if max_bytes is not None and path.stat().st_size > max_bytes:
        raise ValueError(f"it has {path.stat().st_size} bytes; at most {max_bytes} are read")
    return path.read_bytes()


def read_yaml(path: Path) -> Any:
    """What a YAML file holds: plain values only, whatever its tags ask for."""
    text = read_text(path, MAX_YAML)
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        refuse_growth(nodes_of(node, {}))
        return loader.construct_document(node) if node is not None else None
    except MISTAKES as error:
        raise ValueError(sentence(error)) from error


def check_yaml(path: Path) -> None:
    """Raise ValueError for a YAML file that is none, or too large. Its values are not made."""
    try:
        count = nodes_of(yaml.compose(read_text(path, MAX_YAML), Loader=yaml.SafeLoader), {})
    except MISTAKES as error:
        raise ValueError(sentence(error)) from error
    refuse_growth(count)


def refuse_growth(count: int) -> None:
    if count > MAX_NODES:
        raise ValueError(f"its aliases make it larger than {MAX_NODES} values, or go in a circle")


def nodes_of(node: Any, known: dict[int, int]) -> int:
    """Values below a node with aliases written out; more than MAX_NODES if one contains itself."""
    if id(node) not in known:
        known[id(node)] = MAX_NODES + 1  # for an alias of itself
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for child in inner for part in (child if isinstance(child, tuple) else (child,))]
        known[id(node)] = min(1 + sum(nodes_of(part, known) for part in parts), MAX_NODES + 1)
    return known[id(node)]


def read_json(path: Path) -> Any:
    """What a JSON file holds."""
    text = read_text(path, MAX_JSON)
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(sentence(error)) from error


def sentence(error: BaseException) -> str:
    """The reason in one line."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return " ".join(str(error).split()) or type(error).__name__


log = logging.getLogger(__name__)


class LineFile:
    """What the disk refuses is kept in memory and written before what follows; a warning is said when a row
    of refusals begins.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._pending = b""
        self._refused = False

    def write(self, text: str) -> None:
        """Append whole lines. Never raises for the disk's sake."""
        self._pending += text.encode("utf-8", "backslashreplace")
        try:
            self._flush()
            self._refused = False
        except OSError as error:
            if not self._refused:
                self._refused = True  # first, as the warning may be a line for this file
                log.warning(
                    f"{self.path} cannot be written: {error.strerror}; its lines are kept in memory until it "
                    "can"
                )

    def sync(self) -> int:
        """Bytes that are safely on the disk, which is everything that was written. OSError if the disk
        refuses.
        """
        descriptor = self._flush()
        os.fsync(descriptor)
        return os.fstat(descriptor).st_size

    def rewind(self, offset: int) -> None:
        """Forget what was written after so many bytes."""
        self._pending = b""
        os.ftruncate(self._open(), offset)

    def close(self) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                self._flush()
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> int:
        if self._descriptor is None:
            self._descriptor = os.open(
                self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666
            )
        return self._descriptor

    def _flush(self) -> int:
        descriptor = self._open()
        while self._pending:
            self._pending = self._pending[os.write(descriptor, self._pending) :]
        return descriptor


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that every reader sees the old content or the new, whatever happens meanwhile."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        write_synced(temporary, content)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def replace_shared(path: Path, text: str) -> None:
    """Write a file that several processes may write at once: whoever reads it sees one of them whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache_folder(cache_dir: str | Path | None) -> Path:
    """data.cache_dir, else $XDG_CACHE_HOME/metalearn, else ~/.cache/metalearn."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "metalearn"
