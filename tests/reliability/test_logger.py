"""Fault 25: a logger that raises, at any moment; fault 10: one that never returns. And what a logger is
told.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from metalearn.config.compose import compose
from metalearn.errors import ConfigError
from metalearn.inference.learner import load
from metalearn.run.evaluate import evaluate_run
from metalearn.rundir.checkpoints import CheckpointStore
from tests.reliability import harness
from tests.reliability.harness import (
    KILLED,
    QUICK,
    TINY,
    assert_same_end,
    finish,
    forking_ranks,
    resume,
    start,
    struck,
    train,
)
from tests.reliability.test_nonfinite import SPOILED
from tests.reliability.test_shutdown import LONGEST, seconds_to_end

# 16 lines: the tenth comes in the middle of training
LINES = [
    "trainer.outer_steps=10",
    "trainer.log_every=1",
]
YAML = "_target_: stub.Stub\nfails: never\nhow: RuntimeError\n"
STUB = """
import asyncio, json, os, signal, time
from metalearn.loggers import Logger

class Stub(Logger):
    def __init__(self, *, fails, how):
        self.fails, self.how, self.count = fails, how, 0
        self.note("made", os.getpid())
        self.fail("made")

    def open(self, run_dir, lines):
        self.note("open", lines)
        self.fail("open")

    def write(self, line):
        self.count += 1
        self.note("write", line)
        line.values.clear()  # what it does with them is its own business
        self.fail(f"write {self.count}")

    def close(self):
        self.note("close", None)
        self.fail("close")

    def fail(self, moment):
        if moment == self.fails and "hang" in self.how:
            if self.how == "signal and hang":
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(600)
        elif moment == self.fails:
            down = "it is down"
            errors = [RuntimeError("it is\\ndown"), SystemExit(down), asyncio.CancelledError(down)]
            raise next(error for error in errors if type(error).__name__ == self.how)

    def note(self, call, given):
        with open("calls", "a") as file:
            file.write(json.dumps([call, given]) + "\\n")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder with a logger of their own."""
    (tmp_path / "conf" / "logger").mkdir(parents=True)
    (tmp_path / "conf" / "logger" / "stub.yaml").write_text(YAML)
    (tmp_path / "stub.py").write_text(STUB)
    return tmp_path


@pytest.fixture(scope="session")
def quiet(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that no logger hears of."""
    run_dir = tmp_path_factory.mktemp("quiet") / "run"
    cfg = harness.configuration(cache, *QUICK, *LINES)
    harness.warm_up(cfg, run_dir.with_name("warm_up"))
    assert finish(train(cfg, run_dir)) == 0
    return run_dir


def words(cache: Path, *more: str) -> list[str]:
    return [*TINY, *QUICK, *LINES, f"data.cache_dir={cache}", "logger=stub", "trusted=[stub]", *more]


def heard(folder: Path, cache: Path, *more: str) -> dict[str, Any]:
    """The configuration of a run with the user's logger."""
    return compose(words(cache, *more), str(folder / "conf"))


def inside(folder: Path, work: Callable[[], int]) -> Callable[[], int]:
    """The work of a process that was started in the user's folder."""

    def begin() -> int:
        os.chdir(folder)
        return work()

    return begin


def calls(folder: Path) -> list[list[Any]]:
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


def told(folder: Path) -> list[dict[str, Any]]:
    """What the logger takes for metrics.jsonl: the lines of its last opening and those after it."""
    known: list[list[Any]] = []
    for call, given in calls(folder):
        known = given if call == "open" else [*known, given] if call == "write" else known
    return [{"step": step, "split": split, **values} for step, split, values in known]


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def warnings(run_dir: Path) -> list[str]:
    return [
        line.partition(" warning: ")[2]
        for line in (run_dir / "train.log").read_text().splitlines()
        if " warning: " in line
    ]


def names(run_dir: Path) -> set[str]:
    return {str(path.relative_to(run_dir)) for path in run_dir.rglob("*")}


@pytest.mark.parametrize("how", ["RuntimeError", "SystemExit", "CancelledError"])
@pytest.mark.parametrize(
    ("fails", "moment", "called"),
    [
        ("made", "to start", []),
        ("open", "to open", ["open"]),
        ("write 1", "at step 1", ["open", "write"]),
        ("write 10", "at step 7", ["open", *["write"] * 10]),
        ("close", "to close", ["open", *["write"] * 16, "close"]),
    ],
)
def test_fault_25_a_logger_that_raises_costs_one_warning_and_nothing_else(
    fails: str,
    moment: str,
    called: list[str],
    how: str,
    folder: Path,
    cache: Path,
    quiet: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run_dir = folder / "run"
    assert (
        finish(
            inside(folder, train(heard(folder, cache, f"logger.fails={fails}", f"logger.how={how}"), run_dir))
        )
        == 0
    )
    assert warnings(run_dir) == [
        f"the logger stub.Stub failed {moment} ({how}: it is down); the run goes on without it"
    ]
    assert [call for call, _ in calls(folder)] == ["made", *called]  # and never again
    assert_same_end(run_dir, quiet)
    assert names(run_dir) == names(quiet)
    captured = capfd.readouterr()
    assert captured.out.count("warning: ") == 1
    assert "Traceback" not in captured.err


@pytest.mark.slow
def test_fault_25_a_command_with_a_logger_that_is_down_ends_as_without(
    folder: Path, cache: Path, quiet: Path
) -> None:
    (folder / "conf" / "logger" / "stub.yaml").write_text(YAML.replace("never", "write 10"))
    command = [
        sys.executable,
        "-m",
        "metalearn",
        "train",
        "--config-dir",
        "conf",
        *words(cache, "run_dir=run"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        done.stdout.count(
            "warning: the logger stub.Stub failed at step 7 (RuntimeError: it is down); the run goes on "
            "without it\n"
        )
        == 1
    )
    assert_same_end(folder / "run", quiet)


@pytest.mark.parametrize(("fails", "saved"), [("open", None), ("write 7", 3), ("close", 10)])
def test_fault_10_a_logger_that_hangs_when_the_run_is_told_to_stop_does_not_keep_it(
    fails: str, saved: int | None, folder: Path, cache: Path, quiet: Path
) -> None:
    """At a line or before, nothing is saved any more; at the end all is done, and the process ends with the
    code of the signal.
    """
    run_dir = folder / "run"
    cfg = heard(
        folder, cache, f"logger.fails={fails}", "logger.how=signal and hang", "trainer.shutdown_timeout_s=1"
    )
    code, seconds = seconds_to_end(start(inside(folder, train(cfg, run_dir))))
    assert code == 143
    assert seconds < LONGEST
    assert CheckpointStore(run_dir).pointed("last") == saved
    status = harness.status(run_dir)
    if fails == "close":
        assert status["status"] == "finished"
    else:
        assert "ended at once, as it had not stopped 1 s after SIGTERM" in status["reason"]
        assert finish(resume(run_dir, "logger=none")) == 0  # nor need the class be trusted to do without it
    assert_same_end(run_dir, quiet)


def test_fault_10_a_stopped_run_is_saved_before_its_logger_hangs(
    folder: Path, cache: Path, quiet: Path
) -> None:
    run_dir = folder / "run"
    cfg = heard(folder, cache, "logger.fails=close", "logger.how=hang", "trainer.shutdown_timeout_s=1")
    work = struck(train(cfg, run_dir), lambda: os.kill(os.getpid(), signal.SIGTERM), step=4)
    code, seconds = seconds_to_end(start(inside(folder, work)))
    assert code == 143
    assert 1 < seconds < LONGEST
    assert "reason" not in harness.status(run_dir)
    assert CheckpointStore(run_dir).pointed("last") == 5
    assert finish(resume(run_dir, "logger=none")) == 0
    assert_same_end(run_dir, quiet)


def test_a_logger_hears_every_line_with_its_times_and_the_end(folder: Path, cache: Path, quiet: Path) -> None:
    run_dir = folder / "run"
    assert finish(inside(folder, train(heard(folder, cache), run_dir))) == 0
    assert [call for call, _ in calls(folder)] == ["made", "open", *["write"] * 16, "close"]
    assert told(folder) == lines(run_dir)
    assert any(name.startswith("time_") for name in told(folder)[0])
    assert_same_end(run_dir, quiet)
    assert warnings(run_dir) == []


def test_the_logger_of_a_resumed_run_begins_with_the_lines_that_stand(
    folder: Path, cache: Path, quiet: Path
) -> None:
    run_dir = folder / "run"
    assert finish(inside(folder, train(heard(folder, cache), run_dir)), "step:end@8") == KILLED
    (folder / "calls").unlink()
    assert finish(inside(folder, resume(run_dir, "trusted=[stub]"))) == 0
    [opening] = [given for call, given in calls(folder) if call == "open"]
    assert 0 < len(opening) < len(lines(run_dir))
    assert told(folder) == lines(run_dir)
    assert_same_end(run_dir, quiet)


def test_a_rollback_takes_lines_back_from_the_logger(folder: Path, cache: Path) -> None:
    (folder / "spoiled.py").write_text(SPOILED.format(bad=[9]))
    cfg = heard(
        folder,
        cache,
        "trusted=[stub,spoiled]",
        "trainer.on_nan=rollback",
        "data._target_=spoiled.Infinite",
        "trainer.eval_every=9",
    )
    assert finish(inside(folder, train(cfg, folder / "run"))) == 0
    assert [call for call, _ in calls(folder)].count("open") == 2
    assert told(folder) == lines(folder / "run")
    assert len([call for call, _ in calls(folder) if call == "write"]) > len(lines(folder / "run")) - len(
        calls(folder)[1][1]
    )


def test_rank_0_alone_has_a_logger(folder: Path, cache: Path) -> None:
    child = start(
        inside(folder, forking_ranks(train(heard(folder, cache, "device.ranks=2"), folder / "run")))
    )
    assert harness.wait(child) == 0
    assert [given for call, given in calls(folder) if call == "made"] == [child]
    assert told(folder) == lines(folder / "run")


def test_a_class_of_ones_own_is_trusted_anew_to_log_but_not_to_judge(
    folder: Path, cache: Path, quiet: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_dir = folder / "run"
    assert finish(inside(folder, train(heard(folder, cache), run_dir)), "step:end@8") == KILLED
    (folder / "calls").unlink()
    assert finish(inside(folder, lambda: evaluate_run(run_dir, []))) == 0
    assert load(run_dir).algorithm is not None
    assert finish(inside(folder, resume(run_dir))) == 2
    assert "logger._target_=stub.Stub is outside the trusted packages" in capfd.readouterr().err
    assert finish(resume(run_dir, "logger=none")) == 0
    assert not (folder / "calls").exists()
    with pytest.raises(ConfigError, match="logger=none: an evaluation has no logger; leave it out"):
        evaluate_run(run_dir, ["logger=none"])
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["logger"] == {
        "_target_": "metalearn.loggers.Logger"
    }
    assert_same_end(run_dir, quiet)


# --- tensorboard
# -----------------------------------------------------------------------------------------------------


def points(run_dir: Path) -> list[tuple[str, int, float]]:
    """Every point in all event files, whatever a reader would leave out."""
    loader = importlib.import_module("tensorboard.backend.event_processing.event_file_loader").EventFileLoader
    events = [
        event for path in sorted((run_dir / "tensorboard").iterdir()) for event in loader(str(path)).Load()
    ]
    return sorted(
        (value.tag, event.step, value.tensor.float_val[0])
        for event in events
        for value in event.summary.value
    )


def expected(run_dir: Path) -> list[tuple[str, int, float]]:
    entries = [
        (f"{line['split']}/{name}", line["step"], value)
        for line in lines(run_dir)
        for name, value in line.items()
    ]
    return sorted(
        entry for entry in entries if not entry[0].endswith(("/step", "/split")) and entry[2] is not None
    )


def test_tensorboard_shows_every_point_once_however_often_a_run_is_stopped_and_prolonged(
    cache: Path, quiet: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    run_dir = tmp_path / "run"
    assert (
        finish(
            train(harness.configuration(cache, *QUICK, *LINES, "logger=tensorboard"), run_dir), "step:end@8"
        )
        == KILLED
    )
    assert finish(resume(run_dir), "end:before_results") == KILLED
    assert finish(resume(run_dir)) == 0
    assert_same_end(run_dir, quiet)
    assert [point[:2] for point in points(run_dir)] == [point[:2] for point in expected(run_dir)]
    assert finish(resume(run_dir, "trainer.outer_steps=14")) == 0
    shown, wanted = points(run_dir), expected(run_dir)
    assert [point[:2] for point in shown] == [point[:2] for point in wanted]
    assert [point[2] for point in shown] == pytest.approx([point[2] for point in wanted], rel=1e-6)
    assert {"train/loss", "train/time_step", "val/accuracy", "val/episodes", "test/accuracy_ci95"} <= {
        tag for tag, _, _ in shown
    }


def test_fault_25_tensorboard_without_its_folder_costs_one_warning(
    cache: Path, quiet: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    run_dir = tmp_path / "run"
    assert finish(train(harness.configuration(cache, *QUICK, *LINES), run_dir), "step:end@8") == KILLED
    (run_dir / "tensorboard").write_text("a file where its folder would be")
    assert finish(resume(run_dir, "logger=tensorboard")) == 0
    [warning] = warnings(run_dir)
    assert warning.startswith(
        "the logger metalearn.loggers.tensorboard.TensorBoard failed to open (FileExistsError: "
    )
    assert_same_end(run_dir, quiet)


def test_fault_25_tensorboard_on_a_disk_that_is_full_costs_one_warning(
    cache: Path, quiet: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    records = pytest.importorskip("tensorboard.summary.writer.record_writer")
    run_dir = tmp_path / "run"
    work = train(harness.configuration(cache, *QUICK, *LINES, "logger=tensorboard"), run_dir)

    def on_a_full_disk() -> int:
        flushed = iter(range(100))

        def flush(writer: Any) -> None:
            if next(flushed) == 4:
                raise OSError(errno.ENOSPC, "No space left on device")

        records.RecordWriter.flush = flush
        return work()

    assert finish(on_a_full_disk) == 0
    [warning] = warnings(run_dir)
    assert warning.startswith("the logger metalearn.loggers.tensorboard.TensorBoard failed at step ")
    assert "No space left on device" in warning
    assert_same_end(run_dir, quiet)
    assert capfd.readouterr().err == ""
