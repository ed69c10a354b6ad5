"""What resume and eval say and leave when they end otherwise than hoped for."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from metalearn.config.compose import compose
from metalearn.engine.evaluate import EvalSpec
from metalearn.engine.strategy import SingleProcess
from metalearn.errors import CheckpointError, ConfigError, MetalearnError
from metalearn.run import resume as resuming
from metalearn.run.evaluate import evaluate_run
from metalearn.rundir.checkpoint_files import METADATA, TRAINING_FILE
from metalearn.rundir.checkpoints import CheckpointStore
from metalearn.rundir.log import RunLog
from tests.reliability import harness
from tests.reliability.harness import KILLED, assert_same_end, finish, resume, struck, train
from tests.reliability.test_refusals import contents


@pytest.fixture
def copied(reference: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(reference, tmp_path / "run"))


def stopped_evaluation(strategy: SingleProcess, spec: EvalSpec, on_batch: Callable[[int], None]) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    on_batch(1)


def test_stopped_evaluation_says_so_and_leaves_nothing(
    copied: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="metalearn")
    before = contents(copied)
    monkeypatch.setattr(SingleProcess, "evaluate", stopped_evaluation)
    assert evaluate_run(copied, ["data.way=2"]) == 143
    assert "stopped by SIGTERM; nothing was written" in caplog.text
    assert contents(copied) == before
    assert not (copied / "evals").exists()


def test_stopped_evaluation_leaves_an_earlier_one_of_the_same_protocol(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert evaluate_run(copied, []) == 0
    before = contents(copied)
    monkeypatch.setattr(SingleProcess, "evaluate", stopped_evaluation)
    assert evaluate_run(copied, []) == 143
    assert contents(copied) == before


def test_evaluation_of_a_corrupt_best_names_the_others(copied: Path) -> None:
    store = CheckpointStore(copied)
    best, last = store.pointed("best"), store.pointed("last")
    assert best is not None and last is not None
    (store.path(best) / METADATA).unlink()
    valid = [store.path(step).name for step in store.steps() if step != best]
    names = ", ".join(["last"] * (last != best) + valid)
    with pytest.raises(
        CheckpointError,
        match=rf"step-{best:06d} is not valid: .*choose another with eval.checkpoint=.* of: {names}$",
    ):
        evaluate_run(copied, [])


def test_evaluation_of_a_corrupt_best_offers_those_that_only_a_resumed_run_could_not_use(
    copied: Path,
) -> None:
    store = CheckpointStore(copied)
    best = store.pointed("best")
    assert best is not None
    (store.path(best) / METADATA).unlink()
    others = [store.path(step) for step in store.steps() if step != best]
    for path in others:
        (path / TRAINING_FILE).unlink()
    with pytest.raises(CheckpointError, match=rf"eval.checkpoint=NAME of: .*{others[0].name}"):
        evaluate_run(copied, [])
    assert evaluate_run(copied, [f"eval.checkpoint={others[0].name}"]) == 0


def test_evaluation_without_any_valid_checkpoint_offers_none(copied: Path) -> None:
    store = CheckpointStore(copied)
    for step in store.steps():
        (store.path(step) / METADATA).unlink()
    with pytest.raises(CheckpointError, match=r"no other checkpoint is valid; restore it from a backup"):
        evaluate_run(copied, [])


def test_finished_run_refuses_another_evaluation_and_names_the_verb(copied: Path) -> None:
    before = contents(copied)
    with pytest.raises(ConfigError, match=rf"is finished.*metalearn eval {copied} eval.episodes=9"):
        resuming.resume(copied, ["eval.episodes=9"])
    assert contents(copied) == before


def test_longer_run_names_the_lines_that_its_old_end_leaves(copied: Path) -> None:
    assert finish(resume(copied, "trainer.outer_steps=8")) == 0
    log = (copied / "train.log").read_text()
    assert "warning: step 6, the former end, is no multiple of trainer.log_every=4" in log
    assert "trainer.eval_every" not in log


def test_a_schedule_that_depends_on_the_length_is_named_as_it_is_chosen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = compose(["optimizer/schedule=cosine"])
    with RunLog(tmp_path) as runlog:
        resuming.reopen_end(cfg, runlog, old_end=400, step=400)
    assert caplog.messages == [
        "optimizer/schedule=cosine depends on trainer.outer_steps; a run of that length from the start would "
        "differ"
    ]


@pytest.mark.fault(21)
def test_another_torch_and_machine_are_named_when_a_run_goes_on(
    cfg: dict[str, Any], reference: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    assert finish(train(cfg, run_dir), fault="step:end@4") == KILLED
    then = json.loads((run_dir / "env.json").read_text())
    here = then["versions"]["torch"], then["hardware"]["cpu"]
    then["versions"]["torch"], then["hardware"]["cpu"], then["hardware"]["device"] = (
        "2.10.0",
        "Abacus",
        "cuda",
    )
    (run_dir / "env.json").write_text(json.dumps(then))
    assert finish(resume(run_dir)) == 0
    log = (run_dir / "train.log").read_text()
    for sentence in (
        f"torch was 2.10.0, is {here[0]}",
        f"cpu was Abacus, is {here[1]}",
        "device was cuda, is cpu",
    ):
        assert (
            f"warning: {sentence} since the run began; bits may differ from a run that was never stopped"
            in log
        )
    assert json.loads((run_dir / "env.json").read_text()) == then  # what the run began with
    assert_same_end(run_dir, reference)


@pytest.mark.fault(20)
def test_what_is_no_science_may_change(cfg: dict[str, Any], reference: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert finish(train(cfg, run_dir), fault="step:end@4") == KILLED
    assert (
        finish(
            resume(
                run_dir,
                "device.plan=loop",
                "device.chunk=1",
                "trainer.checkpoint_every=1",
                "eval.chunk=2",
            )
        )
        == 0
    )
    assert CheckpointStore(run_dir).steps()[-2:] == [5, 6]
    found, expected = harness.metrics(run_dir), harness.metrics(reference)
    assert [(line["step"], line["split"]) for line in found] == [
        (line["step"], line["split"]) for line in expected
    ]
    for line, wanted in zip(found, expected, strict=True):
        assert line["loss"] == pytest.approx(wanted["loss"], abs=1e-4)  # another plan sums in another order


def test_save_that_fails_while_stopping_is_a_failed_run(cfg: dict[str, Any], tmp_path: Path) -> None:
    def stop_on_a_full_disk() -> None:
        def refuse(*parts: Any, **options: Any) -> None:
            raise MetalearnError("cannot save: no space")

        CheckpointStore.save = refuse  # type: ignore[method-assign]
        os.kill(os.getpid(), signal.SIGTERM)

    run_dir = tmp_path / "run"
    assert finish(struck(train(cfg, run_dir), stop_on_a_full_disk, step=4)) == 1
    assert harness.status(run_dir)["status"] == "failed"
    assert harness.status(run_dir)["exit_code"] == 1


def test_checkpoint_that_was_not_kept_is_refused_with_a_way_out(copied: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"eval.checkpoint=step-000001 is not there; .*; choose one of them, best or last$"
    ):
        evaluate_run(copied, ["eval.checkpoint=step-000001"])


def test_evaluation_never_meets_what_the_run_was_trained_on(copied: Path) -> None:
    before = contents(copied)
    with pytest.raises(
        ConfigError,
        match=r"split 'test' of data=glyphs holds \d that this run was trained on, by content or by name: "
        r"seed=0/",
    ):
        evaluate_run(copied, ["data.partition_seed=1"])
    assert contents(copied) == before


def test_evaluation_of_data_that_changed_since_training_goes_by_who_is_in_it(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metalearn.data.images.ImageClasses.fingerprint", lambda source: "0" * 64)
    assert evaluate_run(copied, ["data.shot=2"]) == 0
    monkeypatch.setattr("metalearn.data.images.ImageClasses.members", lambda source, split: None)
    with pytest.raises(ConfigError, match=r"data=glyphs does not say who is in its splits"):
        evaluate_run(copied, ["data.shot=2"])
    (copied / "splits.json").unlink()
    with pytest.raises(
        ConfigError,
        match=r"there is no splits.json, and the data that the run was trained on is not here .*; "
        "restore one",
    ):
        evaluate_run(copied, ["data.shot=2"])


def test_predictions_stand_beside_the_rows_of_the_tasks_if_they_are_asked_for(copied: Path) -> None:
    assert evaluate_run(copied, ["eval.predictions=true"]) == 0
    [folder] = (copied / "evals").iterdir()
    rows = load_file(folder / "predictions_test.safetensors")
    assert (folder / "eval_test.csv").read_bytes() == (copied / "eval_test.csv").read_bytes()
    correct = (rows["predicted"] == rows["label"]).double()
    mean = json.loads((copied / "results.json").read_text())["metrics"]["accuracy"]["mean"]
    assert correct.mean().item() == pytest.approx(mean)
    assert evaluate_run(copied, ["eval.predictions=false"]) == 0
    other = copied / "evals" / "test_eval.predictions=false"
    assert (other / "results.json").exists()
    assert not (other / "predictions_test.safetensors").exists()
