"""What a killed compiler left in the cache of PyTorch's compiler, under names by which later processes would
load it.

The cache takes whatever has the right name for whole, and the linker writes a library in place. One that was
killed on the way leaves a kernel that is "file too short" ever after, or a broken probe, by which the
compiler learns what the
processor can do: then every later kernel silently does without vector instructions.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import sys
from pathlib import Path

log = logging.getLogger(__name__)

FOLDER = "TORCHINDUCTOR_CACHE_DIR"  # PyTorch's own name for the cache
HEADER = struct.Struct("<16s24xQ10xHH2x")  # of elf(5), 64 bits: e_ident, e_shoff, e_shentsize, e_shnum


def drop_half_written() -> None:
    """Remove compiled files that are not whole, unless a compiler is at them; they are made again when
    needed.
    """
    cache = os.environ.get(FOLDER)
    # Only where the linker writes ELF in place; that of macOS renames what it has finished.
    elf64 = sys.platform.startswith("linux") and sys.byteorder == "little" and sys.maxsize > 2**32
    if cache is None or not elf64:
        return
    # Two levels: what a process compiles in a folder of its own within the cache is not ours.
    compiled = (path for path in Path(cache).glob("??/*") if path.suffix in (".so", ".o"))
    dropped = sum(drop(path, Path(cache) / "locks") for path in compiled)
    if dropped:
        files = f"{dropped} file{'s' * (dropped > 1)}"
        log.warning(
            f"removed {files} that a killed compiler left half written in {cache}; compiling anew what is "
            "needed"
        )


def drop(path: Path, locks: Path) -> bool:
    """Whether this file was half written, and is gone now."""
    from torch.utils._filelock import FileLock  # the lock under which PyTorch writes the file

    # somebody holds the lock (TimeoutError), or the file went at this moment
    with contextlib.suppress(OSError):
        if is_whole(path):
            return False
        locks.mkdir(mode=0o700, exist_ok=True)
        with FileLock(str(locks / f"{path.name.partition('.')[0]}.lock"), timeout=0):
            if not is_whole(path):  # still: another process may have mended it just now
                path.unlink()
                return True
    return False


def is_whole(path: Path) -> bool:
    """Whether the file is as long as its header says, which the linker writes next to last, before the final
    table.
    """
    with path.open("rb") as file:
        head = file.read(HEADER.size)
        size = os.fstat(file.fileno()).st_size
    if len(head) < HEADER.size:
        return False
    ident, start, each, count = HEADER.unpack(head)
    return bool(ident.startswith(b"\x7fELF") and start > 0 and start + each * count <= size)
