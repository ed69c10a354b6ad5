"""Sweeps without the training: what stands in for it, and what a sweep's folder says."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import yaml

from metalearn.cli import main as cli
from metalearn.config.saved import read_saved
from metalearn.run import slurm
from metalearn.rundir.reader import refuse_existing_run


def finish(
    cfg: dict[str, Any], overrides: list[str], run_dir: Path, code: int = 0, status: str | None = None
) -> int:
    """What train leaves behind, without the training."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(yaml.safe_dump(cfg))
    (run_dir / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    (run_dir / "status.json").write_text(
        json.dumps({"status": status or ("failed" if code else "finished"), "exit_code": code})
    )
    return code


class Trainings:
    """Stands in for train and resume, and remembers what was asked. ends: exit code or exception by seed."""

    def __init__(self, ends: dict[int, int | Exception] | None = None) -> None:
        self.ends = ends or {}
        self.trained: list[int] = []
        self.resumed: list[tuple[str, list[str]]] = []

    def train(
        self,
        cfg: dict[str, Any],
        overrides: list[str],
        run_dir: Path,
        *,
        requeue: slurm.Requeue,
        prebuilt: Any,
    ) -> int:
        refuse_existing_run(dict(cfg, run_dir=run_dir))
        self.trained.append(cfg["seed"])
        end = self.ends.get(cfg["seed"], 0)
        if isinstance(end, Exception):
            raise end
        return finish(cfg, overrides, run_dir, end, "preempted" if end in (130, 143) else None)

    def resume(self, run_dir: Path, overrides: list[str], *, requeue: slurm.Requeue, prebuilt: Any) -> int:
        self.resumed.append((run_dir.name.rpartition("_")[0], overrides))
        return finish(read_saved(run_dir), yaml.safe_load((run_dir / "overrides.yaml").read_text()), run_dir)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def states(folder: Path) -> dict[str, str]:
    """What sweep.csv says of each job, by the readable part of its name."""
    return {row["job"].rpartition("_")[0]: row["status"] for row in rows(folder)}


def sweep(folder: Path, *words: str) -> int:
    return cli.main(["train", "-m", "data=sinusoid", *words, f"run_dir={folder}"])
