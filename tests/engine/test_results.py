from __future__ import annotations

from pathlib import Path

import torch

from metalearn.engine.evaluate import Evaluation
from metalearn.engine.results import protocol_name, write_evaluation
from metalearn.rundir.log import RunLog
from tests.engine.toy import ToySource, eval_spec


def test_plain_protocols_are_named_in_words() -> None:
    assert protocol_name("test", ["data.way=20", "eval.split=test"]) == "test_data.way=20"
    assert protocol_name("val", []) == "val"


def test_protocols_whose_names_were_cut_have_folders_of_their_own() -> None:
    long = [f"data.key_{number}={number}" for number in range(20)]
    names = {protocol_name("test", [*long, f"zeta={value}"]) for value in (1, 2)}
    assert len(names) == 2
    assert all(len(name) <= 120 for name in names)


def test_protocols_whose_odd_characters_were_replaced_have_folders_of_their_own() -> None:
    assert protocol_name("test", ["data.root=/a/b"]) != protocol_name("test", ["data.root=/a:b"])
    assert protocol_name("test", ["data.root=/a/b"]).startswith("test_data.root=-a-b-")


def test_predictions_of_an_earlier_evaluation_do_not_stay_beside_another(tmp_path: Path) -> None:
    columns, summary = (
        {"task_id": [0, 1], "mse": [1.0, 2.0]},
        {"mse": {"mean": 1.5, "ci95": 1.0, "std": 0.7}},
    )
    rows = {"prediction": torch.zeros(2, 3, 1), "y": torch.zeros(2, 3, 1), "mask": torch.ones(2, 3).bool()}
    path = tmp_path / "predictions_test.safetensors"
    spec = eval_spec("test", seed=5, episodes=2)
    with RunLog(tmp_path) as log:
        write_evaluation(log, spec, ToySource(), Evaluation(columns, summary, rows))
        assert path.exists()
        write_evaluation(log, spec, ToySource(), Evaluation(columns, summary))
    assert not path.exists()
