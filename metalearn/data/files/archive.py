"""What a zip or tar file holds, read in memory and never unpacked to disk.

Every entry is judged by a check of our own, whatever the Python version does: plain files and folders only,
with names that stay inside the archive, and sizes that stay below the limits, so that no link, device,
absolute path, `..` or bomb is followed.
"""

from __future__ import annotations

import gzip
import io
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from metalearn.errors import DataError

MAX_FILE = 500 << 20  # bytes of the archive itself
SUFFIXES = (".zip", ".tar", ".tar.gz")
DRIVE = re.compile(r"[A-Za-z]:")
KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}
PLAIN_ZIP = (0, stat.S_IFREG, stat.S_IFDIR)  # 0: written on a system without Unix modes
PLAIN_TAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE)
# the others unpack a whole block before they can be stopped
STORED_OR_DEFLATED = (
    zipfile.ZIP_STORED,
    zipfile.ZIP_DEFLATED,
)


@dataclass(frozen=True)
class Limits:
    """entries: how many there may be. size: bytes of one of them, unpacked. total: bytes of all of them."""

    entries: int
    size: int
    total: int


class Entry(NamedTuple):
    """name: as the archive has it, with slashes."""

    name: str
    content: bytes


def read_entries(path: Path, limits: Limits) -> Iterator[Entry]:
    """The files of an archive. Raises DataError that names the archive and what is wrong with it; then
    nothing may be used.
    """
    if path.stat().st_size > MAX_FILE:
        raise DataError(
            f"{path} has {path.stat().st_size} bytes; at most {MAX_FILE} are read. It was not used"
        )
    reader = _from_zip if path.suffix == ".zip" else _from_tar
    try:
        yield from reader(path, _Judge(path, limits))
    # RuntimeError and what derives from it are zipfile's words for a compression or an encryption that a
    # damaged header claims.
    except (
        *(zipfile.BadZipFile, tarfile.TarError, zlib.error),
        *(OSError, EOFError, RuntimeError, ValueError, OverflowError),
    ) as error:
        reason = str(error) or type(error).__name__
        raise DataError(
            f"{path} is damaged or incomplete ({reason}); it was not used. Delete it, or replace it by the "
            "official archive"
        ) from error


class _Judge:
    """Counts the entries of one archive, and refuses it at the first that is not as it should be."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self.path, self.limits = path, limits
        self.entries = self.total = 0

    def judge(self, name: str, size: int, kind: str | None) -> None:
        """kind: what the entry is if it is neither a file nor a folder."""
        limits = self.limits
        self.entries += 1
        self.total += max(size, 0)
        if self.entries > limits.entries:
            self.refuse(f"holds more than {limits.entries} entries")
        if name.startswith(("/", "\\")) or DRIVE.match(name) or ".." in name.replace("\\", "/").split("/"):
            self.refuse(f"holds a member with the path {name!r}, which leaves the archive")
        if not name or not name.isprintable():
            self.refuse(f"holds a member with the name {name!r}")
        if kind is not None:
            self.refuse(f"holds {name!r}, which is {kind}; only files and folders are read")
        if not 0 <= size <= limits.size:
            self.refuse(f"holds {name!r}, which unpacks to {size} bytes; at most {limits.size} are read")
        if self.total > limits.total:
            self.refuse(f"unpacks to more than {limits.total} bytes")

    def refuse(self, reason: str) -> None:
        raise DataError(f"{self.path} {reason}; it was not used")


def _from_zip(path: Path, judge: _Judge) -> Iterator[Entry]:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        for info in members:  # all of them before the first is read
            mode = stat.S_IFMT(info.external_attr >> 16)
            kind = None if mode in PLAIN_ZIP else KINDS.get(mode, f"of kind {mode:o}")
            if info.compress_type not in STORED_OR_DEFLATED:
                kind = f"compressed by method {info.compress_type}"
            judge.judge(info.orig_filename, info.file_size, kind)
        for info in members:
            if not info.is_dir():
                with archive.open(info) as file:
                    # Without a number, zipfile unpacks whatever lies there before it looks at the size that
                    # was promised.
                    yield Entry(info.filename, file.read(info.file_size + 1))


def _from_tar(path: Path, judge: _Judge) -> Iterator[Entry]:
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    opener: Callable[..., Any] = gzip.open if compressed else open
    # As a stream: what is skipped is counted too, and nothing can send the reader back to where it was.
    with (
        opener(path, "rb") as unpacked,
        tarfile.open(fileobj=_Metered(unpacked, judge), mode="r|") as archive,
    ):
        for member in archive:
            plain = member.type in PLAIN_TAR and not member.sparse
            kind = None if plain else KINDS.get(member.type, f"of kind {member.type!r}")
            judge.judge(member.name, member.size, kind)
            content = archive.extractfile(member) if member.isfile() else None
            if content is not None:
                yield Entry(member.name, content.read())


class _Metered(io.BufferedIOBase):
    """Reads on, until more bytes came out of the compression than the entries and their headers can have."""

    def __init__(self, file: IO[bytes], judge: _Judge) -> None:
        super().__init__()
        self.file, self.judge = file, judge
        self.left = judge.limits.total + 4096 * (judge.limits.entries + 10)  # headers, padding, long names

    def read(self, size: int | None = -1, /) -> bytes:
        content = self.file.read(self.left + 1 if size is None or size < 0 else min(size, self.left + 1))
        self.left -= len(content)
        if self.left < 0:
            self.judge.refuse(f"unpacks to more than {self.judge.limits.total} bytes")
        return content
