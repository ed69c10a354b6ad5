"""What the jobs of a sweep are: all combinations, each checked before the first begins, and known by its
configuration.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from metalearn.cli import main as cli
from metalearn.config.compose import compose
from metalearn.config.loader import packaged_options
from metalearn.errors import DataError
from metalearn.run import train
from metalearn.sweep import jobs as sweep_jobs
from tests.sweep.sweeping import Trainings, states, sweep


def test_a_sweep_expands_to_its_combinations_in_order() -> None:
    jobs, swept = sweep_jobs.expand(["algo=maml,protonet", "trainer.outer_steps=3", "seed=range(0,2)"], None)
    assert swept == {"algo", "seed"}
    assert jobs == [
        ["algo=maml", "trainer.outer_steps=3", "seed=0"],
        ["algo=maml", "trainer.outer_steps=3", "seed=1"],
        ["algo=protonet", "trainer.outer_steps=3", "seed=0"],
        ["algo=protonet", "trainer.outer_steps=3", "seed=1"],
    ]


def test_every_combination_is_checked_before_the_first_job(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "train", lambda *_, **__: pytest.fail("a job ran"))
    code = cli.main(
        ["train", "-m", "algo=maml,protnet", "seed=0,-1", "data.wy=3", f"run_dir={tmp_path}/sweep"]
    )
    assert code == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: data.wy=3: data.wy is not a key; did you mean data.way?",
        "error: seed=-1 must be at least 0 (jobs 2, 4 of 4)",
        "error: algo=protnet does not exist; did you mean algo=protonet? "
        f"choices: {', '.join(packaged_options('algo'))} (jobs 3, 4 of 4)",
    ]
    assert not (tmp_path / "sweep").exists()


def test_what_the_data_cannot_give_is_found_before_the_first_job(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "train", lambda *_, **__: pytest.fail("a job ran"))
    assert cli.main(["train", "-m", "data.way=5,500", f"run_dir={tmp_path}/sweep"]) == 2
    assert "data.way=500" in (complaint := capsys.readouterr().err)
    assert "(job 2 of 2)" in complaint
    assert not (tmp_path / "sweep").exists()


def test_a_job_without_data_is_named_before_any_job_runs(tmp_path: Path) -> None:
    words = [["data=sinusoid"], ["data=image_folder", f"data.root={tmp_path}/nowhere"]]
    jobs = [sweep_jobs.Job(n, job, job, compose(job), tmp_path / str(n)) for n, job in enumerate(words, 4)]
    with pytest.raises(DataError, match=r"nowhere.* \(job 5 of 7\)$"):
        sweep_jobs.machine_check(jobs, 7)


def test_a_job_is_known_by_its_configuration_not_by_the_words(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, trainings: Callable[..., Trainings]
) -> None:
    trainings()
    assert sweep(tmp_path, "seed=0,1") == 0
    made = trainings()
    assert sweep(tmp_path, "algo=maml,reptile", "seed=1", "trainer.patience=null") == 0
    assert made.trained == [1]  # reptile; maml with seed=1 was there
    assert sorted(states(tmp_path)) == ["reptile", "seed-0", "seed-1"]
    assert f"1 jobs of other commands are in {tmp_path} too; they stay as they are" in capsys.readouterr().out


def test_everything_that_numbers_follow_from_makes_another_job() -> None:
    base = compose(["seed=1"])
    same = [
        "run_dir=elsewhere",
        "data.cache_dir=elsewhere",
        "trainer.dry_run=true",
        "trusted=[mine]",
        "experiment=null",
        "logger=tensorboard",
    ]
    other = [
        "seed=2",
        "trainer.outer_steps=3",
        "eval.episodes=7",
        "device.threads=1",
        "device.plan=loop",
        "data.seed=5",
        "optimizer.lr=1",
    ]
    assert {sweep_jobs.identity(compose(["seed=1", word])) for word in same} == {sweep_jobs.identity(base)}
    assert len(
        {sweep_jobs.identity(compose(["seed=1", word])) for word in other} - {sweep_jobs.identity(base)}
    ) == len(other)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["algo=maml", "seed=0"], "maml_seed-0"),
        (["data.way=5", "algo.inner_lr=0.01"], "way-5_inner_lr-0.01"),
        (["seed=3", "data.seed=4"], "seed-3_data.seed-4"),
        (["optimizer/schedule=cosine"], "cosine"),
        (["data.rotations=[train,val]", "seed=-1"], "rotations-train-val_seed--1"),
        (["data.root='/my data/../x y'"], "root-my-data-..-x-y"),
        (["data.root=/" + 90 * "long"], "root-" + 13 * "long" + "lon"),
        ([], "job"),
    ],
)
def test_the_name_of_a_job_is_readable_and_safe_as_a_file_name(words: list[str], name: str) -> None:
    assert sweep_jobs.readable(words) == name


def test_a_single_job_is_named_after_all_of_its_words(
    tmp_path: Path, trainings: Callable[..., Trainings]
) -> None:
    trainings()
    assert sweep(tmp_path, "seed=7") == 0
    assert list(states(tmp_path)) == ["sinusoid_seed-7"]


def test_combinations_with_one_configuration_are_one_job(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, trainings: Callable[..., Trainings]
) -> None:
    made = trainings()
    assert sweep(tmp_path, "algo.inner_lr=0.1,1e-1,0.2") == 0
    assert len(made.trained) == 2
    assert (
        "1 combinations have the configuration of another one, and are one job with it"
        in capsys.readouterr().out
    )
