"""Facts about the machine and the software that a run was made with, for env.json."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("metalearn-runner", "torch", "torchvision", "numpy", "hydra-core", "omegaconf", "safetensors")
NOWHERE: Mapping[str, str] = {}
EXACTNESS = ("versions", "hardware")  # facts on which equal bits depend
SAME = ("torch", "cpu", "capability")  # of `machine`: where all of these are equal, so is every bit


def environment(
    data_sha256: str,
    device: torch.device,
    ranks: int,
    *,
    locations: Mapping[str, str] = NOWHERE,
) -> dict[str, Any]:
    """JSON values: versions, hardware, git sha (None outside a clone), data_sha256, working folder, argv.

    locations: absolute paths of what the configuration names by paths.
    """
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "hardware": {**hardware(device), "ranks": ranks},
        "git_sha": _git("rev-parse", "HEAD"),
        "git_dirty": None if (status := _git("status", "--porcelain")) is None else bool(status),
        "data_sha256": data_sha256,
        "locations": dict(locations),
        "working_folder": _working_folder(),
        "argv": sys.argv,
    }


def hardware(device: torch.device) -> dict[str, Any]:
    facts = {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "num_cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device.type,
    }
    return {**facts, "gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else facts


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What changed between two environments that equal bits depend on, one line each."""
    lines = []
    for part in EXACTNESS:
        before, after = then.get(part), now[part]
        if not isinstance(before, dict):
            before = {}  # a file that somebody else wrote
        lines += [
            f"{name} was {before.get(name)}, is {after[name]}"
            for name in after
            if before.get(name) != after[name]
        ]
    return lines


def machine() -> dict[str, str]:
    """What the last bits of a computation on the CPU depend on, by the names in SAME."""
    cpu = ", ".join([_cpu_name(), *_make()])
    capability = torch.backends.cpu.get_cpu_capability()
    return {"torch": str(torch.__version__), "cpu": cpu, "capability": capability}


def commit() -> str | None:
    """The commit of this checkout, with -dirty where files differ from it; None outside a clone."""
    return commit_of({"git_sha": _git("rev-parse", "HEAD"), "git_dirty": bool(_git("status", "--porcelain"))})


def commit_of(env: Mapping[str, Any]) -> str | None:
    """The same of a run, by its env.json."""
    sha = env.get("git_sha")
    return f"{sha[:10]}{'-dirty' if env.get('git_dirty') else ''}" if isinstance(sha, str) else None


def _make() -> list[str]:
    """Which processor it is: many that differ, by their caches say, give themselves the same name in a
    virtual machine.
    """
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").partition("\n\n")[0].splitlines() if path.exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    known = [
        f"{key} {facts[key]}" for key in ("cpu family", "model", "stepping", "cache size") if key in facts
    ]
    return [*known, f"flags {hashlib.sha256(facts.get('flags', '').encode()).hexdigest()[:8]}"]


def _working_folder() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was removed
        return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )


def _git(*words: str) -> str | None:
    """What git says about the folder that this package lies in; None when that is no clone of ours."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
