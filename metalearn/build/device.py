"""What the machine gives a run: allocator, threads, device and the number of ranks."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from pathlib import Path

import torch

from metalearn.build.instantiate import Config
from metalearn.errors import ConfigError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # names of glibc's malloc.h


def prepare_host(cfg: Config) -> None:
    """Allocator, thread count and default precision of this process, set in full so that jobs of a sweep do
    not inherit them.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        # Large temporaries through mmap are returned and faulted in again at every step, which costs vmap a
        # factor of 3 to 5.
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    torch.set_num_threads(
        cfg["device"]["threads"] or (1 if cfg["device"].get("ranks", 1) != 1 else default_threads())
    )
    torch.set_default_dtype(torch.float64 if cfg["device"]["precision"] == "float64" else torch.float32)
    deterministic = cfg["device"].get("deterministic", False)
    if deterministic != torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(deterministic)  # which loads the compiler, a second and a half
    torch.backends.cudnn.benchmark = False  # it would choose by timing, and bits would differ from run to run
    if deterministic:  # cuBLAS reads it at its first use, and matrix products are refused without it
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@functools.cache
def default_threads() -> int:
    return torch.get_num_threads()


default_threads()  # remembered before any run changes it


def build_device(cfg: Config, rank: int = 0) -> torch.device:
    """Where this rank of the run computes: on CUDA each has a GPU of its own."""
    name, ranks = cfg["device"]["name"], cfg["device"].get("ranks", 1)
    have = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if have else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise ConfigError(f"device.name={name} is none of auto, cpu, cuda, cuda:NUMBER")
    if kind == "cuda" and int(index or 0) >= have:
        found = f"{have} CUDA devices" if have else "no CUDA device"
        raise ConfigError(
            f"device={name}, but PyTorch finds {found} on this machine; use device=cpu or device=auto"
        )
    if kind == "cpu" or ranks in (1, "auto"):
        return torch.device(name)
    if index:
        raise ConfigError(
            f"device.name={name} is one GPU, but device.ranks={ranks} want one each; use device=cuda or "
            "device.ranks=1"
        )
    if ranks > have:
        raise ConfigError(
            f"device.ranks={ranks}, but PyTorch finds {have} GPUs and every rank needs its own; use "
            "device.ranks=auto"
        )
    return torch.device(kind, rank)


def num_ranks(cfg: Config) -> int:
    """device.ranks as a number. auto: one for each GPU, or each core that this process may use, as long as
    each has a task.
    """
    ranks = cfg["device"]["ranks"]
    if ranks != "auto":
        return int(ranks)
    device = build_device(cfg)
    if device.index is not None:
        return 1
    have = torch.cuda.device_count() if device.type == "cuda" else num_cores()
    return min(have, cfg["trainer"]["meta_batch_size"])


def num_cores() -> int:
    """Cores that this process may use: those it is bound to, or the share that a container grants if that is
    less.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = map(int, Path("/sys/fs/cgroup/cpu.max").read_text().split())
    except (OSError, ValueError):  # no Linux, or no limit, which is written "max"
        return bound
    return max(1, min(bound, quota // period))
