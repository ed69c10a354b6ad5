"""A run knows the names of what it was made of, and nothing but names follows from that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from metalearn.cli import main as cli
from metalearn.cli.ls import runs
from metalearn.config.compatibility import refuse_new_science, science
from metalearn.config.compose import compose, reopen
from metalearn.config.saved import read_saved
from metalearn.errors import ConfigError
from metalearn.run.folder import new_run_dir
from metalearn.sweep.jobs import identity
from tests.sweep.sweeping import Trainings, finish, sweep

LAST_LAYER = "defaults: [maml, _self_]\nadapts: [head]\n"


@pytest.fixture
def own(tmp_path: Path) -> str:
    """A folder with a relative of MAML that is a YAML alone."""
    (tmp_path / "conf" / "algo").mkdir(parents=True)
    (tmp_path / "conf" / "algo" / "last_layer.yaml").write_text(LAST_LAYER)
    return str(tmp_path / "conf")


def test_a_relative_that_is_a_yaml_alone_keeps_its_own_name(own: str) -> None:
    cfg = compose(["algo=last_layer", "data=omniglot", "optimizer=sgd"], own)
    assert cfg["algo"]["_target_"] == compose(["algo=maml"])["algo"]["_target_"]
    assert next(iter(cfg)) == "choices"
    assert cfg["choices"] == {
        "algo": "last_layer",
        "data": "omniglot",
        "model": "conv4",
        "optimizer": "sgd",
        "optimizer/schedule": "constant",
        "optimizer/clip": "none",
        "device": "auto",
        "logger": "none",
        "experiment": None,
    }
    assert new_run_dir(cfg).parent == Path("outputs/last_layer_omniglot")


def test_a_recipe_is_named_with_what_it_chose() -> None:
    names = compose(["experiment=omniglot_protonet", "data=glyphs", "data.partition=random"])["choices"]
    assert (names["experiment"], names["algo"], names["data"]) == ("omniglot_protonet", "protonet", "glyphs")


@pytest.mark.parametrize("word", ["choices.algo=x", "choices=x", "choices={algo: x}"])
def test_nobody_can_set_a_name(word: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="choices.* is not a key"):
        compose([word])
    with pytest.raises(ConfigError, match="choices.* is not a key"):
        reopen(compose([]), [word])


def test_what_is_chosen_anew_is_named_anew() -> None:
    again = reopen(compose(["device=auto"]), ["device=cpu"])
    assert again["choices"]["device"] == "cpu"
    saved = compose(["data=glyphs"])
    judged = reopen(saved, ["data=omniglot"], sizes=saved["data"])
    assert judged["choices"]["data"] == "omniglot", "an evaluation on other data is of these"


def without_choices(cfg: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in cfg.items() if key != "choices"}


def test_an_older_run_has_the_names_that_its_classes_suggest_and_is_no_other_run(tmp_path: Path) -> None:
    cfg = compose(["algo=reptile", "data=sinusoid", "optimizer=adamw", "device=cpu"])
    finish(without_choices(cfg), [], tmp_path / "run")
    saved = read_saved(tmp_path / "run")
    assert saved["choices"] == cfg["choices"]
    refuse_new_science(science(without_choices(cfg)), science(cfg))
    refuse_new_science(science(cfg), science(without_choices(cfg)))


def test_jobs_of_an_older_sweep_are_not_run_again(tmp_path: Path, trainings: Any) -> None:
    trainings()
    assert sweep(tmp_path, "seed=0,1") == 0
    for path in tmp_path.glob("*/config.yaml"):
        path.write_text(yaml.safe_dump(without_choices(yaml.safe_load(path.read_text()))))
    again: Trainings = trainings()
    assert sweep(tmp_path, "seed=0,1") == 0
    assert (again.trained, again.resumed) == ([], [])
    cfg = compose([])
    assert identity(cfg) == identity(without_choices(cfg))


@pytest.mark.parametrize(
    "damage", ["x", ["x"], {"algo": ["x"]}, {"algos": "x"}, {"algo": {"_target_": "os.system"}}]
)
def test_damaged_names_are_named(damage: Any, tmp_path: Path) -> None:
    finish({**compose([]), "choices": damage}, [], tmp_path / "run")
    with pytest.raises(ConfigError, match="config.yaml is damaged: choices"):
        read_saved(tmp_path / "run")
    assert str(tmp_path / "run") in runs(tmp_path)


def test_results_lists_and_sweeps_say_the_names(
    tmp_path: Path, own: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "algo=last_layer",
        "data=sinusoid",
        "model.hidden=[8]",
        "trainer.outer_steps=1",
        "trainer.meta_batch_size=2",
        "device=cpu",
    ]
    words += ["eval.val_episodes=2", "eval.episodes=2", "--config-dir", own]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("metalearn.run.session.draw_plots", lambda *parts: None)
        assert cli.main(["train", *words, f"run_dir={tmp_path}/run"]) == 0
    shown = capsys.readouterr().out
    assert "last_layer on sinusoid · test tasks" in shown
    assert "published:" not in shown
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [results[name] for name in ("algo", "model", "data", "experiment")] == [
        "last_layer",
        "mlp",
        "sinusoid",
        None,
    ]
    [row] = [line.split() for line in runs(tmp_path / "run").splitlines() if str(tmp_path) in line]
    assert row[1:5] == ["last_layer", "sinusoid", "mlp", "finished"]
