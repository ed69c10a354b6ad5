"""Compiling ahead, in a process that is ended when it does not pay, hangs, or is in the way of a stop, with
all that it started.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils._filelock import FileLock

from metalearn.build.parts import COMPILER_CACHE, Parts
from metalearn.config.compose import compose
from metalearn.distributed import compiling
from metalearn.distributed.compiling import compile_ahead, run_ended_in_time
from metalearn.engine.autotune import Attempt
from metalearn.engine.compiler_cache import drop_half_written
from metalearn.engine.executor import Executor, TaskPlan
from metalearn.engine.loader import draw_batch
from metalearn.engine.settings import Settings
from metalearn.errors import ConfigError
from metalearn.run import plan as plans
from metalearn.run.signals import PreemptedError
from tests.reliability.harness import KILLED, QUICK, configuration, start, status, train, wait

PLAN = TaskPlan("vmap", 0, compile=True)
ENVIRONMENT = dict(os.environ)


def nothing() -> None:
    """A run that nobody stops."""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(compiling, "LOOK_EVERY", 0.02)
    monkeypatch.setenv(COMPILER_CACHE, str(tmp_path / "compiler"))
    return tmp_path / "compiler"


def compiler_is(monkeypatch: pytest.MonkeyPatch, lines: str) -> None:
    """A process that starts like the one that compiles, and does something else."""
    monkeypatch.setattr(
        compiling, "PROGRAM", f"import os, sys, time; cache = os.environ['{COMPILER_CACHE}']; {lines}"
    )


def shell(lines: str, *, limit: float | None = None, check: Callable[[], None] = nothing) -> Attempt:
    return run_ended_in_time(["sh", "-c", lines], "", ENVIRONMENT, limit=limit, check=check)


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_alive(process: int) -> bool:
    """False for one that nobody has asked about since it ended, too."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


needs_elf = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only there is a file ELF")
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="the system does not list processes in /proc"
)


@needs_proc
def test_a_compiler_that_hangs_is_ended_with_all_that_it_started(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "STILL", 0.3)
    attempt = shell(f"sleep 1000 & echo $! > {tmp_path}/pid; wait", limit=1000)
    assert attempt.ended
    assert (
        attempt.problem == "given up after 0 s of processor time: it hangs, and has computed nothing for 0 s"
    )
    wait_until(lambda: not is_alive(int((tmp_path / "pid").read_text())))


@needs_proc
def test_a_compiler_that_may_take_as_long_as_it_wants_is_ended_all_the_same_when_it_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiling, "STILL", 0.3)
    monkeypatch.setattr(compiling, "LOOK_EVERY", 0.02)
    attempt = shell("sleep 60", limit=None)
    assert attempt.ended
    assert "it hangs" in str(attempt.problem)
    with pytest.raises(ConfigError, match=r"it hangs, .*; go on without a compiler: device.compile=false"):
        plans.compiled(PLAN, lambda plan, limit: attempt)


def test_a_compiler_is_ended_once_it_cannot_pay_for_itself(cache: Path) -> None:
    attempt = shell("while :; do :; done & wait", limit=0.3)  # what it starts counts
    assert attempt.ended
    assert attempt.problem == "given up after 0 s of processor time: it can no longer pay for itself"
    assert 0.3 < attempt.seconds


def test_without_a_list_of_processes_the_clock_counts(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "processor_seconds", lambda session: None)
    assert (
        shell("sleep 1000", limit=0.1).problem
        == "given up after 0 s of processor time: it can no longer pay for itself"
    )


def test_a_compiler_that_is_hardly_let_compute_is_ended_by_the_clock(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "STILL", 0.02)
    monkeypatch.setattr(compiling, "LEAST", 0.0)
    attempt = shell("sleep 1000", limit=0.02)
    assert attempt.ended
    assert "by the clock" in str(attempt.problem)


@pytest.mark.parametrize(
    ("lines", "problem", "refused", "ended"),
    [
        ("exit 0", None, False, False),
        (
            "echo reading; echo 'InductorError: no compiler' >&2; exit 1",
            "InductorError: no compiler",
            False,
            False,
        ),
        ("echo 'this run cannot be compiled' >&2; exit 2", "this run cannot be compiled", True, False),
        (
            "kill -9 $$",
            "the compiler was ended by SIGKILL, as by the system when memory runs out",
            False,
            True,
        ),
    ],
)
def test_what_became_of_a_compiler_is_told(
    cache: Path, lines: str, problem: str | None, refused: bool, ended: bool
) -> None:
    attempt = shell(lines, limit=1000)
    assert (attempt.problem, attempt.refused, attempt.ended) == (problem, refused, ended)


def test_a_stop_ends_the_compiler_at_once(tmp_path: Path, cache: Path) -> None:
    pid = tmp_path / "pid"

    def stop() -> None:
        if pid.exists() and pid.read_text():
            raise PreemptedError(signal.SIGTERM)

    with pytest.raises(PreemptedError):
        shell(f"sleep 1000 & echo $! > {pid}; wait", check=stop)
    wait_until(lambda: not is_alive(int(pid.read_text())))


def test_a_run_that_is_stopped_while_it_compiles_ends_and_leaves_no_process(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = tmp_path / "pid"
    compiler_is(
        monkeypatch,
        f"open(cache + '/half.so', 'w'); open('{pid}', 'w').write(str(os.getpid())); time.sleep(1000)",
    )
    child = start(train(configuration(tmp_path / "data", *QUICK, "device.compile=true"), tmp_path / "run"))
    wait_until(lambda: pid.exists() and pid.read_text() != "")
    os.kill(child, signal.SIGTERM)
    assert wait(child) == 128 + signal.SIGTERM
    assert status(tmp_path / "run")["status"] == "preempted"
    wait_until(lambda: not is_alive(int(pid.read_text())))
    assert [path for path in cache.rglob("*") if path.is_file()] == []


@needs_proc
def test_when_the_run_is_killed_no_compiler_outlives_it(tmp_path: Path, cache: Path) -> None:
    """Not even one that is started by another one and hangs."""
    pid = tmp_path / "pid"
    program = (
        "import os, subprocess, sys, time; from metalearn.distributed import entry; "
        "entry.WATCH_EVERY = 0.02; "
        "entry.end_session_with_this(); entry.end_with(int(sys.argv[1])); "
        f"open('{pid}', 'w').write(str(subprocess.Popen(['sleep', '1000']).pid)); time.sleep(1000)"
    )

    def compile_it() -> int:
        run_ended_in_time(
            [sys.executable, "-c", program, str(os.getpid())], "", ENVIRONMENT, limit=None, check=nothing
        )
        return 0

    child = start(compile_it)
    wait_until(lambda: pid.exists() and pid.read_text() != "")
    os.kill(child, signal.SIGKILL)
    assert wait(child) == KILLED
    wait_until(lambda: not is_alive(int(pid.read_text())))


class TestCache:
    """What a compiler made comes into the cache as a whole, and what it left half made never does."""

    def ahead(self, limit: float | None = None) -> Attempt:
        return compile_ahead(compose([]), PLAN, key="key", limit=limit, proven=False, check=nothing)

    def files(self, cache: Path) -> set[str]:
        return {str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file()}

    def test_a_compiler_that_succeeds_is_not_called_again(
        self, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        compiler_is(
            monkeypatch,
            "os.mkdir(cache + '/ab'); open(cache + '/ab/c.so', 'w').write('code'); open(cache + "
            "'/ab/c.lock', 'w')",
        )
        assert self.ahead().problem is None
        assert self.files(cache) == {"ab/c.so", "metalearn/key"}
        compiler_is(monkeypatch, "sys.exit('called again')")
        assert self.ahead() == Attempt(0.0)
        (cache / "ab" / "c.so").unlink()
        assert self.ahead().problem == "called again", "what it made is gone"

    def test_what_is_left_half_made_is_thrown_away(
        self, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        left = cache / "compiling-by-a-machine-that-went-away"
        left.mkdir(parents=True)
        (left / "half.so").touch()
        os.utime(left, (0, 0))
        compiler_is(monkeypatch, "open(cache + '/half.so', 'w'); sys.exit('no space left')")
        assert self.ahead().problem == "no space left"
        assert self.files(cache) == set()
        assert list(cache.iterdir()) == []

    def test_where_nothing_can_be_kept_that_is_the_problem(
        self, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cache.touch()
        assert self.ahead().problem == f"the compiler could not be started in {cache}: File exists"
        monkeypatch.delenv(COMPILER_CACHE)
        assert self.ahead().problem == f"there is no folder to keep compiled code in; set {COMPILER_CACHE}"


def test_a_run_that_is_told_to_compile_and_cannot_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "metalearn")
    with pytest.raises(ConfigError, match="no compiler"):
        plans.compiled(PLAN, lambda plan, limit: Attempt(1.0, "no compiler", refused=True))
    assert plans.compiled(PLAN, lambda plan, limit: Attempt(1.0, "no folder")) == PLAN
    assert caplog.messages[-2:] == [
        "compiling vmap before the first step",
        "vmap compiled: no folder; compiling it in this process",
    ]


def test_a_plan_that_was_compiled_by_choice_is_not_compiled_again_to_resume(tmp_path: Path) -> None:
    auto = configuration(tmp_path, *QUICK, "device.plan=auto", "trainer.outer_steps=50")
    device = {**auto["device"], "plan": "vmap", "chunk": 0, "compile": True}
    resumed = {**auto, "device": device, "trainer": {**auto["trainer"], "outer_steps": 60}}
    parts = Parts.build(auto)
    names = {plans.graph(cfg, PLAN, parts.algorithm, parts.source, parts.device) for cfg in (auto, resumed)}
    assert len(names) == 1
    assert names != {
        plans.graph(auto, TaskPlan("vmap", 4, compile=True), parts.algorithm, parts.source, parts.device)
    }


@pytest.mark.slow
def test_what_was_compiled_ahead_is_found_by_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(COMPILER_CACHE, str(tmp_path / "compiler"))
    cfg = compose(
        ["data=sinusoid", "device=cpu", "device.threads=1", "model.hidden=[4]", "trainer.meta_batch_size=3"]
    )
    assert compile_ahead(cfg, PLAN, key="key", limit=None, proven=False, check=nothing).problem is None
    parts = Parts.build(cfg)
    torch.compiler.reset()
    found = torch._dynamo.utils.counters["aot_autograd"]
    found.clear()
    Executor(parts.algorithm, PLAN).sums(draw_batch(parts.algorithm, parts.source, Settings.of(cfg), 0))
    assert (found["autograd_cache_hit"], found["autograd_cache_miss"]) == (1, 0)


@pytest.mark.slow
def test_kernels_left_half_written_by_a_killed_compiler_are_made_again(cache: Path) -> None:
    small = ["data=sinusoid", "model.hidden=[4]", "trainer.meta_batch_size=3"]
    cfg = compose([*small, "device=cpu", "device.threads=1"])
    assert compile_ahead(cfg, PLAN, key="key", limit=None, proven=False, check=nothing).problem is None
    kernels = sorted(cache.glob("??/*.main.so"))
    for kernel in kernels[:2]:
        os.truncate(kernel, 0)
    parts = Parts.build(cfg)
    torch.compiler.reset()
    batch = draw_batch(parts.algorithm, parts.source, Settings.of(cfg), 0)
    losses = Executor(parts.algorithm, PLAN).sums(batch).losses
    torch.testing.assert_close(losses, Executor(parts.algorithm, TaskPlan()).sums(batch).losses)


@needs_elf
class TestHalfWritten:
    """Libraries that the linker did not finish, by how far it came."""

    @pytest.fixture
    def kernel(self, cache: Path) -> Path:
        kernel = cache / "ab" / "cabc.main.so"
        kernel.parent.mkdir(parents=True)
        shutil.copy(torch._C.__file__, kernel)
        return kernel

    @pytest.mark.parametrize("size", [0, 10, 64, 5000])
    def test_they_are_removed_and_that_is_said(
        self, kernel: Path, cache: Path, size: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        os.truncate(kernel, size)
        whole = shutil.copy(torch._C.__file__, kernel.with_name("cdef.so"))
        drop_half_written()
        assert not kernel.exists()
        assert whole.exists()
        [line] = caplog.messages
        assert line.startswith(f"removed 1 file that a killed compiler left half written in {cache}")

    def test_one_whose_header_is_still_to_be_written_is_removed(self, kernel: Path) -> None:
        with kernel.open("r+b") as file:
            file.write(bytes(64))
        drop_half_written()
        assert not kernel.exists()

    def test_one_that_is_being_written_is_left_alone(self, kernel: Path, cache: Path) -> None:
        os.truncate(kernel, 0)
        elsewhere = cache / "compiling-x" / "ab" / "cdef.so"
        elsewhere.parent.mkdir(parents=True)
        elsewhere.touch()
        (cache / "locks").mkdir()
        with FileLock(str(cache / "locks" / "cabc.lock")):
            drop_half_written()
        assert kernel.exists()
        assert elsewhere.exists()

    def test_a_process_looks_for_them_before_it_compiles(self, kernel: Path, tmp_path: Path) -> None:
        os.truncate(kernel, 0)
        Executor(Parts.build(configuration(tmp_path, *QUICK)).algorithm, PLAN)
        assert not kernel.exists()
