"""Writing down the tasks of an evaluation, for any program to judge on the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from metalearn.build.device import prepare_host
from metalearn.build.objects import build_source
from metalearn.build.places import settled
from metalearn.core import InputSpec, TaskSpec
from metalearn.engine.evaluate import EvalSpec, hashes_of, limited
from metalearn.engine.locked import judged_source
from metalearn.engine.task_names import lines, tasks_sha256
from metalearn.errors import ConfigError
from metalearn.files import replace_file

LARGEST = 1024  # numbers of a row without a name that are still written out


def write_tasks(cfg: dict[str, Any], path: Path, run_dir: Path | None = None) -> str:
    """The tasks of the evaluation that a configuration asks for, one JSON line each; a sentence about it.

    run_dir: of a run, whose data may have moved with it. ConfigError for rows that have no names and are too
    large to be written out.
    """
    spec = EvalSpec(**cfg["eval"])
    prepare_host(cfg)
    data = cfg if run_dir is None else settled(cfg, cfg, run_dir)
    source = judged_source(build_source(data, torch.device("cpu")), spec.tasks, spec.split)
    source.check((spec.split,))
    spec = limited(spec, source)
    size = row_size(source.spec(spec.split))
    if source.named(spec.split, seed=spec.seed, first=0, count=1) is None and size > LARGEST:
        raise ConfigError(
            f"data={source.name} does not name its rows, and {size} numbers a row are too many to write out; "
            "give the source `named`, `recognised` and `gathered`"
        )
    text = []
    for number in range(spec.seeds):
        for line in lines(source, spec.split, seed=spec.seed + number, count=spec.episodes):
            line["task"] = str(number * spec.episodes + int(line["task"]))
            text.append(json.dumps(line, ensure_ascii=False))
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, ("\n".join(text) + "\n").encode("utf-8", "surrogateescape"))
    whole = tasks_sha256(hashes_of(source, spec, spec.total))
    return f"{path}: {spec.total} tasks of split {spec.split!r} of data={source.name}, tasks_sha256 {whole}"


def row_size(spec: TaskSpec) -> int:
    """Numbers of the inputs of one row."""
    parts = [spec.input_spec] if isinstance(spec.input_spec, InputSpec) else spec.input_spec.values()
    return sum(torch.Size(part.shape).numel() for part in parts)
