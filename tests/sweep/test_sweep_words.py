"""The words and the folder of a sweep: what it may be asked, what it is called and where it may live."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from metalearn.cli import main as cli
from metalearn.config.compose import compose
from metalearn.config.loader import Library
from metalearn.config.overrides import judge_choice
from metalearn.errors import ConfigError
from metalearn.run import train
from metalearn.sweep.multirun import take_folder
from tests.sweep.sweeping import Trainings, finish, sweep


def test_a_sweep_has_a_name_a_folder_or_a_new_folder(tmp_path: Path) -> None:
    assert take_folder(["seed=0,1", "sweep=first"], None) == (["seed=0,1"], Path("outputs/sweeps/first"))
    assert take_folder(["sweep=5"], None)[1] == Path("outputs/sweeps/5")
    assert take_folder(["run_dir=here", "sweep=null"], None) == ([], Path("here"))
    assert take_folder(["hydra.sweep.dir='my sweep'"], None) == ([], Path("my sweep"))
    assert take_folder([], None)[1] != take_folder([], None)[1]
    assert take_folder([], None)[1].parent == Path("outputs/sweeps")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (
            ["sweep=a", "run_dir=b"],
            "sweep=a and run_dir=b both name the folder of the sweep; give one of them",
        ),
        (["sweep=a,b"], "sweep=a,b: a sweep has one folder, with a folder per job in it; give one sweep"),
        (
            ["run_dir=a,b"],
            "run_dir=a,b: a sweep has one folder, with a folder per job in it; give one run_dir",
        ),
        (
            ["sweep=../up"],
            "sweep=../up is not a name of letters, digits and . _ + -; for a folder elsewhere write "
            "run_dir=FOLDER",
        ),
        (
            ["sweep=.."],
            "sweep=.. is not a name of letters, digits and . _ + -; for a folder elsewhere write "
            "run_dir=FOLDER",
        ),
        (
            ["+sweep=a"],
            "+sweep=a: keys cannot be added, the YAML lists all of them; to set one, write sweep=a",
        ),
        (
            ["hydra.sweep.subdir=x"],
            "hydra.sweep.subdir=x: metalearn itself expands a sweep and names the folders of its jobs; leave "
            "it out",
        ),
        (
            ["hydra.sweeper.params={}"],
            "hydra.sweeper.params={}: metalearn itself expands a sweep and names the folders of its jobs; "
            "leave it out",
        ),
        (
            ["hydra/sweeper=basic"],
            "hydra/sweeper=basic: metalearn itself expands a sweep and names the folders of its jobs; leave "
            "it out",
        ),
        (
            ["--cfg", "job"],
            "--cfg prints one configuration and --multirun asks for several; leave one of them out",
        ),
    ],
)
def test_what_a_sweep_cannot_be_asked_is_refused(
    words: list[str],
    complaint: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "train", lambda *_, **__: pytest.fail("a job ran"))
    assert cli.main(["train", "-m", "seed=0,1", *words]) == 2
    assert capsys.readouterr().err == f"error: {complaint}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["sweep=a"], "sweep=a names a sweep of several runs; add -m to start one"),
        (
            ["--retry-failed"],
            "--retry-failed is for sweeps; add -m, or continue one run with: metalearn resume RUN_DIR",
        ),
        (["swep=a"], "swep=a: swep is not a key; did you mean sweep?"),
    ],
)
def test_a_single_run_is_no_sweep(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", *words]) == 2
    assert capsys.readouterr().err == f"error: {complaint}\n"


def test_the_name_of_a_sweep_stands_in_no_yaml_and_no_run(tmp_path: Path) -> None:
    assert "sweep" not in compose([])
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nsweep: mine\n")
    with pytest.raises(
        ConfigError, match="^sweep=mine stands in a YAML; it counts only from the command line$"
    ):
        compose(["experiment=mine"], str(tmp_path))


def test_the_folder_of_something_else_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, trainings: Callable[..., Trainings]
) -> None:
    made = trainings()
    (tmp_path / "thesis.tex").touch()
    assert sweep(tmp_path, "seed=0,1") == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path} is not empty and no sweep (it holds thesis.tex); "
        "a sweep begins in a folder of its own, choose another sweep=NAME or run_dir=FOLDER\n"
    )
    finish({}, [], tmp_path / "run")
    assert sweep(tmp_path / "run", "seed=0,1") == 2
    assert f"{tmp_path}/run holds a run; a sweep begins in a folder of its own" in capsys.readouterr().err
    assert made.trained == []


def test_rehearsals_leave_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "train", lambda cfg, overrides, run_dir, **more: 0)
    assert sweep(tmp_path / "sweep", "seed=0,1", "trainer.dry_run=true") == 0
    assert not (tmp_path / "sweep").exists()


def test_joblib_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Library, "options", lambda self, group: ["basic"])
    [override] = Library().parse(["hydra/launcher=joblib"])
    assert judge_choice(override, Library()) == (
        "hydra/launcher=joblib needs a plugin that is not installed; install it with: pip install "
        "'metalearn-runner[joblib]'",
        None,
    )
