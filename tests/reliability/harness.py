"""Runs in processes of their own that can be killed for real, and a comparison of what they leave behind.

The processes are forked, so that thirty of them do not import torch thirty times; one thread each, since a
fork does not take a thread pool along.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import types
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from metalearn.config.compose import compose
from metalearn.distributed import processes
from metalearn.engine.trainer import Trainer
from metalearn.errors import MetalearnError
from metalearn.run import resume as resuming
from metalearn.run import session
from metalearn.run import train as training
from metalearn.rundir.checkpoints import CheckpointStore

KILLED = -signal.SIGKILL
DRAW_PLOTS = session.draw_plots
TINY = [
    "device=cpu",
    "device.threads=1",
    "data=glyphs",
    "data.num_classes=48",
    "data.num_drawings=6",
    "data.image_size=14",
    "data.way=3",
    "data.query_shot=2",
    "model.channels=4",
    "trainer.outer_steps=6",
    "trainer.meta_batch_size=2",
    "trainer.batch_size=8",
    "trainer.log_every=4",
    "trainer.eval_every=2",
    "trainer.checkpoint_every=3",
    "eval.val_episodes=4",
    "eval.episodes=6",
    "eval.chunk=3",
]
# Adam's moments, weights and running averages, in a third of a second
QUICK = [
    "algo=protonet",
    "model.norm_statistics=running",
]


def configuration(cache: Path, *overrides: str) -> dict[str, Any]:
    return compose([*TINY, f"data.cache_dir={cache}", *overrides])


def start(work: Callable[[], int], fault: str | None = None, *, plots: bool = False) -> int:
    """Process id of a child that does the work and exits with its code; MetalearnErrors become their exit
    codes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads that we do not use
        child = os.fork()
    if child:
        return child
    code = 99
    try:
        session.draw_plots = DRAW_PLOTS if plots else lambda *parts: None  # half the time of a tiny run
        if fault is not None:
            os.environ["METALEARN_FAULT"] = fault
        code = work()
    except MetalearnError as error:
        os.write(2, f"{error}\n".encode())
        code = error.exit_code
    except BaseException:  # noqa: BLE001 - the child must not return into pytest
        traceback.print_exc()
    finally:
        os._exit(code)


def wait(child: int) -> int:
    """Exit code of a child, or minus the number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def finish(work: Callable[[], int], fault: str | None = None, *, plots: bool = False) -> int:
    return wait(start(work, fault, plots=plots))


def finish_killed_after(work: Callable[[], int], seconds: float) -> int:
    """Kill the child after so long, unless it was faster."""
    child = start(work)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return wait(child)


def train(cfg: dict[str, Any], run_dir: Path) -> Callable[[], int]:
    return lambda: training.train(cfg, ["seed=0"], run_dir)


def at_steps(work: Callable[[], int], actions: Mapping[int, Callable[[], object]]) -> Callable[[], int]:
    """The work, with something happening to its process at the beginning of these outer steps."""

    def changed() -> int:
        usual = Trainer.train_step

        def train_step(self: Trainer) -> None:
            actions.get(self.step, lambda: None)()
            usual(self)

        Trainer.train_step = train_step  # type: ignore[method-assign]
        return work()

    return changed


def struck(work: Callable[[], int], action: Callable[[], object], *, step: int = 3) -> Callable[[], int]:
    return at_steps(work, {step: action})


def before_writing(
    work: Callable[[], int], module: Any, name: str, action: Callable[[Path, bytes], object]
) -> Callable[[], int]:
    """The work, with something happening to its process before `module.name` writes a content to a path."""

    def changed() -> int:
        usual = getattr(module, name)

        def write(path: Path, content: bytes) -> None:
            action(path, content)
            usual(path, content)

        setattr(module, name, write)
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


class ForkedRank:
    """What a run needs of a subprocess.Popen, for a rank that is forked from it instead of importing torch
    anew.
    """

    def __init__(self, command: list[str], *, stdout: Any, env: Mapping[str, str], **streams: Any) -> None:
        self.returncode: int | None = None
        self.lock = threading.Lock()  # the run's watch asks too
        self.pid = os.fork()
        if self.pid == 0:
            try:
                for stream in (1, 2):
                    os.dup2(stdout.fileno(), stream)
                os.closerange(3, 1024)  # as Popen does: the lock and the killer's pipe are not a rank's
                sys.stdout = sys.stderr = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115 - pytest's own are closed now
                os.environ.update(env)
                sys.path[:] = command[3].split("\n")
                from metalearn.distributed.entry import main

                main(command[4:])
            except BaseException:  # noqa: BLE001 - the child must not return into pytest
                traceback.print_exc()
            finally:
                os._exit(99)

    def poll(self) -> int | None:
        with self.lock:
            if self.returncode is None:
                done, status = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if done else None
        return self.returncode

    def wait(self, timeout: float = 60) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("rank", timeout)
            time.sleep(0.005)
        return code

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def forking_ranks(work: Callable[[], int]) -> Callable[[], int]:
    """The work of a process whose ranks are forked from it: real processes, within milliseconds."""

    def forking() -> int:
        names = {"DEVNULL": subprocess.DEVNULL, "TimeoutExpired": subprocess.TimeoutExpired}
        processes.subprocess = types.SimpleNamespace(Popen=ForkedRank, **names)  # type: ignore[attr-defined]
        return work()

    return forking


def warm_up(cfg: dict[str, Any], run_dir: Path) -> None:
    """One run in this process: what it loads, its forks need not load again."""
    threads = torch.get_num_threads()
    train(cfg, run_dir)()
    torch.set_num_threads(threads)


def resume(run_dir: Path, *overrides: str) -> Callable[[], int]:
    return lambda: resuming.resume(run_dir, list(overrides))


def status(run_dir: Path) -> Mapping[str, Any]:
    return json.loads((run_dir / "status.json").read_text())


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without their times."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("time_")} for line in lines]


def assert_same_end(run_dir: Path, reference: Path) -> None:
    """Bit-equal weights, optimizer, random state, metrics and results."""
    assert status(run_dir)["status"] == "finished"
    store, wanted = CheckpointStore(run_dir), CheckpointStore(reference)
    for pointer in ("last", "best"):
        step = wanted.pointed(pointer)
        assert store.pointed(pointer) == step
        if step is not None:
            found, expected = store.load(step), wanted.load(step)
            assert {name: value.numpy().tobytes() for name, value in found.tensors.items()} == {
                name: value.numpy().tobytes() for name, value in expected.tensors.items()
            }
            facts, expected_facts = found.metadata, expected.metadata
            assert {**facts, "metrics_offset": 0} == {**expected_facts, "metrics_offset": 0}
    assert metrics(run_dir) == metrics(reference)
    for name in ("results.json", "eval_test.csv"):
        assert (run_dir / name).read_bytes() == (reference / name).read_bytes()
