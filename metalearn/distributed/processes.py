"""The processes of ranks 1 … R-1 as rank 0 sees them: their start, their words, their end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import torch

from metalearn.distributed.strategy import RankError, reason

# What a new rank runs. The search path of this process replaces its own, in which the working folder would
# come first.
PROGRAM = (
    "import sys; sys.path[:] = sys.argv[1].split('\\n'); from metalearn.distributed.entry import main; "
    "main(sys.argv[2:])"
)
LOST = 70  # exit code of a rank that another one left alone
PATIENCE = 10.0  # seconds for a rank to end, once it was asked to or has to
GRACE = 20.0  # seconds for the main thread to notice that a rank is gone
WATCH_EVERY = 1.0
LONGEST_OUTPUT = 2**16  # bytes, from the end
NOTHING_LOST = "the other ranks hold nothing of a run, so that it continues with: metalearn resume RUN_DIR"


class Workers:
    """Context in which ranks 1 … ranks-1 live as processes of this one; they are killed at its end if they
    still do.

    path: file of the store to meet at. give_up: called before the process is ended, because a rank is gone
    and the main thread still waits for it, as it may at a GPU.
    """

    def __init__(
        self, ranks: int, path: Path, trusted: list[str], give_up: Callable[[RankError], None]
    ) -> None:
        self.ranks, self.give_up = ranks, give_up
        self.outputs = [tempfile.TemporaryFile() for _ in range(1, ranks)]  # noqa: SIM115 - without a name, until __exit__
        self.processes: list[subprocess.Popen[bytes]] = []
        self.ended = threading.Event()
        environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
        for rank, output in enumerate(self.outputs, start=1):
            words = [str(os.getpid()), str(rank), str(ranks), str(path), *trusted]
            # No descriptor but these is passed on: a rank that outlived the run must not hold its lock.
            command = [sys.executable, "-c", PROGRAM, "\n".join(sys.path), *words]
            self.processes.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=environment,
                    close_fds=True,
                )
            )
        threading.Thread(target=self._watch, daemon=True).start()

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ended.set()
        for process in self.processes:
            process.kill()
            process.wait()
        for output in self.outputs:
            output.close()

    def require(self) -> None:
        """Raise RankError if a rank is gone."""
        if self._gone():
            raise self.failure()

    def failure(self, error: RuntimeError | None = None) -> RankError:
        """What became of the rank that ended first. error: how this process noticed."""
        deadline = time.monotonic() + PATIENCE
        # The others lose their connections too, and say only that.
        while (
            not (culprits := [rank for rank in self._gone() if self._code(rank) != LOST])
            and time.monotonic() < deadline
        ):
            time.sleep(0.05)
        if not culprits:
            why = "no further reason" if error is None else reason(error)
            return RankError(f"the ranks lost their connection ({why}); {NOTHING_LOST}", self._all_output())
        rank = culprits[0]
        code, output = self._code(rank), self._output(rank)
        how = manner_of_death(code) if code < 0 else f"ended with exit code {code}: {last_line(output)}"
        return RankError(f"rank {rank} of {self.ranks} {how}; {NOTHING_LOST}", output)

    def farewell(self) -> list[str]:
        """Wait for the ranks, which were ordered to end; what they said."""
        self.ended.set()
        deadline = time.monotonic() + PATIENCE
        for process in self.processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
        return self._all_output().splitlines()

    def _watch(self) -> None:
        """Last resort, beside the main thread."""
        since: float | None = None
        while not self.ended.wait(WATCH_EVERY):
            since = None if not self._gone() else since or time.monotonic()
            if since is not None and time.monotonic() - since > GRACE:
                self.give_up(self.failure())
                os._exit(RankError.exit_code)

    def _gone(self) -> list[int]:
        return [rank for rank, process in enumerate(self.processes, start=1) if process.poll() is not None]

    def _code(self, rank: int) -> int:
        return int(self.processes[rank - 1].returncode)

    def _output(self, rank: int) -> str:
        file = self.outputs[rank - 1].fileno()
        size = os.fstat(file).st_size
        return os.pread(file, LONGEST_OUTPUT, max(0, size - LONGEST_OUTPUT)).decode(errors="replace")

    def _all_output(self) -> str:
        return "".join(
            f"rank {rank}: {line}\n"
            for rank in range(1, self.ranks)
            for line in self._output(rank).splitlines()
        )


class Siblings:
    """The other ranks where a launcher started all of them: it watches over them and shows what they
    print.
    """

    def require(self) -> None:
        """Nothing is known of them until an order fails."""

    def failure(self, error: RuntimeError) -> RankError:
        return RankError(
            f"another rank is gone ({reason(error)}); the launcher's own lines say why; {NOTHING_LOST}"
        )

    def farewell(self) -> list[str]:
        return []


def manner_of_death(code: int) -> str:
    """code: minus the number of the signal."""
    hint = ", as by the system when memory runs out" if code == -signal.SIGKILL else ""
    return f"was ended by {signal.Signals(-code).name}{hint}"


def last_line(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"
