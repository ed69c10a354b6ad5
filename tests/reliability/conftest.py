from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.reliability import harness, report

SEEDS, HERE = (0, 1, 2), Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before -m leaves any out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the places, signals, … that a test injects a fault with, the first one is fast and the others slow:
    each costs whole runs. scripts/fault_report runs them all.
    """
    seen = set()
    for item in items:
        marks = (number for mark in item.iter_markers("fault") for number in mark.args)
        if item.path.parent != HERE or not (faults := report.faults_of(item.name, marks)):
            continue
        kind = (item.path, getattr(item, "originalname", item.name), min(faults))
        if kind in seen:
            item.add_marker("slow")
        seen.add(kind)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def cfg(cache: Path) -> dict[str, Any]:
    return harness.configuration(cache, *harness.QUICK)


@pytest.fixture(scope="session")
def reference(cfg: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    run_dir = tmp_path_factory.mktemp("reference") / "run"
    harness.warm_up(cfg, run_dir.with_name("warm_up"))
    assert harness.finish(harness.train(cfg, run_dir), plots=True) == 0
    return run_dir


@pytest.fixture(scope="session")
def alone(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same runs, each alone and never stopped, by seed."""
    folder = tmp_path_factory.mktemp("alone")
    harness.warm_up(harness.configuration(cache, *harness.QUICK), folder / "warm_up")
    for seed in SEEDS:
        seeded = harness.configuration(cache, *harness.QUICK, f"seed={seed}")
        assert harness.finish(harness.train(seeded, folder / str(seed))) == 0
    return {seed: folder / str(seed) for seed in SEEDS}
