"""Time, memory, arithmetic, and what the machine could do at best; all of it in the same process and the same
run.
"""

from __future__ import annotations

import ctypes
import gc
import math
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

SHORTEST = 0.1  # seconds that one timing takes at least, by repeating the work
SIZES = (512, 1024, 2048)  # of the matrix products that the machine's peak is measured with
CUDA_SIZES = (2048, 4096, 8192)  # the same on a GPU
PEAK_ROUNDS = 5
FIRST_WITH_TF32 = (8, 0)  # compute capability
CPU = torch.device("cpu")
WRITE_RESET_PEAK = "5"  # /proc/PID/clear_refs: forget the highest resident size, see proc(5)
MEGABYTE = 1e6


def seconds_of(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def interleaved(works: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds per call of each work, `repeats` times, taking turns: what else the machine does falls on all
    alike.

    Every round begins with another work. Short ones are called so often that a timing takes SHORTEST.
    """
    calls = {name: max(1, math.ceil(SHORTEST / max(seconds_of(work), 1e-9))) for name, work in works.items()}
    taken: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    with quick_collections():
        for number in range(repeats):
            first = number % len(names) if names else 0
            for name in names[first:] + names[:first]:
                gc.collect()  # so that nobody pays for the garbage of the one before
                start = time.perf_counter()
                for _ in range(calls[name]):
                    works[name]()
                taken[name].append((time.perf_counter() - start) / calls[name])
    return taken


@contextmanager
def quick_collections() -> Iterator[None]:
    """Garbage is looked for among new objects only, not among the hundred thousands of imported libraries."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def settled(work: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """The work, until the device has really done it: on CUDA a call returns before that."""
    if device.type != "cuda":
        return work

    def until_done() -> Any:
        result = work()
        torch.cuda.synchronize(device)
        return result

    return until_done


def peak_mb(work: Callable[[], Any], others: Sequence[int] = (), device: torch.device = CPU) -> float | None:
    """Megabytes that the process grows by, at the highest, while the work runs; None where the system does
    not tell.

    others: process ids that take part; all that they hold counts, since they would not exist otherwise.
    The heap is given back before, so that what earlier work left there cannot serve as memory for free. On
    CUDA it is the memory of tensors on the device, which a CUDA graph holds all the time.
    """
    if device.type == "cuda":
        return _peak_mb_of_cuda(work, device)
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text(WRITE_RESET_PEAK, encoding="ascii")
        before = _resident("self", "VmRSS")
    except (OSError, ValueError):  # not Linux, or a sandbox
        return None
    work()
    return _resident("self", "VmHWM") - before + sum(_resident(pid, "VmRSS") for pid in others)


def _peak_mb_of_cuda(work: Callable[[], Any], device: torch.device) -> float:
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / MEGABYTE


def _resident(pid: int | str, field: str) -> float:
    found = re.search(
        rf"^{field}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"), re.MULTILINE
    )
    if found is None:
        raise ValueError(f"/proc/{pid}/status has no {field}")
    return int(found[1]) * 1024 / MEGABYTE


def flops(work: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products and convolutions, a multiplication and an addition
    being two.
    """
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def matmul_peak(device: torch.device = CPU) -> float:
    """GFLOP/s of the fastest of a few square matrix products of `matmul_precision`: what this machine, with
    these threads, can do.
    """
    best = 0.0
    with products_as_convolutions():
        for size in SIZES if device.type == "cpu" else CUDA_SIZES:
            a, b = torch.randn(2, size, size, device=device)
            product = torch.empty(size, size, device=device)
            multiply = settled(partial(torch.mm, a, b, out=product), device)
            multiply()
            best = max(best, *(2 * size**3 / seconds_of(multiply) / 1e9 for _ in range(PEAK_ROUNDS)))
    return best


def matmul_precision(device: torch.device = CPU) -> str:
    """What `matmul_peak` multiplies float32 in: TF32 (10 bits behind the point) where convolutions do."""
    if device.type != "cuda" or not convolutions_in_tf32():
        return "float32"
    return "TF32" if torch.cuda.get_device_capability(device) >= FIRST_WITH_TF32 else "float32"


def convolutions_in_tf32() -> bool:
    return bool(torch.backends.cudnn.allow_tf32)


@contextmanager
def products_as_convolutions() -> Iterator[None]:
    """Matrix products on CUDA take TF32 where cuDNN does, as PyTorch lets only convolutions do by default: a
    network of convolutions would otherwise reach more than the peak.
    """
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = convolutions_in_tf32()
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
