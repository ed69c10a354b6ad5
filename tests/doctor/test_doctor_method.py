"""metalearn doctor algo=mine: an author's own method, and every riddle of PyTorch as a sentence with line and
way out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from metalearn.build.device import prepare_host
from metalearn.build.objects import build_algorithm, build_source
from metalearn.config.compose import compose
from metalearn.doctor.examine import examine_method
from metalearn.testing import algorithms, models, sources
from metalearn.testing.algorithms import (
    ALGORITHM_CHECKS,
    Trial,
    a_compiled_gradient_is_that_of_the_loop,
    check_algorithm,
    it_draws_no_random_numbers_and_keeps_nothing_between_tasks,
)
from metalearn.testing.checking import ContractError, NotApplicable, name_of, run
from tests.cli.conftest import answer

pytestmark = pytest.mark.usefixtures("as_it_was")

# A method whose `predict` holds one line more. The parameters of `unused` have no gradient, which is no
# mistake.
METHOD = """
import torch
from torch import nn
from metalearn.core import Algorithm


class Mine(Algorithm):
    {declared}

    def __init__(self, model, spec):
        super().__init__(spec)
        self.model, self.head = model, model.head(spec.num_outputs)
        self.lstm, self.unused = nn.LSTM(8, 8), nn.Linear(2, 2)
        self.norm, self.dropout = nn.BatchNorm1d(8), nn.Dropout()
        self.register_buffer("seen", torch.zeros(8))

    def adapt(self, task, *, steps):
        return {{"mean": task.support.y.mean(0)}}

    def predict(self, adapted, x, mask):
        features, _ = self.model(x)
        {line}
        return self.head(features) + adapted["mean"]

    def task_loss(self, task):
        loss, metrics = super().task_loss(task)
        return loss, {{**metrics, "distance": {metric}}}
"""
WORDS = [
    "data=sinusoid",
    "data.shot=4",
    "data.query_shot=4",
    "model.hidden=[8]",
    "device=cpu",
    "trainer.outer_steps=1",
    "trainer.dry_run=true",
]
RIDDLES = {
    "randn": ("features = features + torch.randn(4, 8)", "draws random numbers", "draws"),
    "dropout": ("features = self.dropout(features)", "draws random numbers", "task.draws"),
    "branch": (
        "features = features * 2 if features.sum() > 0 else features",
        "branches on the value of a tensor",
        "device.plan=loop",
    ),
    "item": (
        "features = features * features.sum().item()",
        "reads the value of a tensor as a number",
        "device.plan=loop",
    ),
    "boolean": (
        "features = torch.cat([features, features[features[:, 0] > 9]])",
        "indexes with a boolean mask",
        "device.plan=loop",
    ),
    "nonzero": (
        "features = features[(features[:, 0] > -9).nonzero()[:, 0]]",
        "calls nonzero, whose result has a shape",
        "device.plan=loop",
    ),
    "lstm": ("features = self.lstm(features)[0]", "uses a fused lstm cell", "device.plan=loop"),
    "buffer": ("self.seen.copy_(features.mean(0))", "writes in place into a tensor", "update_running"),
    "running": ("self.seen += features.mean(0).detach()", "writes in place into a tensor", "update_running"),
    "norm": ("features = self.norm(features)", "writes in place into a tensor", "metalearn.models.Norm"),
    "numpy": ("features = torch.from_numpy(features.numpy())", "leaves PyTorch", "torch operations"),
    "typo": (
        "features = featuers",
        "failed with NameError: name 'featuers' is not defined",
        "correct that line",
    ),
}
Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """A folder with a method of this line, which is the working folder; the words that choose it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    (tmp_path / "conf" / "algo").mkdir(parents=True)
    (tmp_path / "conf" / "algo" / "mine.yaml").write_text(
        "about: {title: Mine, suits: {plan: vmap}}\n_target_: mine.Mine\n"
    )

    def make(
        line: str = "pass", *, metric: str = "loss.detach()", declared: str = "order_matters = False"
    ) -> str:
        (tmp_path / "mine.py").write_text(METHOD.format(line=line, metric=metric, declared=declared))
        number = METHOD.splitlines().index("        {line}") + 1
        return f"mine.py:{number} `{line}`"

    yield make
    for name in set(sys.modules) - known:
        if name == "mine":
            del sys.modules[name]


def words(*more: str) -> list[str]:
    return ["algo=mine", "trusted=[mine]", *WORDS, *more]


def built(*more: str) -> Trial:
    cfg = compose(words(*more), "conf")
    prepare_host(cfg)
    source = build_source(cfg, torch.device("cpu"))
    return Trial(
        build_algorithm(cfg, source, torch.device("cpu")),
        source,
        ("loop",) if "device.plan=loop" in more else (),
    )


def failures(trial: Trial) -> Iterator[tuple[str, str]]:
    """What fails and why, one after the other. The compiler is left out, which takes seconds."""
    for check in ALGORITHM_CHECKS:
        try:
            if check is not a_compiled_gradient_is_that_of_the_loop:
                run(check, trial)
        except NotApplicable:
            pass
        except ContractError as error:
            yield name_of(check), str(error)


@pytest.mark.parametrize("riddle", RIDDLES)
def test_a_riddle_is_a_sentence_with_the_line_and_the_way_out(riddle: str, write: Write) -> None:
    line, what, way_out = RIDDLES[riddle]
    place = write(line)
    sentences = (sentence for _, sentence in failures(built()))
    assert any(s.startswith(f"{place} {what}") and way_out in s.split(";")[-1] for s in sentences)


@pytest.mark.parametrize("riddle", ["branch", "buffer", "typo"])
def test_so_it_is_at_the_start_of_a_run_which_leaves_no_folder(
    riddle: str, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    line, what, way_out = RIDDLES[riddle]
    place = write(line)
    code, _, complaint = answer(capsys, "train", "--config-dir", "conf", *words("run_dir=run"))
    assert (code, complaint.count("\n")) == (2, 1), complaint
    assert complaint.startswith(f"error: {place} {what}")
    assert way_out in complaint
    assert not Path("run").exists()


@pytest.mark.parametrize("riddle", ["branch", "typo"])
def test_so_it_is_when_a_method_that_was_changed_is_judged_or_goes_on(
    riddle: str, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    line, what, way_out = RIDDLES[riddle]
    write()
    small = ["trainer.meta_batch_size=2", "eval.val_episodes=2", "eval.episodes=2", "run_dir=run"]
    asked = [word for word in words(*small) if word != "trainer.dry_run=true"]
    assert answer(capsys, "train", "--config-dir", "conf", *asked)[0] == 0
    place = write(line)
    del sys.modules["mine"]
    for command in (["eval", "run", "eval.episodes=3"], ["resume", "run", "trainer.outer_steps=2"]):
        code, _, complaint = answer(capsys, *command, "trusted=[mine]")
        assert (code, complaint.count("\n")) == (2, 1), complaint
        assert complaint.startswith(f"error: {place} {what}")
        assert way_out in complaint
    assert not Path("run", "evals").exists()
    assert not list(Path("run").glob("eval_*.csv")), "the run is open again, at its new end"


@pytest.mark.parametrize("plan", ["vmap", "loop"])
def test_a_float_among_the_metrics_is_named(
    plan: str, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write(metric="0.5")
    assert "the metrics distance are no scalar tensors; return loss.detach()" in next(failures(built()))[1]
    code, _, complaint = answer(
        capsys, "train", "--config-dir", "conf", *words("run_dir=run", f"device.plan={plan}")
    )
    assert code == 2
    assert "`def task_loss(self, task):` returns a plain float among its metrics" in complaint
    assert "torch.tensor(value)" in complaint


@pytest.mark.parametrize("riddle", ["branch", "item", "boolean", "nonzero", "lstm"])
def test_what_vmap_cannot_map_keeps_the_contract_under_loop(riddle: str, write: Write) -> None:
    write(RIDDLES[riddle][0])
    # of an LSTM over its rows
    assert dict(failures(built("device.plan=loop"))).keys() <= {"permuting the support changes nothing"}


@pytest.mark.parametrize("riddle", ["randn", "dropout", "buffer", "running"])
def test_what_loop_would_do_in_silence_is_named_too(riddle: str, write: Write) -> None:
    line, what, _ = RIDDLES[riddle]
    place = write(line)
    assert next(failures(built("device.plan=loop")))[1].startswith(f"{place} {what}")


def test_a_sound_method_keeps_the_contract_though_a_parameter_has_no_gradient(write: Write) -> None:
    write()
    assert dict(failures(built())) == {}


def test_the_command_says_one_line_per_check_and_each_reason_once(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    place = write("features = features * features.sum().item()")
    code, shown, _ = answer(capsys, "doctor", *words("model=mlp"), "--config-dir", "conf")
    lines = shown.splitlines()
    assert code == 1
    assert (
        "ok      data, tasks are a pure function of their numbers: the same in other batches and another "
        "order" in lines
    )
    assert "ok      model, it writes nothing and repeats itself: pure" in lines
    assert shown.count(f": {place} reads the value of a tensor") == 1
    assert [
        line
        for line in lines
        if line.startswith("FAILED") and line.endswith(": for the same reason as above")
    ]
    assert len(lines) == sum(
        map(len, (algorithms.ALGORITHM_CHECKS, sources.SOURCE_CHECKS, models.MODEL_CHECKS))
    )


def test_what_a_run_would_be_refused_for_is_exit_2(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    write(declared="kinds = ('classification',)")
    code, shown, complaint = answer(capsys, "doctor", *words(), "--config-dir", "conf")
    assert (code, shown) == (2, "")
    assert (
        "error: Mine takes tasks of classification (its `kinds`), but these are tasks of regression; choose "
        "other data, or one of" in complaint
    )
    assert "algo=maml, " in complaint
    assert "algo=reptile" in complaint
    assert answer(capsys, "doctor", "algo=mime", "--config-dir", "conf")[0] == 2
    assert answer(capsys, "doctor", "--config-dir", "conf")[0] == 2


def test_the_configuration_is_made_small_unless_words_say_its_size(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    monkeypatch.setattr(
        "metalearn.doctor.methods.ALGORITHM_CHECKS",
        [lambda trial: sizes.append(trial.source.spec("val").query_size) or ""],
    )
    monkeypatch.setattr("metalearn.doctor.methods.name_of", lambda check: "noted")
    write()
    given = ["algo=mine", "trusted=[mine]", "data=sinusoid"]
    assert [examine_method([*given, *more], "conf") for more in ([], ["data.query_shot=7"])] == [0, 0]
    assert sizes == [2, 7]


class TestPlans:
    def test_a_plan_that_a_method_does_not_declare_is_refused(
        self, write: Write, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write(declared="plans = ('loop',)")
        code, _, complaint = answer(capsys, "train", "--config-dir", "conf", *words("run_dir=run"))
        assert (code, complaint) == (
            2,
            "error: device.plan=vmap, but Mine maps its tasks by loop only; set device.plan=loop\n",
        )

    def test_auto_never_tries_it(self, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
        write(RIDDLES["branch"][0], declared="plans = ('loop',)")
        code, shown, _ = answer(
            capsys, "train", "--config-dir", "conf", *words("run_dir=run", "device.plan=auto")
        )
        assert code == 0
        assert "loop " in shown
        assert "vmap" not in shown

    def test_auto_says_in_a_sentence_why_it_dropped_one(
        self, write: Write, capsys: pytest.CaptureFixture[str]
    ) -> None:
        place = write(RIDDLES["branch"][0])
        code, shown, _ = answer(
            capsys, "train", "--config-dir", "conf", *words("run_dir=run", "device.plan=auto")
        )
        assert code == 0
        assert f"dropped: {place} branches on the value of a tensor" in shown

    def test_an_impure_method_is_named_as_such(
        self, write: Write, capsys: pytest.CaptureFixture[str]
    ) -> None:
        place = write(RIDDLES["randn"][0])
        code, _, complaint = answer(
            capsys, "train", "--config-dir", "conf", *words("run_dir=run", "device.plan=auto")
        )
        assert (code, complaint.count("\n")) == (2, 1)
        assert complaint.startswith(f"error: {place} draws random numbers")

    def test_one_that_keeps_something_between_tasks_too(
        self, write: Write, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write("self.calls = getattr(self, 'calls', 0) + 1; features = features * self.calls")
        code, _, complaint = answer(
            capsys, "train", "--config-dir", "conf", *words("run_dir=run", "device.plan=auto")
        )
        assert code == 2
        assert "for the same task and the same weights, so that it keeps something between tasks" in complaint


def test_a_library_function_names_the_promise_that_is_broken(write: Write) -> None:
    write(RIDDLES["randn"][0])
    trial = built()
    with pytest.raises(
        ContractError,
        match=f"^Mine: {name_of(it_draws_no_random_numbers_and_keeps_nothing_between_tasks)}: mine.py",
    ):
        check_algorithm(trial.algorithm, trial.source)
    with pytest.raises(AssertionError):
        check_algorithm(trial.algorithm, trial.source)


@pytest.fixture(autouse=True)
def no_bytecode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the same name and second would be taken for one another."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
