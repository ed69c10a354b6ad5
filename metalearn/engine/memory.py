"""How many bytes of tensors a piece of work holds at its peak, and how many the machine has left.

On the CPU tensors are counted as they come and go: the process's own size says little, since the allocator
keeps what it was given once. The count sees what `vmap` really computes on, and `loop`, `vmap` and every
method alike.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What a process grows by, as a multiple of its tensors. On the CPU workspaces and a heap in pieces took 1.2
# to 1.6 times.
OVERHEAD = {"cpu": 1.6, "cuda": 1.2}
# Limits of `ulimit -v` and `-d`, as /proc/self/limits calls them, and what counts towards them in
# /proc/self/status.
ULIMITS = {"Max address space": "VmSize", "Max data size": "VmData"}


@dataclass(frozen=True)
class Demand:
    """Memory of one kind of work: fixed + count · each bytes at its peak.

    dial: what makes count smaller; None if it is made smaller by itself.
    """

    work: str
    count: int
    unit: str
    fixed: float
    each: float
    dial: str | None

    @property
    def peak(self) -> float:
        return self.fixed + self.count * self.each

    def __str__(self) -> str:
        many = f"{self.count} {self.unit}s at once" if self.count > 1 else f"one {self.unit} at a time"
        return f"{readable_bytes(self.peak)} for {many}"

    def complaint(self, free: int | None, overhead: float) -> str | None:
        """What is wrong and the way out, if this does not fit.

        free: bytes, None where nobody knows. overhead: bytes of a process for each byte of its tensors.
        """
        if free is None or self.peak * overhead <= free:
            return None
        fits = int((free / overhead - self.fixed) / self.each)
        smaller = "choose a smaller model, fewer rows or fewer adaptation steps"
        if fits > 0 and self.count > 1:
            smaller = f"set {self.dial}={fits}" if self.dial else f"fewer {self.unit}s will be taken at once"
        return (
            f"{self.work} needs about {self}, which is {readable_bytes(self.peak * overhead)} of the "
            "machine, "
            f"but {readable_bytes(free)} are free; {smaller}"
        )


def peak_bytes(function: Callable[[], Any], device: torch.device) -> int:
    """The most bytes of tensors at once that came into being while the function ran; what was there before
    does not count.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    with LiveBytes() as count:
        function()
    return count.peak


class LiveBytes(TorchDispatchMode):
    """Counts storages made while it is active, each until nothing holds it any more.

    It stands below `torch.func`, so that a mapped operation counts with the tensors of all its tasks.
    Compiled code passes it by.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: dict[int, weakref.ref[UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for leaf in tree_leaves((args, kwargs)):
            self._note(leaf, new=False)
        result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            self._note(leaf, new=True)
        return result

    def _note(self, leaf: Any, *, new: bool) -> None:
        """An argument that was not seen before is older than the count, and so are all views of it."""
        if not isinstance(leaf, Tensor):
            return
        storage = leaf.untyped_storage()
        address = storage._cdata
        if address in self.known:
            return
        size = storage.nbytes() if new else 0

        def forget(_: Any) -> None:
            del self.known[address]
            self.live -= size

        self.known[address] = weakref.ref(storage, forget)
        self.live += size
        self.peak = max(self.peak, self.live)


def free_share(device: torch.device, ranks: int) -> int | None:
    """What each of so many ranks of a run may still take; GPUs have a rank each."""
    free = free_bytes(device)
    return free // ranks if free is not None and device.type == "cpu" else free


def free_bytes(device: torch.device, root: Path = Path("/")) -> int | None:
    """What a process on this device may still take; None where the system does not say.

    root: where /proc and /sys are. The limit of a shell, a container or a batch job counts where it is the
    lower one.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    limits = [number * 1024 for name, number in _pairs(root / "proc/meminfo") if name == "MemAvailable"]
    return min([*limits, *_left_of_ulimits(root), *_left_in_cgroups(root)], default=None)


def _left_of_ulimits(root: Path) -> Iterator[int]:
    """Soft limit minus use of this process's addresses, and of what it writes to."""
    use = dict(_pairs(root / "proc/self/status"))
    for line in _lines(root / "proc/self/limits"):
        # columns of fixed width, since names hold spaces
        name, soft = (
            line[:26].strip(),
            line[26:].split()[:1],
        )
        if name in ULIMITS and soft and soft[0].isdecimal():
            yield max(0, int(soft[0]) - use.get(ULIMITS[name], 0) * 1024)


def _left_in_cgroups(root: Path) -> Iterator[int]:
    """Limit minus use of every control group that this process is in, in both versions of the interface."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, limit_name, use_name, cache = (
                root / "sys/fs/cgroup",
                "memory.max",
                "memory.current",
                "inactive_file",
            )
        elif "memory" in controllers.split(","):
            top, cache = root / "sys/fs/cgroup/memory", "total_inactive_file"
            limit_name, use_name = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        parts = Path(path).parts[1:]
        for depth in range(len(parts) + 1):  # inside a container the lower folders may not be there
            folder = top.joinpath(*parts[:depth])
            limit, use = _number(folder / limit_name), _number(folder / use_name)
            if limit is not None and use is not None:
                # Pages of files that can be dropped at once are not in the way.
                yield limit - use + dict(_pairs(folder / "memory.stat")).get(cache, 0)


def _pairs(path: Path) -> Iterator[tuple[str, int]]:
    """`name: 123 kB` or `name 123`, by line."""
    for line in _lines(path):
        words = line.replace(":", " ").split()
        if len(words) > 1 and words[1].isdecimal():
            yield words[0], int(words[1])


def _number(path: Path) -> int | None:
    """None where the file is missing or says `max`."""
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdecimal() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def readable_bytes(count: float) -> str:
    """12 MiB or 3.4 GiB."""
    mebibytes = count / 2**20
    if mebibytes < 1000:
        return f"{mebibytes:.0f} MiB" if mebibytes >= 10 else f"{mebibytes:.1f} MiB"
    return f"{mebibytes / 1024:.1f} GiB"


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA and Python have a class for it; the CPU's allocators only a sentence."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        word in str(error) for word in ("DefaultCPUAllocator", "bad_alloc")
    )


def first_line(error: BaseException) -> str:
    """What an error says, in a line; Python's own MemoryError says nothing."""
    return (str(error) or "the system refused").splitlines()[0]
