"""Killed by SIGKILL anywhere and resumed = never killed, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.reliability import harness
from tests.reliability.harness import KILLED, assert_same_end, finish, resume, train

# Every phase of a run's life. The first save:… visit is the preflight's, the second that of step-000000.
# The first one of each fault is fast; the others are slow.
PLACES = [
    "save:after_file_2@3",
    "start:config",
    "start:built",
    "save:after_file_1@1",
    "save:after_file_1@2",
    "save:after_rename@2",
    "step:before_update@3",
    "step:end@4",
    "eval:batch@2",
    "save:before_rename@4",
    "save:after_rename@4",
    "save:after_rename@5",
    "save:after_last@4",
    "save:before_prune@5",
    "test:batch@1",
    "end:before_results",
    "end:after_results",
]
# Other shapes of state: flat minibatches with running averages, momentum and a schedule; Reptile; a loss
# that anneals over outer steps; nothing to train.
VARIANTS = {
    "baseline": [
        "algo=baseline",
        "model.norm_statistics=running",
        "optimizer=sgd",
        "optimizer/schedule=cosine",
        "algo.eval_adaptation_steps=2",
    ],
    "reptile": [
        "algo=reptile",
        "algo.eval_adaptation_steps=1",
        "algo.adaptation_steps=2",
        "trainer.outer_steps=5",
    ],
    "reptile, sequential": [
        "algo=reptile",
        "algo.eval_adaptation_steps=1",
        "algo.adaptation_steps=2",
        "algo.task_order=sequential",
        "device.plan=loop",
        "trainer.outer_steps=5",
    ],
    "maml": ["algo.eval_adaptation_steps=1", "optimizer=adamw", "trainer.outer_steps=5"],
    "maml_pp": [
        "algo=maml_pp",
        "algo.adaptation_steps=2",
        "algo.eval_adaptation_steps=1",
        "algo.multi_step_loss_steps=4",
        "trainer.outer_steps=5",
    ],
    "loop": [*harness.QUICK, "device.plan=loop"],
    "pixel_nn": ["algo=pixel_nn"],
}


@pytest.mark.parametrize(
    "place",
    [pytest.param(place, marks=pytest.mark.fault(2 if place.startswith("save") else 1)) for place in PLACES],
)
def test_run_killed_here_resumes_to_the_same_bits(
    place: str, cfg: dict[str, Any], reference: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    assert finish(train(cfg, run_dir), fault=place) == KILLED, f"{place} was never reached"
    assert harness.status(run_dir)["status"] == "running" if place != "start:config" else True
    assert finish(resume(run_dir)) == 0
    assert_same_end(run_dir, reference)
    assert not [
        path
        for path in run_dir.rglob("*")
        if path.suffix in (".tmp", ".old") or path.name.startswith(".preflight")
    ]


@pytest.mark.fault(1)
@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_of_state_survives_two_kills(name: str, cache: Path, tmp_path: Path) -> None:
    cfg = harness.configuration(cache, *VARIANTS[name])
    assert finish(train(cfg, tmp_path / "whole")) == 0
    run_dir = tmp_path / "run"
    first, second = (
        ("test:batch@1", "end:before_results")
        if name == "pixel_nn"
        else ("step:end@4", "step:before_update@2")
    )
    assert finish(train(cfg, run_dir), fault=first) == KILLED
    assert finish(resume(run_dir), fault=second) == KILLED
    assert finish(resume(run_dir)) == 0
    assert_same_end(run_dir, tmp_path / "whole")


def test_equal_runs_are_equal(cfg: dict[str, Any], reference: Path, tmp_path: Path) -> None:
    assert finish(train(cfg, tmp_path / "run")) == 0
    assert_same_end(tmp_path / "run", reference)


def test_the_comparison_sees_another_seed(cache: Path, reference: Path, tmp_path: Path) -> None:
    assert finish(train(harness.configuration(cache, *harness.QUICK, "seed=1"), tmp_path / "run")) == 0
    with pytest.raises(AssertionError):
        assert_same_end(tmp_path / "run", reference)


def test_finished_run_is_left_as_it_is(reference: Path) -> None:
    before = {
        path: path.stat().st_mtime_ns
        for path in reference.rglob("*")
        if path.is_file() and path.name != ".lock"
    }
    assert finish(resume(reference)) == 0
    assert before == {
        path: path.stat().st_mtime_ns
        for path in reference.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.fault(1)
def test_run_killed_before_its_first_checkpoint_says_that_it_begins_again(
    cfg: dict[str, Any], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    assert finish(train(cfg, run_dir), fault="start:built") == KILLED
    assert finish(resume(run_dir)) == 0
    assert (
        "stopped before its first checkpoint; starting again at step 0" in (run_dir / "train.log").read_text()
    )


@pytest.mark.fault(20)
def test_longer_training_continues_where_the_shorter_one_ended(
    cache: Path, cfg: dict[str, Any], reference: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    assert finish(train(harness.configuration(cache, *harness.QUICK, "trainer.outer_steps=4"), run_dir)) == 0
    assert finish(resume(run_dir, "trainer.outer_steps=6")) == 0
    assert (run_dir / "results.json").read_bytes() == (reference / "results.json").read_bytes()


@pytest.mark.fault(20)
@pytest.mark.parametrize(
    "override", ["algo.distance=cosine", "seed=3", "data.way=2", "trainer.meta_batch_size=4"]
)
def test_resume_with_another_method_is_refused_with_a_diff(
    override: str, reference: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert finish(resume(reference, override)) == 2
    key, _, value = override.partition("=")
    line = next(line for line in capfd.readouterr().err.splitlines() if key in line)
    assert line.endswith(f"-> {value}")


@pytest.mark.fault(20)
def test_resume_at_fewer_steps_is_refused(
    reference: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path, cfg: dict[str, Any]
) -> None:
    run_dir = tmp_path / "run"
    assert finish(train(cfg, run_dir), fault="test:batch@1") == KILLED
    assert finish(resume(run_dir, "trainer.outer_steps=3")) == 2
    assert "trainer.outer_steps=3 but the run is at step 6" in capfd.readouterr().err
