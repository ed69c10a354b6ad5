"""SIGKILL at random moments of a run: from outside, at no place that the code knows of, yet in every phase of
its life.

A run tells the killer through a pipe when it enters the phase that was chosen for it, and waits at the end of
that phase. So the
kill comes somewhere within: after a random share of the time that this visit took when nobody was killed, or,
if this process was faster, at its very end.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import signal
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from metalearn.engine.trainer import Trainer
from metalearn.run import session
from tests.reliability.harness import start, wait
from tests.reliability.report import PHASES

SEED = os.environ.get("METALEARN_KILL_SEED") or str(random.SystemRandom().randrange(10**6))
PATIENCE = 60  # seconds that a process waits to be killed
Visits = dict[str, list[float]]  # seconds of each visit to a phase


class Moment(NamedTuple):
    """visit: the how manieth of its phase, from 0. seconds: after its beginning."""

    phase: str
    visit: int
    seconds: float


def num_kills(few: int) -> int:
    """How many moments are tried: `few`, or as many as METALEARN_KILLS says."""
    return int(os.environ.get("METALEARN_KILLS", few))


def moment(kind: str, number: int, visits: Visits) -> Moment:
    """The phases take turns, so that each is hit; the visit and the time within are random, but for the seed,
    which is printed.
    """
    phase = PHASES[number % len(PHASES)]
    draw = random.Random(f"{SEED} {kind} {number}")
    visit = draw.randrange(len(visits[phase]))
    chosen = Moment(phase, visit, draw.uniform(0, visits[phase][visit]))
    killed = f"{kind} {number} is killed {1000 * chosen.seconds:.2f} ms into visit {visit} of {phase}"
    print(f"METALEARN_KILL_SEED={SEED}: {killed}")  # noqa: T201
    return chosen


def kill_at(
    chosen: Moment, work: Callable[[], int], *, victims: Callable[[int], list[int]] = lambda child: [child]
) -> int:
    """How the child ended that was killed at this moment. victims: the processes to kill, by the child's
    number.
    """
    ours, theirs = os.pipe()
    child = start(lambda: Trace(theirs, chosen).follow(work))
    os.close(theirs)
    if os.read(ours, 1):
        time.sleep(chosen.seconds)
        for process in victims(child):
            with contextlib.suppress(ProcessLookupError):  # a rank may be gone with the process before it
                os.kill(process, signal.SIGKILL)
    os.close(ours)
    return wait(child)


def measured(work: Callable[[], int]) -> Visits:
    """The visits of a child that is left in peace."""
    ours, theirs = os.pipe()
    child = start(lambda: Trace(theirs, None).follow(work))
    os.close(theirs)
    with os.fdopen(ours) as lines:
        visits: Visits = {phase: [] for phase in PHASES}
        for line in lines:
            phase, seconds = line.split()
            visits[phase].append(float(seconds))
    assert wait(child) == 0
    return visits


class Trace:
    """Follows this process through its phases. Without a chosen moment it writes down how long each visit
    took.
    """

    def __init__(self, pipe: int, chosen: Moment | None) -> None:
        self.pipe, self.chosen = pipe, chosen
        self.phase: str | None = None
        self.counts = dict.fromkeys(PHASES, 0)
        self.began = 0.0

    def follow(self, work: Callable[[], int]) -> int:
        """The work, with every phase between its marks. They never overlap."""
        for name, phase in (("train_step", "step"), ("save", "save"), ("validate", "evaluation")):
            self.mark(Trainer, name, before=functools.partial(self.enter, phase), after=self.leave)
        self.mark(session.Session, "_evaluate", before=lambda: self.enter("evaluation"), after=self.leave)
        # the second job of a sweep, too
        self.mark(session.Session, "__init__", before=lambda: self.enter("start-up"))
        self.mark(Trainer, "train", before=self.leave)
        self.mark(session.Session, "_report", before=lambda: self.enter("end"))
        self.mark(session.Session, "run", after=self.leave)
        self.enter("start-up")
        return work()

    def mark(
        self,
        owner: Any,
        name: str,
        *,
        before: Callable[[], None] = lambda: None,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        usual = getattr(owner, name)

        @functools.wraps(usual)
        def marked(*args: Any, **options: Any) -> Any:
            before()
            result = usual(*args, **options)
            after()
            return result

        setattr(owner, name, marked)

    def enter(self, phase: str) -> None:
        if self.phase == phase:
            return  # the process has begun, and now its first run
        self.phase, self.began = phase, time.monotonic()
        if self._is_chosen():
            os.write(self.pipe, b"!")

    def leave(self) -> None:
        if self.phase is None:
            return
        if self.chosen is None:
            os.write(self.pipe, f"{self.phase} {time.monotonic() - self.began}\n".encode())
        elif self._is_chosen():
            time.sleep(PATIENCE)
            os._exit(98)
        self.counts[self.phase] += 1
        self.phase = None

    def _is_chosen(self) -> bool:
        assert self.phase is not None
        return self.chosen is not None and (self.phase, self.counts[self.phase]) == self.chosen[:2]
