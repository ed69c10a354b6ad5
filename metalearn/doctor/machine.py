"""Versions, device, threads and allocator of this machine."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path

import torch

from metalearn.build.device import build_device, default_threads, num_cores, prepare_host
from metalearn.doctor.checks import FailedError, SkippedError
from metalearn.rundir.environment import PACKAGES, hardware

DISTRIBUTION = "metalearn-runner"
BLOCK = 64 << 20  # bytes of a large temporary
ORDINARY = {"device": {"threads": None, "precision": "float32"}}
GPU = Path("/dev/nvidia0")


class MallInfo(ctypes.Structure):
    """struct mallinfo2 of glibc's malloc.h."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def versions() -> str:
    """Every package that numbers depend on, held against what this package asks for."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    problems = [
        f"{name} {found[name]} is not {wanted}"
        for name, wanted in wanted_versions().items()
        if not fits(found.get(name), wanted)
    ]
    if problems:
        raise FailedError(f"{', '.join(problems)}; repair it with: pip install --upgrade {DISTRIBUTION}")
    return ", ".join(f"{name} {number}" for name, number in found.items())


def wanted_versions() -> dict[str, str]:
    """Packages and the versions that the installed distribution asks for; nothing in a checkout that was not
    installed.
    """
    try:
        facts = metadata(DISTRIBUTION)
    except PackageNotFoundError:
        return {}
    required = [line for line in facts.get_all("Requires-Dist") or [] if ";" not in line]
    pairs = [
        match.groups() for line in required if (match := re.fullmatch(r"([\w.-]+)\s*\(?([^()]*)\)?", line))
    ]
    return {
        "python": facts["Requires-Python"] or "",
        **{name: wanted for name, wanted in pairs if name in PACKAGES},
    }


def fits(found: str | None, wanted: str) -> bool:
    """Whether a version is within `>=A,<B`. Only the numbers of a release count: 1.4.0rc3 is 1.4.0."""
    if found is None:
        return True
    bounds = re.findall(r"(>=|<)\s*([\d.]+)", wanted)
    return all(
        release(found) >= release(bound) if sign == ">=" else release(found) < release(bound)
        for sign, bound in bounds
    )


def release(text: str) -> list[int]:
    match = re.match(r"[\d.]+", text)
    return [int(part) for part in match[0].strip(".").split(".")] if match else []


def device() -> str:
    """Where `device=auto` computes, tried with a product whose result is known."""
    chosen = build_device({"device": {"name": "auto"}})
    x = torch.arange(6.0, device=chosen).reshape(2, 3)
    product = (x @ x.T).tolist()
    if product != [[5.0, 14.0], [14.0, 50.0]]:
        raise FailedError(
            f"{chosen} computes a product of matrices as {product}, expected [[5, 14], [14, 50]]; use "
            "device=cpu"
        )
    if chosen.type == "cuda":
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        return f"cuda ({', '.join(names)}; CUDA {torch.version.cuda})"
    if GPU.exists():
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
        raise FailedError(
            f"{GPU} is there, but PyTorch, which {built}, finds no CUDA device; compare with nvidia-smi, or "
            "use device=cpu"
        )
    return "cpu (PyTorch finds no CUDA device)"


def processor() -> str:
    cores = num_cores()
    capability = torch.backends.cpu.get_cpu_capability()
    return (
        f"{hardware(torch.device('cpu'))['cpu']}, {capability} kernels, {cores} "
        f"core{'s' if cores > 1 else ''} for this process"
    )


def threads() -> str:
    """More threads than cores fight over them, and slow a run down; its numbers are right all the same."""
    count, cores = default_threads(), num_cores()
    advice = (
        f"; set device.threads={cores} or OMP_NUM_THREADS={cores}, as more only wait for each other"
        if count > cores
        else ""
    )
    return f"{count} of {cores} cores{advice}"


def allocator() -> str:
    """Whether glibc keeps the memory of large temporaries, as a run asks of it."""
    libc = ctypes.CDLL(None)
    if platform.libc_ver()[0] != "glibc" or not hasattr(libc, "mallinfo2"):
        raise SkippedError(
            "only glibc 2.33 or later says what it does with large temporaries; if it maps them anew, vmap "
            "is slower"
        )
    libc.mallinfo2.restype = MallInfo
    prepare_host(ORDINARY)
    before = libc.mallinfo2()
    block = torch.empty(BLOCK, dtype=torch.uint8)
    after = libc.mallinfo2()
    mapped, kept = after.hblkhd - before.hblkhd, after.uordblks - before.uordblks
    if mapped >= block.nbytes:
        raise FailedError(
            "glibc maps large temporaries anew, which makes vmap 3 to 5 times slower; look for MALLOC_ "
            "settings in: env"
        )
    if kept < block.nbytes:
        raise SkippedError(
            f"another allocator than glibc's serves PyTorch (LD_PRELOAD={os.environ.get('LD_PRELOAD', '')})"
        )
    return "glibc keeps the memory of large temporaries"
