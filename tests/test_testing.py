"""metalearn.testing: our models keep its contract, and each of its checks finds the fault that it is for."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.algorithms.protonet import ProtoNet
from metalearn.config.compose import compose
from metalearn.core import Algorithm, Inputs, InputSpec, Task, starting_with
from metalearn.data.glyphs import Glyphs
from metalearn.data.sinusoid import Sinusoid
from metalearn.models.conv4 import Conv4
from metalearn.models.mlp import MLP
from metalearn.models.user_item import UserItem
from metalearn.objectives import Classification, Rating, Regression
from metalearn.testing import algorithms as checks
from metalearn.testing.algorithms import Trial, check_algorithm
from metalearn.testing.checking import Check, ContractError, NotApplicable, name_of, run
from metalearn.testing.models import MODEL_CHECKS, ModelTrial, check_model
from tests.cli.conftest import answer
from tests.shipped import built

CPU = torch.device("cpu")
IMAGES, POINTS = InputSpec((1, 12, 12)), InputSpec((3,))
CODES = {"user": InputSpec((2,), 5), "item": InputSpec((3,), 7), "age": InputSpec((1,))}
MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "conv4-stride": lambda: (built(Conv4, IMAGES, channels=4), IMAGES),
    "conv4-pool": lambda: (
        built(Conv4, InputSpec((1, 16, 16)), channels=4, downsample="pool"),
        InputSpec((1, 16, 16)),
    ),
    "mlp": lambda: (built(MLP, POINTS, hidden=[5]), POINTS),
    "user_item": lambda: (built(UserItem, CODES, embedding_dim=3, decision=[4]), CODES),
}


@pytest.mark.parametrize("check", MODEL_CHECKS, ids=name_of)
@pytest.mark.parametrize("model", MODELS)
def test_our_models_keep_the_contract(model: str, check: Check) -> None:
    torch.manual_seed(0)
    try:
        assert run(check, ModelTrial(*MODELS[model]()))
    except NotApplicable as reason:
        assert str(reason).startswith("statistics are empty")
        pytest.skip(str(reason))


class Planted(MLP):
    def forward(self, x: Tensor, given: Any = None, mask: Any = None, step: int = 0) -> tuple[Tensor, Any]:
        features, _ = super().forward(x)
        return self.spoil(features, given)

    def spoil(self, features: Tensor, given: Any) -> tuple[Tensor, Any]:
        raise NotImplementedError


class Wide(Planted):
    def spoil(self, features: Tensor, given: Any) -> tuple[Tensor, Any]:
        return torch.cat([features, features], 1), ()


class Dropping(Planted):
    def spoil(self, features: Tensor, given: Any) -> tuple[Tensor, Any]:
        return F.dropout(features + 1), ()


class Deaf(Planted):
    """Normalises by the batch whatever statistics are given, and under no mask."""

    def spoil(self, features: Tensor, given: Any) -> tuple[Tensor, Any]:
        mean = features.mean(0)
        return features - mean, ((mean, mean),)


class Fused(Planted):
    """F.batch_norm with affine arguments, whose second derivative is wrong under vmap."""

    def __init__(self, *args: Any, **dials: Any) -> None:
        super().__init__(*args, **dials)
        self.scale, self.shift = nn.Parameter(torch.ones(5)), nn.Parameter(torch.zeros(5))

    def spoil(self, features: Tensor, given: Any) -> tuple[Tensor, Any]:
        return F.batch_norm(features, None, None, self.scale, self.shift, training=True), ()


@pytest.mark.parametrize(
    ("planted", "sentence"),
    [
        (Wide, r"Wide: features .*: features are \(6, 10\), but out_features=5"),
        (Dropping, "Dropping: it writes nothing .*: the same rows give features .* apart"),
        (Deaf, "Deaf: given statistics .*: with `given`, a row alone differs"),
        (Fused, r"Fused: (given|first and second)"),
    ],
)
def test_a_fault_planted_in_a_model_is_found(planted: type[Planted], sentence: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(ContractError, match=sentence):
        check_model(built(planted, POINTS, hidden=[5], init="xavier"), POINTS)


def test_a_wrong_second_order_under_vmap_is_found() -> None:
    torch.manual_seed(0)
    second_order = next(check for check in MODEL_CHECKS if "second_order" in check.__name__)
    with pytest.raises(
        ContractError, match=r"\(order 2\) is .* off under vmap; write affines as multiply-add"
    ):
        run(second_order, ModelTrial(built(Fused, POINTS, hidden=[5], init="xavier"), POINTS))


class Spoiled(ProtoNet):
    """ProtoNet over a model with batch norm, whose statistics are the query's own."""


class Careless(Spoiled):
    def inductive(self, adapted: dict[str, Any], task: Task) -> dict[str, Any]:
        return adapted


class OfAllQueries(Spoiled):
    """Statistics of the task's queries, all of them, which the queries alone in a call do not give away."""

    def inductive(self, adapted: dict[str, Any], task: Task) -> dict[str, Any]:
        return {**adapted, "statistics": self.embed(task.query.x)[1]}


class Peeking(Spoiled):
    def predict(self, adapted: dict[str, Any], x: Inputs, mask: Tensor) -> Tensor:
        return super().predict(adapted, x, mask) + adapted["answers"]

    def adapt(self, task: Task, *, steps: int) -> dict[str, Any]:
        return {**super().adapt(task, steps=steps), "answers": 0.0}


class FirstRow(Spoiled):
    def adapt(self, task: Task, *, steps: int) -> dict[str, Any]:
        adapted = super().adapt(task, steps=steps)
        return {**adapted, "prototypes": adapted["prototypes"] + self.embed(task.support.x)[0][0]}


class Detached(Spoiled):
    def task_loss(self, task: Task) -> tuple[Tensor, dict[str, Any]]:
        loss, metrics = super().task_loss(task)
        return loss.detach(), metrics


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory: pytest.TempPathFactory) -> Glyphs:
    dials = {"num_classes": 48, "num_drawings": 6, "image_size": 12, "way": 3, "query_shot": 2}
    return built(Glyphs, device=CPU, cache_dir=str(tmp_path_factory.mktemp("cache")), **dials)


@pytest.mark.parametrize(
    ("planted", "check", "sentence"),
    [
        (
            Careless,
            checks.inductive_predictions_do_not_depend_on_other_queries,
            "changes by .* when it is asked alone",
        ),
        (
            Careless,
            checks.one_class_queries_are_answered_as_among_those_of_all_classes,
            "queries of the other classes are left out",
        ),
        (
            OfAllQueries,
            checks.one_class_queries_are_answered_as_among_those_of_all_classes,
            "whose statistics are those of the support",
        ),
        (FirstRow, checks.permuting_the_support_changes_nothing, "declare order_matters = True"),
        (Detached, checks.loss_gradient_and_metrics_are_finite, "every gradient is 0"),
    ],
)
def test_a_fault_planted_in_a_method_is_found(
    planted: type[ProtoNet], check: Check, sentence: str, glyphs: Glyphs
) -> None:
    torch.manual_seed(0)
    algorithm = built(planted, built(Conv4, InputSpec((1, 12, 12)), channels=4), glyphs.spec("train"))
    with pytest.raises(ContractError, match=sentence):
        run(check, Trial(algorithm, glyphs))


def test_one_class_alone_finds_what_the_first_query_alone_does_not(glyphs: Glyphs) -> None:
    algorithm = built(OfAllQueries, built(Conv4, InputSpec((1, 12, 12)), channels=4), glyphs.spec("train"))
    assert run(checks.inductive_predictions_do_not_depend_on_other_queries, Trial(algorithm, glyphs))


def test_an_algorithm_is_not_checked_on_tasks_that_it_does_not_declare() -> None:
    source = built(Sinusoid, device=CPU)
    with pytest.raises(
        ContractError, match="ProtoNet takes tasks of classification .*, but these are tasks of regression"
    ):
        check_algorithm(built(ProtoNet, built(MLP, InputSpec((1,))), source.spec("train")), source)


def untraceable(glyphs: Glyphs) -> ProtoNet:
    class Branching(ProtoNet):
        """What it does depends on a value."""

        plans = ("loop",)

        def task_loss(self, task: Task) -> tuple[Tensor, dict[str, Any]]:
            loss, metrics = super().task_loss(task)
            return (loss if float(loss.detach()) > 0 else 2 * loss), metrics

    return built(Branching, built(Conv4, InputSpec((1, 12, 12)), channels=4), glyphs.spec("train"))


def test_what_cannot_be_compiled_fails_unless_nothing_is_to_be(glyphs: Glyphs) -> None:
    trial = Trial(untraceable(glyphs), glyphs)
    with pytest.raises(ContractError, match="this run cannot be compiled .*; use device.compile=false"):
        run(checks.a_compiled_gradient_is_that_of_the_loop, trial)
    with pytest.raises(
        NotApplicable, match="^compiles=False: device.compile=true, but this run cannot be compiled"
    ):
        run(checks.a_compiled_gradient_is_that_of_the_loop, dataclasses.replace(trial, compiles=False))


def test_without_vmap_the_reason_is_the_one_that_holds(glyphs: Glyphs) -> None:
    with pytest.raises(NotApplicable, match=r"^plans=\('loop',\): there is no other"):
        run(checks.loop_equals_vmap, Trial(untraceable(glyphs), glyphs))
    declared = built(ProtoNet, built(Conv4, InputSpec((1, 12, 12)), channels=4), glyphs.spec("train"))
    with pytest.raises(
        NotApplicable, match=r"^only loop is asked for, as by device.plan=loop: there is no other"
    ):
        run(checks.loop_equals_vmap, Trial(declared, glyphs, plans=("loop",)))


def test_whatever_a_check_raises_is_a_broken_promise_with_its_place() -> None:
    def stumbles(trial: Any) -> str:
        raise LookupError("nobody knows why")

    with pytest.raises(
        ContractError, match=r"^LookupError: nobody knows why \(at .*test_testing.py:\d+\)$"
    ) as caught:
        run(stumbles, ModelTrial(*MODELS["mlp"]()))
    assert isinstance(caught.value.__cause__, LookupError)


def test_nothing_of_a_test_framework_is_imported() -> None:
    code = (
        "import sys, metalearn.testing; print(sorted({'pytest', 'hypothesis', '_pytest'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


class TestObjectives:
    @pytest.mark.parametrize("mask", [None, torch.ones(5, dtype=torch.bool)], ids=["no mask", "mask"])
    @pytest.mark.parametrize(
        ("objective", "prediction", "y"),
        [
            (Regression(), torch.zeros(5, 10), torch.zeros(5, 1)),
            (Regression(), torch.zeros(5), torch.zeros(5, 1)),
            (Rating(), torch.zeros(1, 1), torch.zeros(5, 1)),
            (Classification(), torch.zeros(5, 3), torch.zeros(5, 1, dtype=torch.int64)),
            (Classification(), torch.zeros(5, 3), torch.zeros(5)),
            (Classification(), torch.zeros(5, 3, 2), torch.zeros(5, 2, dtype=torch.int64)),
        ],
    )
    def test_wrong_shapes_are_refused_with_both(
        self, objective: Any, prediction: Tensor, y: Tensor, mask: Tensor | None
    ) -> None:
        both = (
            f"prediction has shape {re.escape(str(tuple(prediction.shape)))} and y has shape "
            f"{re.escape(str(tuple(y.shape)))}"
        )
        for judge in (objective.loss, objective.metrics):
            with pytest.raises(ValueError, match=both):
                judge(prediction, y, mask)
        with pytest.raises(ValueError, match=both):  # one task's shapes, not those of the batch
            torch.vmap(lambda prediction, y: objective.loss(prediction, y, mask))(prediction[None], y[None])

    def test_a_mask_of_another_shape_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"a mask of shape \(1,\) does not fit values of shape \(5,\)"):
            Regression().loss(torch.zeros(5, 1), torch.zeros(5, 1), torch.ones(1, dtype=torch.bool))


class TestPatterns:
    NAMES = ["model.convs.0.weight", "model.bns.0.bias", "head.weight", "head.bias"]

    def test_every_pattern_must_match_something(self) -> None:
        assert starting_with(self.NAMES, "all", key="algo.adapts") == self.NAMES
        assert starting_with(self.NAMES, "head", key="algo.adapts") == ["head.weight", "head.bias"]
        assert starting_with(self.NAMES, ["head", "model.bns"], key="algo.adapts") == self.NAMES[1:]
        for wrong in (["head", "typo"], [], ["typo"]):
            with pytest.raises(ValueError, match="^algo.adapts=.*matches no parameter"):
                starting_with(self.NAMES, wrong, key="algo.adapts")
        with pytest.raises(
            ValueError, match="model.conv.0 matches no parameter; did you mean model.convs.0?"
        ):
            starting_with(self.NAMES, ["head", "model.conv.0"], key="algo.adapts")

    def test_a_minus_leaves_out_and_a_star_is_anything(self) -> None:
        without_head = self.NAMES[:2]
        assert starting_with(self.NAMES, ["-head"], key="algo.adapts") == without_head
        assert starting_with(self.NAMES, "-head", key="algo.adapts") == without_head
        assert starting_with(self.NAMES, ["model", "-model.bns"], key="algo.adapts") == self.NAMES[:1]
        assert starting_with(self.NAMES, ["*.bias"], key="algo.adapts") == [self.NAMES[1], self.NAMES[3]]
        assert starting_with(self.NAMES, ["-*.bias", "head"], key="algo.adapts") == ["head.weight"]

    @pytest.mark.parametrize(
        ("patterns", "said"),
        [
            (["-neck"], "neck matches no parameter"),
            (["model", "-convs"], "convs matches no parameter"),
            (["*.scale"], "*.scale matches no parameter"),
            (["head", "-head"], "it matches no parameter"),
            (["-model", "-head"], "it matches no parameter"),
        ],
    )
    def test_what_is_left_out_must_be_there_and_may_not_be_all(self, patterns: list[str], said: str) -> None:
        with pytest.raises(ValueError, match=f"^{re.escape(f'algo.adapts={patterns}: {said}')}"):
            starting_with(self.NAMES, patterns, key="algo.adapts")

    def test_a_misspelt_one_is_exit_2(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        words = ["data=sinusoid", "device=cpu", "algo.adapts=[head,typo]", f"run_dir={tmp_path / 'run'}"]
        code, _, complaint = answer(capsys, "train", *words)
        assert code == 2
        assert (
            "algo.adapts=['head', 'typo']: typo matches no parameter; choose 'all' or prefixes of: "
            "model.layers.0.weight" in complaint
        )


@pytest.mark.parametrize(
    ("declared", "sentence"),
    [
        (
            True,
            "MatchingNet takes tasks of classification (its `kinds`), but these are tasks of regression; "
            "choose other data, or one of",
        ),
        (False, "the prediction has shape (10, 10, 1) and y has shape (10, 1); correct matching.py:"),
    ],
)
def test_matching_networks_on_curves_are_refused_before_training(
    declared: bool,
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What CONTRIBUTING shows, as it stands and with no declaration: it trained at a gradient norm of 0 by
    broadcasting.
    """
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name, content in re.findall(
        r"^`([\w/]*matching\.(?:py|yaml))`:\n\n```\w+\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if declared else re.sub("    kinds = .*\n", "", content))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "matching", raising=False)
    words = [
        "algo=matching",
        "trusted=[matching]",
        "data=sinusoid",
        "device=cpu",
        "run_dir=run",
        "trainer.outer_steps=4",
    ]
    code, _, complaint = answer(capsys, "train", "--config-dir", "conf", *words)
    monkeypatch.delitem(sys.modules, "matching", raising=False)
    assert (code, complaint.count("\n")) == (2, 1)
    assert sentence in complaint
    assert not Path("run").exists()


def test_the_base_takes_every_kind_but_no_padding() -> None:
    """Objectives refuse what does not fit; a mask that is not read would be silent."""
    assert (set(Algorithm.kinds), Algorithm.handles_ragged) == (
        {"classification", "regression", "rating"},
        False,
    )
    assert compose([])["algo"]["adapts"] == "all"
