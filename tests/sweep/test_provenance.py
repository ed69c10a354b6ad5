"""In which folder the run of today's code is looked for."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from metalearn.sweep.provenance import code_of, folder_for

A, B = 40 * "a", 40 * "b"
NOW = A[:10]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "seed-1"


def begun(
    folder: Path, sha: str | None, *, dirty: bool = False, finished: bool = False, when: int = 0
) -> Path:
    """sha: None for a run that was killed before its env.json."""
    folder.mkdir()
    (folder / "config.yaml").write_text("seed: 1")
    if sha is not None:
        (folder / "env.json").write_text(json.dumps({"git_sha": sha, "git_dirty": dirty}))
    if finished:
        (folder / "status.json").write_text(json.dumps({"status": "finished", "exit_code": 0}))
        (folder / "results.json").write_text("{}")
        os.utime(folder / "results.json", (when, when))
    return folder


def test_the_first_run_has_the_plain_name(base: Path) -> None:
    begun(base.with_name("seed-10"), A)
    for reuse in (False, True):
        assert folder_for(base, NOW, reuse=reuse) == base


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("sha", "dirty", "own"), [(A, False, "seed-1"), (B, False, f"seed-1-{NOW}"), (A, True, f"seed-1-{NOW}")]
)
def test_only_a_run_of_the_same_code_counts(
    sha: str, dirty: bool, own: str, finished: bool, base: Path
) -> None:
    begun(base, sha, dirty=dirty, finished=finished)
    assert folder_for(base, NOW, reuse=False).name == own


def test_of_changed_files_only_a_stopped_run_goes_on(base: Path) -> None:
    begun(base, A, dirty=True)
    assert folder_for(base, f"{NOW}-dirty", reuse=False) == base
    (base / "status.json").write_text(json.dumps({"status": "finished", "exit_code": 0}))
    (base / "results.json").write_text("{}")
    own = f"seed-1-{NOW}-dirty"
    assert folder_for(base, f"{NOW}-dirty", reuse=False).name == own
    begun(base.with_name(own), A, dirty=True, finished=True)
    assert folder_for(base, f"{NOW}-dirty", reuse=False).name == f"{own}-2"


def test_a_run_that_was_killed_before_it_began_goes_on(base: Path) -> None:
    begun(base, None)
    assert folder_for(base, NOW, reuse=False) == base


def test_reuse_takes_what_finished_last(base: Path) -> None:
    begun(base, B, finished=True, when=1000)
    newest = begun(base.with_name(f"seed-1-{NOW}"), A, finished=True, when=2000)
    begun(base.with_name(f"seed-1-{NOW}-2"), A)
    begun(base.with_name("seed-1_lr-0.1"), A, finished=True, when=3000)
    begun(base.with_name("seed-10"), A, finished=True, when=3000)
    assert folder_for(base, NOW, reuse=True) == newest


def test_outside_of_a_clone_the_release_counts() -> None:
    assert code_of({"git_sha": None, "versions": {"metalearn-runner": "1.2.0"}}) == "release-1.2.0"
    assert code_of({}) == "unknown"
