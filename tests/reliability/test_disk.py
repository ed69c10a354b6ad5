"""Faults 3 and 7: a disk that is full, read-only or over its quota, and what cannot be serialized, at every place where a run writes.

Places that stop root too: a limit on the size of files (RLIMIT_FSIZE, which pipes do not have), /dev/full, and a path below
a regular file.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn import run
from metalearn.engine import checkpoint, runlog, trainer
from metalearn.engine.checkpoint import CheckpointStore
from metalearn.engine.linefile import LineFile
from tests.reliability import harness
from tests.reliability.harness import assert_same_end, finish, resume, start, train, wait

SMALL = 100  # bytes; lines of a log are longer, and every checkpoint is


def full(limit: int | None) -> None:
    """From now on no file of this process grows beyond so many bytes; None: the disk has room again."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if limit is None else limit, hard))


def at_steps(work: Callable[[], int], actions: dict[int, Callable[[], object]]) -> Callable[[], int]:
    """The work, with something happening to its process at the beginning of these outer steps."""

    def changed() -> int:
        usual = trainer.Trainer.train_step

        def train_step(self: trainer.Trainer) -> None:
            actions.get(self.step, lambda: None)()
            usual(self)

        trainer.Trainer.train_step = train_step  # type: ignore[method-assign]
        return work()

    return changed


def told(work: Callable[[], int]) -> tuple[int, str]:
    """Exit code and everything that the process printed, through a pipe."""
    reader, writer = os.pipe()

    def piped() -> int:
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - lives as long as the process
        return work()

    child = start(piped)
    os.close(writer)
    with open(reader, encoding="utf-8") as words:
        text = words.read()
    assert "Traceback" not in text
    return wait(child), text


@pytest.fixture(scope="module")
def cfg(cache: Path) -> dict[str, Any]:
    """Checkpoints at steps 0, 2, 4, … 12; one validation, at the end."""
    words = ["trainer.outer_steps=12", "trainer.checkpoint_every=2", "trainer.eval_every=12", "trainer.log_every=1", "trainer.keep_last=9"]
    return harness.configuration(cache, *harness.QUICK, *words)


@pytest.fixture(scope="module")
def reference(cfg: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("disk") / "run"
    assert finish(train(cfg, run_dir)) == 0
    return run_dir


@pytest.mark.fault(7)
def test_fault_07_a_disk_that_is_full_for_a_while_costs_two_checkpoints_and_nothing_else(
    cfg: dict[str, Any], reference: Path, tmp_path: Path
) -> None:
    """Steps 3 to 6 write nothing at all: no checkpoint, no line of the log or the metrics. All lines are there in the end."""
    run_dir = tmp_path / "run"
    code, text = told(at_steps(train(cfg, run_dir), {3: lambda: full(0), 7: lambda: full(None)}))
    assert code == 0
    lines = [line for line in text.splitlines() if line.startswith("warning")]
    assert [line.partition(" cannot be written: ")[0] for line in lines[:2]] == [
        f"warning: {run_dir / name}"
        for name in ("train.log", "metrics.jsonl")  # the warning of the second is a line of the first
    ]
    for line, step, count in zip(lines[2:], (4, 6), (1, 2), strict=True):
        assert line.startswith(f"warning: cannot write {run_dir}/metrics.jsonl: File too large; training goes on")
        assert line.endswith(f"(failed saves in a row: {count}, 3 end the run)"), step
    assert CheckpointStore(run_dir).steps() == [0, 2, 8, 10, 12]
    log = (run_dir / "train.log").read_text()
    assert all(f" step {step}/12 " in log for step in range(1, 13))
    assert_same_end(run_dir, reference)


@pytest.mark.fault(7)
def test_fault_07_checkpoints_that_do_not_fit_end_the_run_after_three_in_a_row(
    cfg: dict[str, Any], reference: Path, tmp_path: Path
) -> None:
    """The limit lets lines through, and no checkpoint."""
    run_dir = tmp_path / "run"
    code, text = told(at_steps(train(cfg, run_dir), {3: lambda: full(4000)}))
    assert code == 1
    sentence = f"cannot save {run_dir}/checkpoints/step-%06d: File too large. Checkpoints kept: step-000000, step-000002"
    warnings = [line for line in text.splitlines() if line.startswith("warning: cannot save")]
    assert [sentence % step in line for step, line in zip((4, 6), warnings, strict=True)] == [True, True]
    assert text.splitlines()[-1] == sentence % 8 + ". Free space or fix the folder, then continue with: metalearn resume RUN_DIR"
    assert harness.status(run_dir) == {**harness.status(run_dir), "status": "failed", "exit_code": 1}
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["last", "step-000000", "step-000002"]
    assert CheckpointStore(run_dir).newest().step == 2
    assert finish(resume(run_dir)) == 0
    assert_same_end(run_dir, reference)


@pytest.mark.fault(7)
@pytest.mark.parametrize("step", [0, 11], ids=["first", "last"])
def test_fault_07_the_first_checkpoint_and_the_last_are_needed(step: int, cfg: dict[str, Any], reference: Path, tmp_path: Path) -> None:
    """Before the first one nothing is trained yet, and without the last one there is nothing to judge."""
    run_dir = tmp_path / "run"
    actions = {step: lambda: full(4000)} if step else {}

    def work() -> int:
        if step == 0:
            usual = runlog.RunLog.open_bar

            def open_bar(self: runlog.RunLog, total: int, initial: int) -> None:
                full(4000)
                usual(self, total, initial)

            runlog.RunLog.open_bar = open_bar  # type: ignore[method-assign]
        return at_steps(train(cfg, run_dir), actions)()

    code, text = told(work)
    assert code == 1
    assert f"cannot save {run_dir}/checkpoints/step-{12 if step else 0:06d}: File too large" in text.splitlines()[-1]
    assert finish(resume(run_dir)) == 0
    assert_same_end(run_dir, reference)


@pytest.mark.fault(7)
def test_fault_07_a_folder_that_becomes_unwritable_is_named(cfg: dict[str, Any], reference: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    folder = run_dir / "checkpoints"

    def spoil() -> None:
        folder.rename(run_dir / "moved")
        folder.write_text("a file where the folder was")

    def mend() -> None:
        folder.unlink()
        (run_dir / "moved").rename(folder)

    code, text = told(at_steps(train(cfg, run_dir), {3: spoil, 5: mend}))
    assert code == 0
    [warning] = [line for line in text.splitlines() if line.startswith("warning")]
    assert f"cannot save {folder}/step-000004: " in warning
    assert "training goes on (failed saves in a row: 1, 3 end the run)" in warning
    assert_same_end(run_dir, reference)


@pytest.mark.fault(7)
@pytest.mark.parametrize("name", ["eval_test.csv", "results.json"])
def test_fault_07_a_result_that_cannot_be_written_is_exit_1_and_resume_writes_it(
    name: str, cfg: dict[str, Any], reference: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"

    def work() -> int:
        usual = runlog.replace_file

        def replace_file(path: Path, content: bytes) -> None:
            full(SMALL if path.name == name else None)
            usual(path, content)

        runlog.replace_file = replace_file
        return train(cfg, run_dir)()

    code, text = told(work)
    assert code == 1
    assert text.splitlines()[-1].startswith(f"cannot write {run_dir / name}: File too large. Free space or fix the folder")
    assert not list(run_dir.glob("*.tmp"))
    assert finish(resume(run_dir)) == 0
    assert_same_end(run_dir, reference)


@pytest.mark.fault(7)
def test_fault_07_status_and_plots_never_end_a_run(cfg: dict[str, Any], reference: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"

    def work() -> int:
        usual, tries = runlog.replace_file, []

        def replace_file(path: Path, content: bytes) -> None:
            if path.name == "status.json" and not tries:
                tries.append(path)
                raise OSError(28, "No space left on device")
            usual(path, content)

        def draw_plots(*parts: Any) -> None:
            raise OSError(28, "No space left on device")

        runlog.replace_file, run.life.draw_plots = replace_file, draw_plots
        return train(cfg, run_dir)()

    code, text = told(work)
    assert code == 0
    assert f"warning: cannot write {run_dir}/status.json: No space left on device" in text
    assert "warning: the plots could not be drawn: No space left on device" in text
    assert_same_end(run_dir, reference)


@pytest.mark.fault(7)
def test_fault_07_an_evaluation_that_cannot_be_written_leaves_nothing(reference: Path, tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(reference, tmp_path / "run"))

    def work() -> int:
        usual = runlog.replace_file

        def replace_file(path: Path, content: bytes) -> None:
            full(SMALL if path.name == "results.json" else None)
            usual(path, content)

        runlog.replace_file = replace_file
        return run.evaluate_run(run_dir, ["eval.episodes=5"])

    code, text = told(work)
    assert code == 2
    assert "/results.json: File too large; nothing was written; free space and run the same command again" in text
    assert not (run_dir / "evals").exists()


@pytest.mark.fault(7)
def test_fault_07_standard_output_on_a_full_disk_does_not_end_a_run(cache: Path, tmp_path: Path) -> None:
    words = [*harness.TINY, *harness.QUICK, f"data.cache_dir={cache}", f"run_dir={tmp_path / 'run'}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open("/dev/full", "w") as nowhere:
        command = [sys.executable, "-m", "metalearn", "train", *words]
        done = subprocess.run(command, stdout=nowhere, stderr=subprocess.PIPE, text=True, env=environment, timeout=200, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert harness.status(tmp_path / "run")["status"] == "finished"


@pytest.fixture(scope="module")
def judged(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, int]:
    """A run that is validated at every step, what it leaves, and its best step, which is neither the first nor the last."""
    words = ["trainer.outer_steps=6", "trainer.checkpoint_every=6", "trainer.eval_every=1", "trainer.keep_last=1", "seed=2"]
    cfg, run_dir = harness.configuration(cache, *harness.QUICK, *words), tmp_path_factory.mktemp("judged") / "run"
    assert finish(train(cfg, run_dir)) == 0
    best = CheckpointStore(run_dir).pointed("best")
    assert best is not None and 1 < best < 6
    return cfg, run_dir, best


@pytest.mark.fault(7)
@pytest.mark.parametrize("name", ["last", "best"])
def test_fault_07_a_whole_checkpoint_stays_the_best_though_its_pointer_cannot_be_written(
    name: str, judged: tuple[dict[str, Any], Path, int], tmp_path: Path
) -> None:
    cfg, reference, best = judged
    run_dir = tmp_path / "run"

    def work() -> int:
        usual = checkpoint.replace_file

        def replace_file(path: Path, content: bytes) -> None:
            if path.name == name and content == f"step-{best:06d}\n".encode() and CheckpointStore(run_dir).steps()[-1] == best:
                raise OSError(28, "No space left on device")
            usual(path, content)

        checkpoint.replace_file = replace_file
        return train(cfg, run_dir)()

    code, text = told(work)
    assert code == 0
    [warning] = [line for line in text.splitlines() if line.startswith("warning")]
    assert warning.startswith(f"warning: cannot write {run_dir}/checkpoints/{name}: No space left on device; training goes on")
    assert_same_end(run_dir, reference)


@pytest.mark.fault(7)
def test_fault_07_a_validation_whose_checkpoint_was_refused_cannot_be_chosen_and_that_is_said(
    judged: tuple[dict[str, Any], Path, int], tmp_path: Path
) -> None:
    cfg, _, best = judged
    run_dir = tmp_path / "run"

    def work() -> int:
        usual = checkpoint.write_synced

        def write_synced(path: Path, content: bytes) -> None:
            if path.parent.name == f"step-{best:06d}.tmp":
                raise OSError(28, "No space left on device")
            usual(path, content)

        checkpoint.write_synced = write_synced
        return train(cfg, run_dir)()

    code, text = told(work)
    assert code == 0
    [warning] = [line for line in text.splitlines() if line.startswith("warning")]
    assert f"cannot save {run_dir}/checkpoints/step-{best:06d}: No space left on device" in warning
    assert f"; the validation at step {best} can no longer be chosen" in warning
    record = CheckpointStore(run_dir).newest().facts["record"]
    assert [step for step, _ in record] == [step for step in range(1, 7) if step != best]


@pytest.mark.fault(3)
def test_fault_03_a_tensor_that_cannot_be_written_leaves_no_part_of_a_checkpoint(tmp_path: Path) -> None:
    """The second one raises on its way to the file, when the folder of the checkpoint exists."""

    class Unwritable(Tensor):
        def detach(self) -> Tensor:
            raise RuntimeError("the memory of this tensor is gone")

    store = CheckpointStore(tmp_path)
    store.save(1, {"w": torch.ones(2)}, {"step": 1})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(RuntimeError, match="is gone"):
        store.save(2, {"w": torch.ones(2), "x": torch.ones(2).as_subclass(Unwritable)}, {"step": 2})
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["last", "step-000001"]
    assert store.newest().step == 1


@pytest.mark.fault(3)
def test_fault_03_in_a_run_it_is_exit_1_and_the_run_resumes(cfg: dict[str, Any], reference: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"

    def work() -> int:
        usual = checkpoint.write_synced

        def write_synced(path: Path, content: bytes) -> None:
            if path.parent.name == "step-000006.tmp":
                path.write_bytes(content[: len(content) // 2])
                raise RuntimeError("the memory of this tensor is gone")
            usual(path, content)

        checkpoint.write_synced = write_synced
        try:
            return train(cfg, run_dir)()
        except RuntimeError:  # which the command line says in a line, as any mistake of ours
            return 1

    assert finish(work) == 1
    assert harness.status(run_dir)["status"] == "failed"
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["last", *(f"step-{step:06d}" for step in (0, 2, 4))]
    assert finish(resume(run_dir)) == 0
    assert_same_end(run_dir, reference)


def test_lines_that_a_full_disk_refuses_are_kept_and_told_once(tmp_path: Path) -> None:
    warnings: list[str] = []
    file = LineFile(Path("/dev/full"), warnings.append)
    for number in range(3):
        file.write(f"{number}\n")
    assert warnings == ["/dev/full cannot be written: No space left on device; its lines are kept in memory until it can"]
    file.path = tmp_path / "lines"
    file.close()
    file.write("3\n")
    assert (tmp_path / "lines").read_text() == "0\n1\n2\n3\n"
    assert file.sync() == 8
