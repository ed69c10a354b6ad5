"""Fault 10: a second signal, and a run that hangs after the first one, in Python, in C, at a disk, or waiting
for another rank.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metalearn.run import signals
from metalearn.run.signals import StopSignals
from metalearn.rundir.checkpoints import CheckpointStore
from metalearn.rundir.log import RunLog
from metalearn.sweep import stopping
from metalearn.sweep.stopping import heeding
from tests.reliability import harness
from tests.reliability.harness import assert_same_end, finish, resume, start, struck, train, wait

WITHIN = "trainer.shutdown_timeout_s=1"
LONGEST = 20.0  # seconds; the machine may be busy with other things


def hang() -> None:
    while True:
        time.sleep(600)


def hang_in_c() -> None:
    """Lock a mutex twice: signals do not interrupt that, so that no Python handler is ever called."""
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(128)  # zeros are an unlocked mutex
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)


def busy_in_c(seconds: float) -> None:
    """As a large product does: other threads run meanwhile, but no Python handler is called, and signals do
    not interrupt it.
    """
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(128)
    libc.pthread_mutex_lock(mutex)
    until = time.time() + seconds
    libc.pthread_mutex_timedlock(mutex, (ctypes.c_long * 2)(int(until), int(until % 1 * 1e9)))


def strike_and(hang: Callable[[], None], number: int = signal.SIGTERM) -> Callable[[], None]:
    def strike() -> None:
        os.kill(os.getpid(), number)
        hang()

    return strike


def seconds_to_end(child: int) -> tuple[int, float]:
    began = time.monotonic()
    return wait(child), time.monotonic() - began


def configuration(cache: Path, *words: str) -> dict[str, Any]:
    return harness.configuration(cache, *harness.QUICK, *words)


@pytest.mark.fault(10)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("hang", [hang, hang_in_c])
def test_fault_10_a_step_that_hangs_after_a_signal_ends_in_time_and_says_so(
    hang: Callable[[], None],
    number: signal.Signals,
    cache: Path,
    reference: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run_dir = tmp_path / "run"
    child = start(struck(train(configuration(cache, WITHIN), run_dir), strike_and(hang, number), step=4))
    code, seconds = seconds_to_end(child)
    assert code == 128 + number
    assert seconds < LONGEST
    status = harness.status(run_dir)
    assert (status["status"], status["exit_code"], status["pid"]) == ("preempted", 128 + number, child)
    newest = CheckpointStore(run_dir).newest().step
    sentence = (
        f"ended at once, as it had not stopped 1 s after {number.name}; what came after "
        f"step-{newest:06d} will be done again by: "
    )
    assert status["reason"] == f"{sentence}metalearn resume {run_dir}"
    assert status["reason"] in (run_dir / "train.log").read_text()
    assert f"error: {status['reason']}\n" in capfd.readouterr().err
    assert finish(resume(run_dir)) == 0
    assert_same_end(run_dir, reference)


@pytest.mark.fault(10)
@pytest.mark.parametrize("hang", [hang, hang_in_c])
def test_fault_10_a_second_signal_ends_at_once_and_says_so(
    hang: Callable[[], None], cfg: dict[str, Any], reference: Path, tmp_path: Path
) -> None:
    run_dir, ready = tmp_path / "a run", tmp_path / "ready"

    def first() -> None:
        ready.touch()
        hang()

    child = start(struck(train({**cfg, "trusted": ["mine"]}, run_dir), strike_and(first), step=4))
    while not ready.exists():
        time.sleep(0.01)
    time.sleep(0.2)
    assert os.waitpid(child, os.WNOHANG) == (0, 0)  # one signal alone, and two minutes to come
    os.kill(child, signal.SIGINT)
    code, seconds = seconds_to_end(child)
    assert code == 130
    assert seconds < LONGEST
    assert harness.status(run_dir)["status"] == "preempted"
    assert "ended at once, as a second signal came (SIGINT)" in harness.status(run_dir)["reason"]
    assert harness.status(run_dir)["reason"].endswith(f"metalearn resume '{run_dir}' 'trusted=[mine]'")
    assert finish(resume(run_dir)) == 0
    assert_same_end(run_dir, reference)


@pytest.mark.fault(10)
def test_fault_10_a_rank_that_hangs_does_not_keep_the_run(cache: Path, tmp_path: Path) -> None:
    """The second rank is stopped in its tracks, so that the first one waits for it in a reduction."""
    run_dir, whole = tmp_path / "run", tmp_path / "whole"
    cfg = configuration(cache, WITHIN, "device.ranks=2")
    assert finish(harness.forking_ranks(train(cfg, whole))) == 0

    def strike() -> None:
        [rank] = children(os.getpid())
        (tmp_path / "rank").write_text(str(rank))
        os.kill(rank, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGTERM)

    code, seconds = seconds_to_end(start(struck(harness.forking_ranks(train(cfg, run_dir)), strike, step=4)))
    assert code == 143
    assert seconds < LONGEST
    assert "ended at once, as it had not stopped 1 s after SIGTERM" in harness.status(run_dir)["reason"]
    rank = Path("/proc") / (tmp_path / "rank").read_text()
    began = time.monotonic()
    while rank.exists() and time.monotonic() - began < LONGEST:
        time.sleep(0.01)
    assert not rank.exists()
    assert finish(harness.forking_ranks(resume(run_dir))) == 0
    assert_same_end(run_dir, whole)


def children(parent: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


@pytest.mark.fault(10)
def test_fault_10_a_disk_that_hangs_does_not_keep_the_run(
    cache: Path, reference: Path, tmp_path: Path
) -> None:
    """Neither the save nor the last word comes to an end."""
    run_dir = tmp_path / "run"

    def strike() -> None:
        signals.LAST_WORD = 0.2
        RunLog.sync_metrics = RunLog.write = lambda *parts: hang()  # type: ignore[method-assign, assignment, return-value]
        os.kill(os.getpid(), signal.SIGTERM)

    code, seconds = seconds_to_end(
        start(struck(train(configuration(cache, WITHIN), run_dir), strike, step=4))
    )
    assert code == 143
    assert seconds < LONGEST
    assert finish(resume(run_dir)) == 0
    assert_same_end(run_dir, reference)


def test_who_stops_in_time_is_not_ended(cache: Path, tmp_path: Path) -> None:
    """Nothing of the watch is left behind, and a second run in the same process has its own."""

    def twice() -> int:
        for name in ("first", "second"):
            threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
            assert train(configuration(cache, WITHIN), tmp_path / name)() == 143
            assert harness.status(tmp_path / name) == {
                "status": "preempted",
                "exit_code": 143,
                "pid": os.getpid(),
            }
            assert threading.active_count() == threads
            assert len(os.listdir("/proc/self/fd")) == descriptors
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        time.sleep(1.5)
        return 7

    assert finish(struck(twice, lambda: os.kill(os.getpid(), signal.SIGTERM))) == 7


def test_a_signal_within_a_context_within_another_is_that_of_the_inner_one() -> None:
    with StopSignals() as outer:
        with StopSignals() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
            assert (outer.received, inner.received) == (None, signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert (outer.received, inner.received) == (signal.SIGINT, signal.SIGTERM)


@pytest.mark.fault(10)
@pytest.mark.parametrize("terminal", [False, True])
def test_fault_10_a_job_of_a_sweep_that_is_busy_when_it_is_told_saves(
    terminal: bool, cfg: dict[str, Any], reference: Path, tmp_path: Path
) -> None:
    """The sweep's mark is one word, even if a terminal says it as well and the job answers late."""
    run_dir, mark = tmp_path / "run", tmp_path / ".stop"

    def told() -> None:
        stopping.leave_mark(mark, signal.SIGTERM)
        if terminal:
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
        busy_in_c(1.5)

    def job() -> int:
        with heeding(mark, os.getppid()):
            return struck(train(cfg, run_dir), told)()

    assert finish(job) == 143
    assert "reason" not in harness.status(run_dir)
    assert CheckpointStore(run_dir).pointed("last") == 4
    assert finish(resume(run_dir)) == 0
    assert_same_end(run_dir, reference)
