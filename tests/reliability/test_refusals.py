"""What is refused changes nothing: neither a run that is there, nor a person's own files."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn.errors import CheckpointError
from metalearn.rundir.checkpoint_files import WEIGHTS_FILE
from metalearn.rundir.checkpoints import CheckpointStore
from tests.reliability import harness
from tests.reliability.harness import KILLED, assert_same_end, finish, resume, train


def contents(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder; the lock names whoever held it last."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def spoil_checkpoints(run_dir: Path) -> None:
    store = CheckpointStore(run_dir)
    for step in store.steps():
        (store.path(step) / WEIGHTS_FILE).write_bytes(b"")


def spoil_newest(run_dir: Path) -> None:
    store = CheckpointStore(run_dir)
    (store.path(store.steps()[-1]) / WEIGHTS_FILE).write_bytes(b"")


def shorten_metrics(run_dir: Path) -> None:
    (run_dir / "metrics.jsonl").write_text("")


def leave(run_dir: Path) -> None:
    """No damage."""


NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="refused only where there is no GPU")
REFUSALS = {
    "fewer steps": (leave, ["trainer.outer_steps=2"], 2, "but the run is at step 6"),
    "no such device": (leave, ["trainer.outer_steps=8", "device=cuda"], 2, "device=cuda"),
    "another method": (leave, ["trainer.outer_steps=8", "algo.distance=cosine"], 2, "algo.distance"),
    "no valid checkpoint": (spoil_checkpoints, ["trainer.outer_steps=8"], 4, "no valid checkpoint"),
    "fewer steps than an older checkpoint": (
        spoil_newest,
        ["trainer.outer_steps=1"],
        2,
        "but the run is at step 3",
    ),
    "metrics cut short": (shorten_metrics, ["trainer.outer_steps=8"], 4, "metrics.jsonl has 0 bytes"),
}


def marks(name: str) -> list[pytest.MarkDecorator]:
    """The fault that a refusal answers: 6 where no checkpoint is valid, 20 for another configuration."""
    _, _, code, _ = REFUSALS[name]
    fault = pytest.mark.fault(6 if code == CheckpointError.exit_code else 20)
    return [fault, NO_GPU] if "device" in name else [fault]


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in REFUSALS])
def test_refused_resume_leaves_a_finished_run_as_it_was(
    name: str, reference: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    damage, overrides, code, reason = REFUSALS[name]
    run_dir = tmp_path / "run"
    shutil.copytree(reference, run_dir)
    damage(run_dir)
    before = contents(run_dir)
    assert finish(resume(run_dir, *overrides)) == code
    assert reason in capfd.readouterr().err
    assert contents(run_dir) == before


@pytest.mark.fault(20)
def test_refused_resume_leaves_a_killed_run_to_the_corrected_command(
    cfg: dict[str, Any], reference: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    assert finish(train(cfg, run_dir), fault="test:batch@1") == KILLED
    before = contents(run_dir)
    assert finish(resume(run_dir, "trainer.outer_steps=3")) == 2
    assert contents(run_dir) == before
    assert finish(resume(run_dir)) == 0
    assert_same_end(run_dir, reference)


def test_dry_resume_changes_nothing(reference: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(reference, run_dir)
    before = contents(run_dir)
    assert finish(resume(run_dir, "trainer.outer_steps=8", "trainer.dry_run=true")) == 0
    assert contents(run_dir) == before


def own_files(folder: Path) -> None:
    folder.mkdir()
    for name in ("train.log", "env.json", "notes.txt"):
        (folder / name).write_text("mine")


def leftover_checkpoints(folder: Path) -> None:
    (folder / "checkpoints" / "step-000004").mkdir(parents=True)
    (folder / "checkpoints" / "step-000004" / WEIGHTS_FILE).write_bytes(b"old")


@pytest.mark.parametrize("fill", [own_files, leftover_checkpoints])
@pytest.mark.parametrize("override", ["seed=0", "trainer.dry_run=true"])
def test_folder_that_is_not_empty_is_refused_and_left_alone(
    fill: Callable[[Path], None],
    override: str,
    cache: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "mine"
    fill(folder)
    before = contents(folder)
    assert finish(train(harness.configuration(cache, *harness.QUICK, override), folder)) == 2
    error = capfd.readouterr().err
    assert f"run_dir={folder} is not empty" in error
    assert "choose another run_dir" in error
    assert contents(folder) == before
    assert not (folder / ".lock").exists()


def test_run_that_never_began_leaves_an_empty_folder_that_was_there(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    assert finish(train(harness.configuration(cache, *harness.QUICK, "trainer.dry_run=true"), folder)) == 0
    assert list(folder.iterdir()) == []


def test_folder_of_a_run_is_named_only_once_the_run_was_built(
    cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert finish(train(harness.configuration(cache, "data.way=40"), tmp_path / "run")) == 2
    assert "run folder:" not in capfd.readouterr().out
    assert (
        finish(train(harness.configuration(cache, *harness.QUICK, "trainer.dry_run=true"), tmp_path / "run"))
        == 0
    )
    assert f"run folder: {tmp_path / 'run'}" in capfd.readouterr().out
