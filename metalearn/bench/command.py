"""The verb: workload after workload, each table as soon as it is known, everything in one JSON file."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from metalearn.bench import report, runner, scaling
from metalearn.bench.case import Options
from metalearn.bench.workloads import WORKLOADS, Workload
from metalearn.errors import ConfigError, MetalearnError
from metalearn.files import replace_shared
from metalearn.rundir.environment import environment

LIBRARIES = ("torch", "higher", "torchopt", "learn2learn")
SCALED = "stride2_5w1s"  # the workload whose growth is measured


def bench(workloads: Sequence[Workload], options: Options, path: Path | None) -> None:
    """Measure and print; keep all that is known in the JSON file after every workload.

    Raises MetalearnError at the end if none of our own plans was right on some workload.
    """
    results: dict[str, Any] = {"machine": {}}
    wrong = []
    for workload in workloads:
        if workload.kind == "scaling":
            [scaled] = [other for other in WORKLOADS if other.name == SCALED]
            found = results[workload.name] = scaling.curves(scaled, options)
            print(scaling.table(found), flush=True)
            print(
                f"  drawn in {scaling.plot(found, path.with_suffix('.png') if path else Path('bench.png'))}"
                "\n",
                flush=True,
            )
        else:
            found = results[workload.name] = runner.take(workload, options)
            print(report.table(workload.name, found) + "\n", flush=True)
            wrong += [] if found["best_plan"] else [workload.name]
        results["machine"] = machine(options.device)
        if path is not None:
            write(path, results)
    if wrong:
        raise MetalearnError(
            f"no plan of ours gave the right result on {', '.join(wrong)}; the table says how far off each is"
        )


def machine(device: str = "cpu") -> dict[str, Any]:
    """What the numbers depend on besides the code; JSON values."""
    facts = environment("", torch.device(device), ranks=1)
    versions = {name: installed(name) for name in LIBRARIES}
    return {
        **facts["hardware"],
        "python": platform.python_version(),
        **versions,
        "git_sha": facts["git_sha"],
        "git_dirty": facts["git_dirty"],
        "date": date.today().isoformat(),
    }


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def require_writable(path: Path) -> None:
    """ConfigError now rather than after an hour of measuring."""
    if path.is_dir():
        raise ConfigError(f"--json {path} is a folder; name a file, as in --json bench.json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        write(part, {})
        part.unlink()
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(
            f"--json {path} cannot be written: {path.parent} is not a folder; choose another file"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"--json {path} cannot be written: {error.strerror or error}; choose another file"
        ) from error


def write(path: Path, results: dict[str, Any]) -> None:
    replace_shared(path, json.dumps(rounded(results), indent=1) + "\n")


def rounded(value: Any) -> Any:
    """Six digits of every number."""
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
