"""Compiling a plan in a process of its own, before this one needs what comes of it.

That process can be ended with all that it started: when compiling can no longer pay for itself, when it
hangs, and when the run is told to stop. What it made goes into the cache of PyTorch's compiler as a whole or
not at all, and is found there by this process and its ranks,
for which compiling is then a tenth of the work: they read the method, and load the rest.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from metalearn.build.parts import COMPILER_CACHE, Parts
from metalearn.distributed.processes import last_line, manner_of_death
from metalearn.engine.autotune import Attempt
from metalearn.engine.executor import Executor, TaskPlan
from metalearn.engine.loader import draw_batch
from metalearn.engine.plan_check import in_full_precision
from metalearn.engine.settings import Settings
from metalearn.errors import ConfigError, MetalearnError

# As for a rank: the search path of this process replaces its own, in which the working folder would come
# first.
PROGRAM = (
    "import sys; sys.path[:] = sys.argv[1].split('\\n'); from metalearn.distributed.entry import "
    "compile_plan; compile_plan(sys.argv[2:])"
)
LOOK_EVERY = 0.2  # seconds
STILL, LEAST = 60.0, 1.0  # seconds in which a compiler that does not hang computes, and for how long at least
# times as long as the limit, by the clock, that compiling may take on a machine that others keep busy
CROWDED = 10.0
STALE = 86_400.0  # seconds after which a folder to compile in was left behind by a machine that went away


def compile_ahead(
    cfg: dict[str, Any],
    plan: TaskPlan,
    *,
    key: str,
    limit: float | None,
    proven: bool,
    check: Callable[[], None],
) -> Attempt:
    """Let the compiler's cache hold what this plan needs, at the cost of at most so many seconds of processor
    time.

    key: of this graph on this machine; compiled once, it is not compiled again. limit: None for as long as it
    takes.
    proven: also the method in full precision, which plans are proved with. check: raises to stop.
    """
    cache = os.environ.get(COMPILER_CACHE)
    if cache is None:  # of a user without a home
        return Attempt(0.0, f"there is no folder to keep compiled code in; set {COMPILER_CACHE}")
    marks = [Path(cache) / "metalearn" / name for name in ((key, f"{key}-proven") if proven else (key,))]
    if all(vouches(mark, Path(cache)) for mark in marks):
        return Attempt(0.0)
    request = {"cfg": {**cfg, "trusted": []}, "plan": asdict(plan), "proven": proven}
    command = [sys.executable, "-c", PROGRAM, "\n".join(sys.path), str(os.getpid()), *cfg["trusted"]]
    try:
        with private_folder(Path(cache)) as folder:
            environment = {
                **os.environ,
                "OMP_NUM_THREADS": str(torch.get_num_threads()),
                COMPILER_CACHE: str(folder),
            }
            attempt = run_ended_in_time(command, json.dumps(request), environment, limit=limit, check=check)
            if attempt.problem is None:
                made = json.dumps(adopt(folder, Path(cache)))
                for mark in marks:
                    mark.parent.mkdir(exist_ok=True)
                    mark.write_text(made, encoding="utf-8")
    except OSError as error:
        return Attempt(0.0, f"the compiler could not be started in {cache}: {error.strerror or error}")
    return attempt


@contextlib.contextmanager
def private_folder(cache: Path) -> Iterator[Path]:
    """A compiler that is ended leaves files half written, under names by which later runs would load them."""
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    for left in cache.glob("compiling-*"):
        with contextlib.suppress(OSError):  # it goes at this moment
            if time.time() - left.stat().st_mtime > STALE:
                shutil.rmtree(left, ignore_errors=True)
    # What was killed may take a moment to go, and still write.
    with tempfile.TemporaryDirectory(prefix="compiling-", dir=cache, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def vouches(mark: Path, cache: Path) -> bool:
    """Whether what was compiled under this mark is still in the cache."""
    try:
        made = json.loads(mark.read_text(encoding="utf-8"))
        return isinstance(made, list) and all((cache / str(name)).exists() for name in made)
    except (OSError, ValueError):
        return False


def adopt(folder: Path, cache: Path) -> list[str]:
    """Move the files of one cache into another, each at once. Their names, which are hashes of what is in
    them.
    """
    moved = []
    for path in sorted(folder.rglob("*")):
        target = cache / path.relative_to(folder)
        if path.is_dir():
            target.mkdir(mode=0o700, exist_ok=True)
        elif path.suffix != ".lock":
            os.replace(path, target)
            moved.append(str(path.relative_to(folder)))
    return moved


def run_ended_in_time(
    command: list[str],
    words: str,
    environment: dict[str, str],
    *,
    limit: float | None,
    check: Callable[[], None],
) -> Attempt:
    """What became of a command that reads these words; see `compile_ahead`. No process of its session
    outlives this call.
    """
    with ProcessSession(command, words, environment) as session:
        while session.process.poll() is None:
            check()
            seconds = session.seconds()
            if reason := session.reason_to_end(limit):
                return Attempt(
                    seconds, f"given up after {seconds:.0f} s of processor time: {reason}", ended=True
                )
            with contextlib.suppress(subprocess.TimeoutExpired):
                session.process.wait(LOOK_EVERY)
        code, output = session.process.returncode, session.output()
        seconds = session.seconds()
    if code < 0:
        return Attempt(seconds, f"the compiler {manner_of_death(code)}", ended=True)
    return Attempt(seconds, last_line(output) if code else None, refused=code == ConfigError.exit_code)


class ProcessSession:
    """Context in which a command and all that it starts live, in a session of their own: no key of the
    terminal reaches them.
    """

    def __init__(self, command: list[str], words: str, environment: dict[str, str]) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - without a name, until __exit__
        self._before = resource.getrusage(resource.RUSAGE_CHILDREN)
        self._start = self._moved = time.monotonic()
        self._most = self._then = 0.0
        with tempfile.TemporaryFile() as request:
            request.write(words.encode())
            request.seek(0)
            self.process = subprocess.Popen(
                command,
                stdin=request,
                stdout=self._output,
                stderr=self._output,
                env=environment,
                close_fds=True,
                start_new_session=True,
            )

    def __enter__(self) -> ProcessSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # all are gone
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._output.close()

    def output(self) -> str:
        self._output.seek(0)
        return self._output.read().decode(errors="replace")

    def seconds(self) -> float:
        """Processor time of all its processes, and not more than the time by the clock, in which several may
        have computed.
        """
        elapsed = time.monotonic() - self._start
        if self.process.returncode is None:
            used = processor_seconds(self.process.pid)
        else:
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            used = after.ru_utime + after.ru_stime - self._before.ru_utime - self._before.ru_stime
        self._most = max(self._most, min(elapsed if used is None else used, elapsed))
        return self._most

    def reason_to_end(self, limit: float | None) -> str | None:
        now = time.monotonic()
        if limit is not None and self._most > limit:
            return "it can no longer pay for itself"
        if limit is not None and now - self._start > CROWDED * max(limit, STILL):
            return f"it took {now - self._start:.0f} s by the clock"
        if self._most - self._then >= LEAST:
            self._moved, self._then = now, self._most
        return f"it hangs, and has computed nothing for {STILL:.0f} s" if now - self._moved > STILL else None


def processor_seconds(session: int) -> float | None:
    """Of all processes of a session, with their children that ended; None where the system does not list
    processes in /proc.
    """
    ticks: list[int] = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            fields = path.read_bytes().rpartition(b")")[2].split()  # from the third field of proc(5) on
            if int(fields[3]) == session:
                ticks.append(sum(map(int, fields[11:15])))
    return sum(ticks) / os.sysconf("SC_CLK_TCK") if ticks else None


def compile_asked(trusted: list[str]) -> int:
    """The part of the process that compiles: one gradient of the plan that it reads about; its exit code."""
    try:
        request = json.load(sys.stdin)
        cfg, plan = {**request["cfg"], "trusted": trusted}, TaskPlan(**request["plan"])
        parts = Parts.build(cfg)
        batch = draw_batch(parts.algorithm, parts.source, Settings.of(cfg).part(cfg["device"]["ranks"]), 0)
        actors = [parts.algorithm]
        if request["proven"] and (full := in_full_precision(parts.algorithm)) is not parts.algorithm:
            actors.append(full)
        for actor in actors:
            Executor(actor, plan).sums(batch)
    except MetalearnError as error:
        say_why(error)
        return error.exit_code
    except BaseException as error:  # noqa: BLE001 - the run has to hear of everything, and says it
        traceback.print_exc()
        say_why(error)
        return 1
    return 0


def say_why(error: BaseException) -> None:
    """The last line is what the run reads."""
    first = (str(error).strip().splitlines() or [""])[0]
    sys.stderr.write(
        f"{first if isinstance(error, MetalearnError) else f'{type(error).__name__}: {first}'}\n"
    )
