"""A key that has another name and other words now, in a run of then: `data.rotated_twins`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from metalearn.config.compatibility import refuse_new_science, science
from metalearn.config.compose import compose
from metalearn.config.saved import read_saved
from metalearn.errors import ConfigError
from metalearn.sweep.jobs import identity

WORDS = {True: "classes", False: "tasks"}


def of_then(twins: bool) -> dict[str, Any]:
    cfg = compose(["data=glyphs", "data.rotations=[train]"])
    data = {key: value for key, value in cfg["data"].items() if key not in ("rotations_as", "about")}
    return {**cfg, "data": {**data, "rotated_twins": twins}}


def of_today(twins: bool) -> dict[str, Any]:
    return compose(["data=glyphs", "data.rotations=[train]", f"data.rotations_as={WORDS[twins]}"])


@pytest.mark.parametrize("twins", [True, False])
def test_a_saved_run_means_what_it_meant(twins: bool, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(of_then(twins)))
    data = read_saved(tmp_path)["data"]
    assert data["rotations_as"] == WORDS[twins]
    assert "rotated_twins" not in data


@pytest.mark.parametrize("twins", [True, False])
def test_a_checkpoint_of_then_goes_on_as_what_it_was(twins: bool) -> None:
    then = science(of_then(twins))
    refuse_new_science(then, science(of_today(twins)))
    with pytest.raises(ConfigError, match=f"data.rotations_as: {WORDS[twins]} -> {WORDS[not twins]}"):
        refuse_new_science(then, science(of_today(not twins)))


@pytest.mark.parametrize("twins", [True, False])
def test_a_job_of_a_sweep_is_the_one_that_it_was(twins: bool) -> None:
    then = of_then(twins)
    if twins:  # what was done before there was the key is no part of a job's name
        del then["data"]["rotated_twins"]
    assert identity(of_today(twins)) == identity(then)


@pytest.mark.parametrize("twins", [True, False])
def test_the_old_word_is_answered_with_the_new_one(twins: bool) -> None:
    word, now = f"data.rotated_twins={str(twins).lower()}", f"data.rotations_as={WORDS[twins]}"
    with pytest.raises(
        ConfigError, match=f"^{word}: data.rotated_twins is now data.rotations_as; write {now}$"
    ):
        compose([word])


def test_runs_of_maml_from_before_its_inner_optimizer_are_plain_descents(tmp_path: Path) -> None:
    cfg = compose(["algo=maml"])
    newer = ("warmup_steps", "inner_loss", "inner_optimizer")
    then = {**cfg, "algo": {key: value for key, value in cfg["algo"].items() if key not in newer}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(then))
    found = read_saved(tmp_path)["algo"]
    assert {key: found[key] for key in newer} == {key: cfg["algo"][key] for key in newer}
    refuse_new_science(science(then), science(cfg))
    assert identity(cfg) == identity(then)
    with pytest.raises(ConfigError, match=r"algo.inner_optimizer.name: None -> adam"):
        refuse_new_science(science(then), science(compose(["algo=maml", "algo.inner_optimizer.name=adam"])))
