"""The first lines of a process that a run starts, to be a rank or to compile: whose orders it follows, and
that it ends with its parent.

Nothing here imports torch, which takes seconds, in which the parent may die.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from metalearn.distributed.torchrun import launched

PR_SET_PDEATHSIG = 1  # name of Linux's sys/prctl.h
WATCH_EVERY = 0.5  # seconds

T = TypeVar("T")


def main(words: Sequence[str]) -> NoReturn:
    """words: process id of the parent, rank, number of ranks, file of the store, trusted packages."""
    leave_signals_to_parent()
    parent, rank, ranks = map(int, words[:3])
    end_with(parent)
    from metalearn.distributed.launch import work

    leave(work(rank, ranks, words[3], list(words[4:])))


def compile_plan(words: Sequence[str]) -> NoReturn:
    """words: process id of the parent, trusted packages. What to compile is read from the standard input."""
    leave_signals_to_parent()
    end_session_with_this()
    end_with(int(words[0]))
    from metalearn.distributed.compiling import compile_asked

    leave(compile_asked(list(words[1:])))


def leave_signals_to_parent() -> None:
    """A signal from the terminal or a scheduler reaches every process; rank 0 alone decides what it means."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def share(command: Callable[[T], int], words: T) -> int:
    """Run a command in the one process that this is, or in rank 0 of those that a launcher started; its exit
    code.
    """
    started = launched()
    if started is None:
        return command(words)
    if started[0] > 0:
        end_with(os.getppid())
        from metalearn.distributed.launch import work_launched

        leave(work_launched())
    code = command(words)
    if code == 0:  # any other lets the launcher end all
        from metalearn.distributed.launch import release_siblings

        release_siblings()
    return code


def end_with(parent: int) -> None:
    """Let this process end within a second of its parent, whatever it is doing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_EVERY)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def end_session_with_this() -> None:
    """Let all that this process starts end with it, however it ends: a compiler starts workers, and they
    start compilers.

    This process must lead a session of its own, and have one thread.
    """
    leader = os.getpid()
    if os.fork() == 0:
        while os.getppid() == leader:
            time.sleep(WATCH_EVERY)
        os.killpg(leader, signal.SIGKILL)


def leave(code: int) -> NoReturn:
    """Without the interpreter's own farewell, which may wait for connections that are gone."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
