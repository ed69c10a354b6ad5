"""How metrics are read, and which of them chooses the best checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn.core import MetricFormat, Task
from metalearn.engine.executor import TaskPlan
from metalearn.engine.formats import Monitor, formats, require_measured
from metalearn.engine.preflight import rehearse
from metalearn.errors import ConfigError
from metalearn.objectives import Classification, Rating, Regression
from metalearn.rundir.checkpoints import CheckpointStore
from metalearn.rundir.log import RunLog
from tests.engine.test_trainer import SETTINGS, trainer
from tests.engine.toy import ToyAlgorithm, ToySource, eval_spec


class Spread(ToyAlgorithm):
    """Reports its prior, of which more is called better here, and something of which nothing is said."""

    formats = {"spread": MetricFormat(higher_is_better=True, unit="m")}

    def report(self, adapted: Any, task: Task) -> dict[str, torch.Tensor]:
        return {"spread": self.prior.sum() * 10, "undeclared": task.query.y.max()}


def test_what_is_derived_from_the_primary_metric_is_read_like_it() -> None:
    found = formats(
        Classification(),
        ToyAlgorithm(),
        ["loss", "accuracy", "accuracy_inductive", "accuracy_step_10", "ece", "other"],
    )
    accuracy = MetricFormat(higher_is_better=True, percent=True)
    assert {name: form for name, form in found.items() if form == accuracy}.keys() == {
        "accuracy",
        "accuracy_inductive",
        "accuracy_step_10",
    }
    assert found["loss"] == MetricFormat(unit="nats")
    assert found["ece"] == MetricFormat(percent=True)
    assert "other" not in found


def test_a_method_declares_the_formats_of_its_report() -> None:
    assert formats(Regression(), Spread(), ["spread"])["spread"].unit == "m"


@pytest.mark.parametrize("objective", [Classification(), Regression(), Rating()])
def test_our_objectives_declare_every_metric_and_the_direction_twice_alike(objective: Any) -> None:
    assert objective.formats[objective.primary].higher_is_better == objective.higher_is_better
    classes = isinstance(objective, Classification)
    prediction, y = (
        torch.zeros(3, 2 if classes else 1),
        torch.zeros(3, dtype=torch.int64) if classes else torch.zeros(3, 1),
    )
    assert (
        objective.metrics(prediction, y, torch.ones(3, dtype=torch.bool)).keys() <= objective.formats.keys()
    )


def test_percent_has_no_other_unit() -> None:
    with pytest.raises(ValueError, match="unit='m'; leave one of them out"):
        MetricFormat(percent=True, unit="m")


@pytest.mark.parametrize(
    ("wanted", "objective", "expected"),
    [
        (None, Classification(), ("accuracy", True)),
        ("accuracy_inductive", Classification(), ("accuracy_inductive", True)),
        ("loss", Classification(), ("loss", False)),
        ("ece", Classification(), ("ece", False)),
        (None, Rating(), ("mae", False)),
        ("spread", Regression(), ("spread", True)),
    ],
)
def test_the_direction_of_what_is_monitored_is_its_own(
    wanted: str | None, objective: Any, expected: tuple[str, bool]
) -> None:
    assert Monitor.of(wanted, objective, Spread()) == expected


def test_a_metric_that_says_nothing_of_its_direction_cannot_be_monitored() -> None:
    with pytest.raises(
        ConfigError,
        match="eval.monitor=undeclared: nothing says whether more of it is better; .* Regression or Spread",
    ):
        Monitor.of("undeclared", Regression(), Spread())


def test_an_objective_of_today_needs_no_formats() -> None:
    class Older:
        primary, higher_is_better = "score", True

    assert Monitor.of(None, Older(), ToyAlgorithm()) == ("score", True)  # type: ignore[arg-type]
    assert Monitor.of("loss", Older(), ToyAlgorithm()) == ("loss", False)  # type: ignore[arg-type]
    assert set(formats(Older(), ToyAlgorithm(), ["score", "loss"])) == {"loss"}  # type: ignore[arg-type]


def test_a_metric_that_is_not_measured_is_named_with_the_closest_match() -> None:
    require_measured("ece", ["accuracy", "ece"])
    with pytest.raises(
        ConfigError,
        match=r"^eval.monitor=acuracy is no metric of validation; did you mean accuracy\? metrics: accuracy, "
        r"ece$",
    ):
        require_measured("acuracy", ["accuracy", "ece"])


def test_the_rehearsal_refuses_a_metric_that_validation_lacks(tmp_path: Path) -> None:
    spec = eval_spec("test", seed=0, episodes=2, val_episodes=2, monitor="mse_inductiv")
    with pytest.raises(ConfigError, match="did you mean mse_inductive"):
        rehearse(
            ToyAlgorithm(),
            lambda actor: None,
            ToySource(),
            TaskPlan("vmap"),
            SETTINGS,
            spec,
            tmp_path,
        )


def test_the_monitored_metric_chooses_the_best_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The prior goes past the value at which the error is smallest."""
    caplog.set_level("INFO", "metalearn")
    best = {}
    for monitor in (None, "spread"):
        run_dir = tmp_path / str(monitor)
        with RunLog(run_dir) as log:
            actor = trainer(log, ToySource(), Spread(), monitor=monitor, eval_every=1, outer_steps=4, lr=1.0)
            actor.train()
        best[monitor] = CheckpointStore(run_dir).pointed("best")
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        values = {
            line["step"]: line["spread"] if monitor else -line["mse"]
            for line in lines
            if line["split"] == "val"
        }
        assert best[monitor] == max(values, key=lambda step: values[step])
    assert best[None] != best["spread"]
    assert "step 4/4  val spread " in caplog.text


def test_patience_looks_at_the_monitored_metric(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        actor = trainer(
            log, ToySource(), Spread(), monitor="spread", patience=2, eval_every=1, outer_steps=100, lr=3.0
        )
        actor.train()
    best = CheckpointStore(tmp_path).pointed("best")
    assert best is not None
    assert actor.step == best + 2
