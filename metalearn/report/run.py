"""What `metalearn show` says of a run and of one of its checkpoints. Nothing here needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from metalearn.errors import CheckpointError
from metalearn.report.tables import grid
from metalearn.rundir import checkpoint_files, reader
from metalearn.rundir.checkpoint_files import METADATA, OLD_MANIFEST, OLD_METADATA


def shown_run(run_dir: Path, cfg: dict[str, Any]) -> str:
    """State, result and checkpoints as comments, then cfg, with which the run was started."""
    result, tasks = reader.result_of(run_dir / "results.json")
    folder = run_dir / "checkpoints"
    kept = [
        f"{checkpoint_files.name_of(step)}{_pointers(folder, step)}"
        for step in checkpoint_files.steps(folder)
    ]
    head = [
        f"# run {run_dir}: {reader.state(run_dir)}",
        *([f"# result: {result} ({tasks} tasks)"] if tasks else []),
        f"# checkpoints: {', '.join(kept) or 'none'}",
    ]
    text: str = yaml.safe_dump(cfg, sort_keys=False, allow_unicode=True, width=120)
    return "\n".join(head) + "\n" + text


def shown_checkpoint(run_dir: Path, name: str) -> str:
    """Step, validation, files and tensors of a checkpoint, after its sha256 sums were checked.

    name: best, last or step-NUMBER. Raises CheckpointError for one that is not there or not as it was saved.
    """
    folder = run_dir / "checkpoints"
    step = int(name[5:]) if name.startswith("step-") else checkpoint_files.pointed(folder, name)
    if step is None or step not in checkpoint_files.steps(folder):
        kept = ", ".join(map(checkpoint_files.name_of, checkpoint_files.steps(folder))) or "none"
        raise CheckpointError(f"{folder / name} names no checkpoint; this run has {kept}")
    path = folder / checkpoint_files.name_of(step)
    with checkpoint_files.damage_named(path):
        found = checkpoint_files.read(path, step)
        shapes = {file: checkpoint_files.tensor_shapes(content) for file, content in found.contents.items()}
        plan, values = found.metadata["plan"], dict(found.metadata["record"])
    validated = "not validated" if values.get(step) is None else f"validated at {values[step]:.6g}"
    about = [OLD_METADATA, OLD_MANIFEST] if checkpoint_files.is_old(path) else [METADATA]
    sizes = [f"{file} {(path / file).stat().st_size:,} bytes" for file in [*found.contents, *about]]
    head = [
        f"# {path}{_pointers(folder, step)}: step {step}, {validated}, plan {plan['name']}",
        f"# {', '.join(sizes)}; every file has the sha256 that was written",
    ]
    rows = [["tensor", "type", "shape", "file"]]
    for file, tensors in shapes.items():
        rows += [[_printable(key), dtype, str(list(shape)), file] for key, (dtype, shape) in tensors.items()]
    return "\n".join([*head, grid(rows)]) + "\n"


def _pointers(folder: Path, step: int) -> str:
    names = [name for name in ("best", "last") if checkpoint_files.pointed(folder, name) == step]
    return f" ({', '.join(names)})" if names else ""


def _printable(text: str) -> str:
    """The name of a tensor may be a stranger's, and a terminal obeys control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
