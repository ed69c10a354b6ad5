"""What a logger may say of a run besides its lines: its configuration, its name, its sweep, how it ended."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

JOB = re.compile(r".+_[0-9a-f]{8}")  # the folder of a sweep's job, see `metalearn.sweep.jobs`


def configuration(run_dir: Path) -> dict[str, Any]:
    """config.yaml by dotted key, `{"data.way": 5}`, without what its YAMLs say about themselves.

    OSError or yaml.YAMLError if it is gone or damaged.
    """
    return dict(_leaves(yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8")), ""))


def name_of(run_dir: Path) -> str:
    return run_dir.resolve().name


def sweep_of(run_dir: Path) -> str | None:
    """The name of the sweep that a run is a job of."""
    folder = run_dir.resolve()
    return folder.parent.name if JOB.fullmatch(folder.name) else None


def exit_code(run_dir: Path) -> int | None:
    """With which a run ended; None for one that goes on, or that does not say."""
    try:
        code = json.loads((run_dir / "status.json").read_text(encoding="utf-8"))["exit_code"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return code if isinstance(code, int) else None


def _leaves(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and key != "about":
            yield from _leaves(value, f"{prefix}{key}.")
        elif key != "about":
            yield f"{prefix}{key}", value
