"""Faults 1, 2 and 26: SIGKILL at random moments of a run, of a run of two ranks and of a sweep, each followed
by one anywhere in what goes on. What is left at the end is that of a run which nobody ever stopped, bit for
bit.

METALEARN_KILLS=20 tries that many moments of each kind, METALEARN_KILL_SEED=N those of an earlier report.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.reliability import harness
from tests.reliability.harness import (
    KILLED,
    assert_same_end,
    finish,
    finish_killed_after,
    forking_ranks,
    resume,
    train,
)
from tests.reliability.moments import SEED, Visits, kill_at, measured, moment, num_kills
from tests.reliability.test_ranks import WORDS, children
from tests.reliability.test_sweeps import assert_as_alone, command, words

SINGLE, RANKS, SWEEP = (range(num_kills(few)) for few in (12, 4, 4))
Record = Callable[[str, object], None]


def begin_or_resume(cfg: dict[str, Any], run_dir: Path) -> int:
    """What a person does about a run that was killed: begin it again, if that was so early that the folder is
    no run, or resume it.
    """
    return (resume(run_dir) if (run_dir / "config.yaml").exists() else train(cfg, run_dir))()


def kill_twice(
    work: Callable[[], int], kind: str, number: int, visits: Visits, record: Record, **options: Any
) -> None:
    """Kill the work at the moment of this number, then what goes on, as far on as a run that is whole might
    be, or see that end before.

    work: begins, or goes on with what is there. options: of kill_at.
    """
    chosen = moment(kind, number, visits)
    assert kill_at(chosen, work, **options) == KILLED
    record(f"killed {kind}", chosen.phase)
    whole = sum(map(sum, visits.values()))
    finish_killed_after(work, random.Random(f"{SEED} second of {kind} {number}").uniform(0, whole))


# --- a run
# -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def visits(cfg: dict[str, Any], reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Visits:
    run_dir = tmp_path_factory.mktemp("visits") / "run"
    found = measured(train(cfg, run_dir))
    assert_same_end(run_dir, reference)
    return found


@pytest.mark.fault(1)
@pytest.mark.parametrize("number", SINGLE)
def test_a_run_that_was_killed_ends_as_if_it_had_not_been(
    number: int, cfg: dict[str, Any], reference: Path, visits: Visits, tmp_path: Path, record_property: Record
) -> None:
    run_dir = tmp_path / "run"
    work = lambda: begin_or_resume(cfg, run_dir)  # noqa: E731
    kill_twice(work, "run", number, visits, record_property)
    assert finish(work) == 0
    assert_same_end(run_dir, reference)


def test_every_phase_is_hit(visits: Visits) -> None:
    for kind, numbers in (("run", SINGLE), ("ranks", RANKS), ("sweep", SWEEP)):
        assert {"start-up", "step", "save", "evaluation"} <= {
            moment(kind, number, visits).phase for number in numbers
        }
    found = {phase: len(times) for phase, times in visits.items()}
    assert found == {"start-up": 1, "step": 6, "save": found["save"], "evaluation": 4, "end": 1}
    assert found["save"] >= 3  # of steps 0, 3 and 6, and where a validation was the best


# --- two ranks
# -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranks_cfg(cache: Path) -> dict[str, Any]:
    return harness.configuration(cache, *WORDS, "device.ranks=2")


@pytest.fixture(scope="module")
def ranks_reference(
    ranks_cfg: dict[str, Any], reference: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run that was never stopped."""
    run_dir = tmp_path_factory.mktemp("ranks") / "run"
    assert finish(forking_ranks(train(ranks_cfg, run_dir))) == 0
    return run_dir


@pytest.fixture(scope="module")
def ranks_visits(
    ranks_cfg: dict[str, Any], ranks_reference: Path, tmp_path_factory: pytest.TempPathFactory
) -> Visits:
    run_dir = tmp_path_factory.mktemp("ranks_visits") / "run"
    found = measured(forking_ranks(train(ranks_cfg, run_dir)))
    assert_same_end(run_dir, ranks_reference)
    return found


@pytest.mark.slow
@pytest.mark.fault(1)
@pytest.mark.parametrize("number", RANKS)
def test_two_ranks_that_were_killed_end_as_if_they_had_not_been(
    number: int,
    ranks_cfg: dict[str, Any],
    ranks_reference: Path,
    ranks_visits: Visits,
    tmp_path: Path,
    record_property: Record,
) -> None:
    """The run's own process, after which its rank has to go by itself, or both at once, as when the machine
    stops.
    """
    run_dir = tmp_path / "run"
    work = forking_ranks(lambda: begin_or_resume(ranks_cfg, run_dir))
    victims = (lambda child: [child]) if number % 2 else (lambda child: [child, *children(child)])
    kill_twice(work, "ranks", number, ranks_visits, record_property, victims=victims)
    assert finish(work) == 0
    assert_same_end(run_dir, ranks_reference)


# --- a sweep
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sweep_visits(cache: Path, alone: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> Visits:
    folder = tmp_path_factory.mktemp("sweep_visits")
    found = measured(command(folder, *words(cache)))
    assert_as_alone(folder, alone)
    assert len(found["start-up"]) == len(found["end"]) == len(alone)
    return found


@pytest.mark.slow
@pytest.mark.fault(1, 26)
@pytest.mark.parametrize("number", SWEEP)
def test_a_sweep_that_was_killed_ends_as_if_it_had_not_been(
    number: int,
    cache: Path,
    alone: dict[int, Path],
    sweep_visits: Visits,
    tmp_path: Path,
    record_property: Record,
) -> None:
    sweep = command(tmp_path, *words(cache))
    kill_twice(sweep, "sweep", number, sweep_visits, record_property)
    assert finish(sweep) == 0
    assert_as_alone(tmp_path, alone)
