"""Two processes, two signals: each gets its answer, and nothing is lost."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from metalearn.engine import trainer
from metalearn.rundir.checkpoints import CheckpointStore
from tests.reliability import harness
from tests.reliability.harness import assert_same_end, finish, resume, start, struck, train, wait


@pytest.mark.fault(9)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_resumes_to_the_same_bits(
    number: signal.Signals,
    cfg: dict[str, Any],
    reference: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run_dir = tmp_path / "run"
    assert finish(struck(train(cfg, run_dir), lambda: os.kill(os.getpid(), number))) == 128 + number
    assert harness.status(run_dir)["status"] == "preempted"
    assert harness.status(run_dir)["exit_code"] == 128 + number
    assert CheckpointStore(run_dir).pointed("last") == 4  # the step that the signal met was finished
    assert f"stopped by {number.name}; continue with: metalearn resume {run_dir}" in capfd.readouterr().out
    assert finish(resume(run_dir)) == 0
    assert_same_end(run_dir, reference)


@pytest.mark.fault(9)
def test_signal_in_the_middle_of_a_validation_resumes_to_the_same_bits(
    cfg: dict[str, Any], reference: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"

    def interrupted() -> int:
        def strike(self: trainer.Trainer, done: int) -> None:
            if self.step == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            self.check()

        trainer.Trainer._between_batches = strike  # type: ignore[method-assign]
        return train(cfg, run_dir)()

    assert finish(interrupted) == 143
    assert not any(line["split"] == "val" and line["step"] == 6 for line in harness.metrics(run_dir))
    assert finish(resume(run_dir)) == 0
    assert_same_end(run_dir, reference)


@pytest.mark.fault(10)
def test_second_signal_ends_a_hung_run_at_once(cfg: dict[str, Any], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"

    def hang() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(600)

    child = start(struck(train(cfg, run_dir), hang))
    os.waitpid(child, os.WUNTRACED)
    for _ in range(2):
        os.kill(child, signal.SIGTERM)
        os.kill(child, signal.SIGCONT)
        time.sleep(0.3)
    assert wait(child) == 143


@pytest.mark.fault(22)
def test_second_process_is_refused_and_told_the_first_ones_number(
    cfg: dict[str, Any], reference: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    child = start(struck(train(cfg, run_dir), lambda: os.kill(os.getpid(), signal.SIGSTOP)))
    os.waitpid(child, os.WUNTRACED)
    assert finish(resume(run_dir)) == 2
    assert f"is in use by process {child}" in capfd.readouterr().err
    os.kill(child, signal.SIGCONT)
    assert wait(child) == 0
    assert_same_end(run_dir, reference)


def test_new_run_in_the_folder_of_another_names_resume(
    cfg: dict[str, Any], reference: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert finish(train(cfg, reference)) == 2
    assert f"already holds a run; continue it with: metalearn resume {reference}" in capfd.readouterr().err


def test_folder_that_is_no_run_is_exit_2(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert finish(resume(tmp_path)) == 2
    assert "is no run" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("override", ["trainer.dry_run=true", "data.way=40"])
def test_run_that_never_began_leaves_no_folder(override: str, cache: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    code = finish(train(harness.configuration(cache, override), run_dir))
    assert code == (0 if "dry_run" in override else 2)
    assert not run_dir.exists()


def test_preflight_leaves_no_trace_in_the_numbers(
    cfg: dict[str, Any], reference: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"

    def unprepared() -> int:
        from metalearn.run import session

        session.rehearse = lambda *parts, **options: None  # type: ignore[assignment]
        return train(cfg, run_dir)()

    assert finish(unprepared) == 0
    assert_same_end(run_dir, reference)


@pytest.mark.slow
@pytest.mark.fault(9)
def test_command_line_stops_and_resumes(cfg: dict[str, Any], cache: Path, tmp_path: Path) -> None:
    words = [
        *harness.TINY,
        *harness.QUICK,
        f"data.cache_dir={cache}",
        "trainer.outer_steps=1000000",
        f"run_dir={tmp_path / 'run'}",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "metalearn"]
    process = subprocess.Popen(
        [*command, "train", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "checkpoints" / "last").exists():
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in errors
    step = CheckpointStore(tmp_path / "run").pointed("last")
    assert step is not None
    assert shlex.split(printed.splitlines()[-1])[-3:] == ["metalearn", "resume", str(tmp_path / "run")]
    resumed = [*command, "resume", str(tmp_path / "run"), f"trainer.outer_steps={step + 1}"]
    assert (
        subprocess.run(
            resumed, capture_output=True, text=True, env=environment, check=False, timeout=120
        ).returncode
        == 0
    )
    assert harness.status(tmp_path / "run")["status"] == "finished"
