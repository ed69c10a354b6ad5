"""Which results are one method, and what a method is called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from metalearn.errors import ConfigError, DataError
from metalearn.report.methods import methods_of
from metalearn.rundir.registry import judgements
from tests.report.judged import PROTOCOL, names_of, write_evaluation, write_result

FLAT = {"accuracy": [0.2, 0.4, 0.6]}


def found(tmp_path: Path) -> tuple[dict[str, list[int]], dict[str, list[str]]]:
    methods, differ = methods_of(judgements([str(tmp_path)]))
    return {method.label: method.seeds for method in methods}, differ


def test_runs_that_differ_by_their_seed_and_by_places_are_one_method(tmp_path: Path) -> None:
    for seed in (1, 0):
        write_result(tmp_path / f"run{seed}", FLAT, seed=seed, sweep=f"sweep {seed}")
    write_result(tmp_path / "other", FLAT, order=1)
    assert found(tmp_path) == (
        {"algo.order=1": [0], "algo.order=2": [0, 1]},
        {"algo.order": ["1", "2"]},
    )


def test_a_place_is_what_a_run_says_it_is(tmp_path: Path) -> None:
    """image_folder's root is one, and so is a key of a class of one's own."""
    for seed in (0, 1):
        run = write_result(tmp_path / f"run{seed}", FLAT, seed=seed, data={"lines": f"/here/{seed}"})
        (run / "env.json").write_text(json.dumps({"locations": {"data.lines": "/x"}, "data_sha256": "ab"}))
    methods, _ = found(tmp_path)
    assert [*methods.values()] == [[0, 1]]


@pytest.mark.parametrize(
    "config",
    [
        {"trainer": {"outer_steps": 200}},
        {"device": {"precision": "bfloat16"}},
        {"eval": {"val_episodes": 7}},
        {"optimizer": {"lr": 0.1}},
    ],
)
def test_what_numbers_follow_from_makes_another_method(tmp_path: Path, config: dict[str, Any]) -> None:
    write_result(tmp_path / "one", FLAT)
    write_result(tmp_path / "two", FLAT, seed=1, **config)
    methods, _ = found(tmp_path)
    [(group, keys)] = config.items()
    [(key, value)] = keys.items()
    assert [label.replace("–", "") for label in methods][1] == f"{group}.{key}={value}"


def test_other_content_at_the_same_place_makes_another_method(tmp_path: Path) -> None:
    write_result(tmp_path / "one", FLAT)
    run = write_result(tmp_path / "two", FLAT, seed=1)
    (run / "env.json").write_text(json.dumps({"data_sha256": "other"}))
    assert found(tmp_path)[0] == {"data_sha256=ab": [0], "data_sha256=other": [1]}


def test_a_choice_speaks_for_its_keys(tmp_path: Path) -> None:
    write_result(tmp_path / "one", FLAT)
    write_result(
        tmp_path / "two", FLAT, choices={"algo": "protonet", "data": "glyphs"}, algo={"distance": "cosine"}
    )
    methods, differ = found(tmp_path)
    assert [*methods] == ["algo=maml", "algo=protonet"]
    assert differ == {"algo": ["maml", "protonet"]}


def test_labels_are_as_short_as_they_can_be(tmp_path: Path) -> None:
    write_result(tmp_path / "a", FLAT)
    write_result(tmp_path / "b", FLAT, order=1, trainer={"outer_steps": 5})
    write_result(tmp_path / "c", FLAT, order=1, trainer={"outer_steps": 50})
    methods, differ = found(tmp_path)
    assert [*methods] == [
        "algo.order=2 trainer.outer_steps=100",
        "algo.order=1 trainer.outer_steps=5",
        "algo.order=1 trainer.outer_steps=50",
    ]
    assert [*differ] == ["algo.order", "trainer.outer_steps"]


def test_methods_are_called_after_their_folders_where_differences_are_long(tmp_path: Path) -> None:
    for name, value in (("first", "a" * 60), ("second", "b" * 60)):
        write_result(tmp_path / name, FLAT, model={"init": value})
    assert [*found(tmp_path)[0]] == ["first", "second"]


def test_an_evaluation_under_another_protocol_is_another_method(tmp_path: Path) -> None:
    run = write_result(tmp_path / "run", FLAT)
    protocol = {**PROTOCOL, "checkpoint": "best", "order": 2}
    write_evaluation(run / "evals" / "other", FLAT, names_of(3), 0, {**protocol, "checkpoint": "last"})
    methods, _ = methods_of(judgements([str(run), str(run / "evals" / "other")]))
    assert [method.label for method in methods] == ["checkpoint=best", "checkpoint=last"]
    write_evaluation(run / "evals" / "again", FLAT, names_of(3), 0, {**protocol, "eval_seed": 7})
    with pytest.raises(ConfigError, match=r"run and .*again are one method with seed=0; a model counts once"):
        methods_of(judgements([str(run), str(run / "evals" / "again")]))


def test_a_damaged_configuration_is_named(tmp_path: Path) -> None:
    run = write_result(tmp_path / "run", FLAT)
    (run / "config.yaml").write_text("- a list")
    with pytest.raises(DataError, match=r"config.yaml is not the configuration of a run; restore it"):
        methods_of(judgements([str(run)]))
