"""Faults 3 and 7: a disk that is full, read-only or over its quota, and what cannot be serialized, at every
place where a run writes.

Places that stop root too: a limit on the size of files (RLIMIT_FSIZE, which pipes do not have), /dev/full,
and a path below a regular file.
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

from metalearn.files import LineFile
from metalearn.run import session
from metalearn.run.evaluate import evaluate_run
from metalearn.rundir import checkpoints
from metalearn.rundir import log as runlog
from metalearn.rundir.checkpoints import CheckpointStore
from tests.reliability import harness
from tests.reliability.harness import assert_same_end, at_steps, before_writing, finish, resume, told, train

SMALL = 100  # bytes; lines of a log are longer, and every checkpoint is


def full(limit: int | None) -> None:
    """From now on no file of this process grows beyond so many bytes; None: the disk has room again."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if limit is None else limit, hard))


def full_for(name: str) -> Callable[[Path, bytes], None]:
    """There is room for no file but a small one when this one is written, and for every other."""
    return lambda path, content: full(SMALL if path.name == name else None)


@pytest.fixture(scope="module")
def cfg(cache: Path) -> dict[str, Any]:
    """Checkpoints at steps 0, 2, 4, … 12; one validation, at the end."""
    words = [
        "trainer.outer_steps=12",
        "trainer.checkpoint_every=2",
        "trainer.eval_every=12",
        "trainer.log_every=1",
        "trainer.keep_last=9",
    ]
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
    """Steps 3 to 6 write nothing at all: no checkpoint, no line of the log or the metrics. All lines are
    there in the end.
    """
    run_dir = tmp_path / "run"
    code, text = told(at_steps(train(cfg, run_dir), {3: lambda: full(0), 7: lambda: full(None)}))
    assert code == 0
    lines = [line for line in text.splitlines() if line.startswith("warning")]
    assert [line.partition(" cannot be written: ")[0] for line in lines[:2]] == [
        f"warning: {run_dir / name}"
        for name in ("train.log", "metrics.jsonl")  # the warning of the second is a line of the first
    ]
    for line, step, count in zip(lines[2:], (4, 6), (1, 2), strict=True):
        assert line.startswith(
            f"warning: cannot write {run_dir}/metrics.jsonl: File too large; training goes on"
        )
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
    sentence = (
        f"cannot save {run_dir}/checkpoints/step-%06d: File too large. Checkpoints kept: step-000000, "
        "step-000002"
    )
    warnings = [line for line in text.splitlines() if line.startswith("warning: cannot save")]
    assert [sentence % step in line for step, line in zip((4, 6), warnings, strict=True)] == [True, True]
    assert (
        text.splitlines()[-1]
        == sentence % 8 + ". Free space or fix the folder, then continue with: metalearn resume RUN_DIR"
    )
    assert harness.status(run_dir) == {**harness.status(run_dir), "status": "failed", "exit_code": 1}
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == [
        "last",
        "step-000000",
        "step-000002",
    ]
    assert CheckpointStore(run_dir).newest().step == 2
    assert finish(resume(run_dir)) == 0
    assert_same_end(run_dir, reference)


@pytest.mark.fault(7)
@pytest.mark.parametrize("step", [0, 11], ids=["first", "last"])
def test_fault_07_the_first_checkpoint_and_the_last_are_needed(
    step: int, cfg: dict[str, Any], reference: Path, tmp_path: Path
) -> None:
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
    assert (
        f"cannot save {run_dir}/checkpoints/step-{12 if step else 0:06d}: File too large"
        in text.splitlines()[-1]
    )
    assert finish(resume(run_dir)) == 0
    assert_same_end(run_dir, reference)


@pytest.mark.fault(7)
def test_fault_07_a_folder_that_becomes_unwritable_is_named(
    cfg: dict[str, Any], reference: Path, tmp_path: Path
) -> None:
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
    code, text = told(before_writing(train(cfg, run_dir), runlog, "replace_file", full_for(name)))
    assert code == 1
    assert text.splitlines()[-1].startswith(
        f"cannot write {run_dir / name}: File too large. Free space or fix the folder"
    )
    assert not list(run_dir.glob("*.tmp"))
    assert finish(resume(run_dir)) == 0
    assert_same_end(run_dir, reference)


@pytest.mark.fault(7)
@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("no\nbins"), "ValueError: no bins"),
    ],
)
def test_fault_07_status_and_plots_never_end_a_run(
    problem: Exception, reason: str, cfg: dict[str, Any], reference: Path, tmp_path: Path
) -> None:
    run_dir, tries = tmp_path / "run", []

    def refuse_once(path: Path, content: bytes) -> None:
        if path.name == "status.json" and not tries:
            tries.append(path)
            raise OSError(28, "No space left on device")

    def draw_plots(*parts: Any) -> None:
        raise problem

    def work() -> int:
        session.draw_plots = draw_plots
        return train(cfg, run_dir)()

    code, text = told(before_writing(work, runlog, "replace_file", refuse_once))
    assert code == 0
    assert f"warning: cannot write {run_dir}/status.json: No space left on device" in text
    assert f"warning: the plots could not be drawn: {reason}\n" in text
    assert_same_end(run_dir, reference)


@pytest.mark.fault(7)
def test_fault_07_an_evaluation_that_cannot_be_written_leaves_nothing(
    reference: Path, tmp_path: Path
) -> None:
    run_dir = Path(shutil.copytree(reference, tmp_path / "run"))
    evaluation = lambda: evaluate_run(run_dir, ["eval.episodes=5"])  # noqa: E731
    code, text = told(before_writing(evaluation, runlog, "replace_file", full_for("results.json")))
    assert code == 2
    assert (
        "/results.json: File too large; nothing was written; free space and run the same command again"
        in text
    )
    assert not (run_dir / "evals").exists()


@pytest.mark.slow
@pytest.mark.fault(7)
def test_fault_07_standard_output_on_a_full_disk_does_not_end_a_run(cache: Path, tmp_path: Path) -> None:
    words = [*harness.TINY, *harness.QUICK, f"data.cache_dir={cache}", f"run_dir={tmp_path / 'run'}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open("/dev/full", "w") as nowhere:
        command = [sys.executable, "-m", "metalearn", "train", *words]
        done = subprocess.run(
            command,
            stdout=nowhere,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            timeout=200,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert harness.status(tmp_path / "run")["status"] == "finished"


@pytest.mark.fault(3)
def test_fault_03_in_a_run_it_is_exit_1_and_the_run_resumes(
    cfg: dict[str, Any], reference: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"

    def break_off(path: Path, content: bytes) -> None:
        if path.parent.name == "step-000006.tmp":
            path.write_bytes(content[: len(content) // 2])
            raise RuntimeError("the memory of this tensor is gone")

    def work() -> int:
        try:
            return train(cfg, run_dir)()
        except RuntimeError:  # which the command line says in a line, as any mistake of ours
            return 1

    assert finish(before_writing(work, checkpoints, "write_synced", break_off)) == 1
    assert harness.status(run_dir)["status"] == "failed"
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == [
        "last",
        *(f"step-{step:06d}" for step in (0, 2, 4)),
    ]
    assert finish(resume(run_dir)) == 0
    assert_same_end(run_dir, reference)


def test_lines_that_a_full_disk_refuses_are_kept_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = LineFile(Path("/dev/full"))
    for number in range(3):
        file.write(f"{number}\n")
    assert caplog.messages == [
        "/dev/full cannot be written: No space left on device; its lines are kept in memory until it can"
    ]
    file.path = tmp_path / "lines"
    file.close()
    file.write("3\n")
    assert (tmp_path / "lines").read_text() == "0\n1\n2\n3\n"
    assert file.sync() == 8
