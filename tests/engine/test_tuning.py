"""Plans are chosen by measuring, and a plan whose gradient is wrong or that raises is dropped by name."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from metalearn.algorithms.maml import MAML
from metalearn.build.objects import plan_wish
from metalearn.config.compose import compose
from metalearn.config.saved import read_saved
from metalearn.core import Algorithm, Task
from metalearn.engine import autotune, plan_check
from metalearn.engine.autotune import Attempt, Measured, Timing, Wish, finalists, tune, worth_spending
from metalearn.engine.evaluate import draw_tasks
from metalearn.engine.executor import Executor, TaskPlan
from metalearn.engine.plan_check import references_of
from metalearn.errors import ConfigError, MetalearnError
from metalearn.models.conv4 import Conv4
from metalearn.run import plan as plans
from metalearn.run.resume import resume
from metalearn.run.train import train
from tests.engine.toy import ToyAlgorithm, ToySource
from tests.reference.tasks import IMAGE, image_spec, image_tasks
from tests.reliability.harness import QUICK, configuration
from tests.shipped import built


def toy_tasks(count: int, first: int = 0) -> Task:
    return draw_tasks(ToyAlgorithm(), ToySource(), "train", seed=0, first=first, count=count)


BATCH = toy_tasks(4)


def toy(cls: type[ToyAlgorithm] = ToyAlgorithm) -> Algorithm:
    return cls()


@pytest.fixture
def no_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler's front end only: its code generator takes a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch.compiler.reset()


@pytest.fixture
def instant_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that gives back what it gets."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


class WrongUnderVmap(ToyAlgorithm):
    """The right loss with a gradient that is off by a thousandth where tasks come together."""

    def gradient(self, params, tasks, how):
        grads, losses, metrics = super().gradient(params, tasks, how)
        return (
            {name: grad * (1.001 if how.name == "vmap" else 1.0) for name, grad in grads.items()},
            losses,
            metrics,
        )


class Magnifies(ToyAlgorithm):
    """A loss whose gradient turns by a ten-thousandth when the prior moves by sixteen units in its last
    place.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.nn.init.ones_(self.prior)

    def gradient(self, params, tasks, how):
        _, losses, metrics = super().gradient(params, tasks, how)
        return {"prior": 2 + (310 * params["prior"]).sin()}, losses, metrics


class CannotBeMapped(ToyAlgorithm):
    def adapt(self, task, *, steps):
        if task.support.y.sum().item() > 1e9:
            raise AssertionError
        return super().adapt(task, steps=steps)


class CannotBeCompiled(ToyAlgorithm):
    def adapt(self, task, *, steps):
        torch._dynamo.graph_break()
        return super().adapt(task, steps=steps)


@pytest.mark.parametrize(
    ("cls", "reason"),
    [(WrongUnderVmap, "gradient of prior differs from that of loop by 1.0e-03"), (CannotBeMapped, ".item()")],
)
def test_a_plan_that_is_wrong_or_raises_is_dropped_by_name(cls: type[ToyAlgorithm], reason: str) -> None:
    found = tune(toy(cls), BATCH, Wish("auto", 0, False), steps=10)
    assert [timing.plan for timing in found.timings] == [TaskPlan("loop")]
    assert reason in found.dropped["vmap"]
    assert f"dropped: {found.dropped['vmap']}" in found.table(10)


def test_more_is_allowed_where_the_inner_loop_magnifies_rounding_and_never_much() -> None:
    calm, wild = references_of(toy(), BATCH)[0], references_of(toy(Magnifies), BATCH)[0]
    assert calm.tolerances == {"prior": plan_check.GRADIENT_TOLERANCE}
    assert plan_check.GRADIENT_TOLERANCE < wild.tolerances["prior"] <= plan_check.LARGEST_TOLERANCE
    sums = calm.sums
    assert (
        calm.mismatch(sums._replace(losses=sums.losses * 1.001))
        == "its losses differ from those of loop by 1.0e-03 of their size"
    )
    assert calm.mismatch(sums._replace(losses=sums.losses * torch.nan)) is not None


def test_plans_are_not_judged_on_a_task_at_a_kink() -> None:
    """Where a value lies within rounding of a ReLU's kink, two right gradients differ, and weights moved by a
    rounding show it.
    """

    class Kink(ToyAlgorithm):
        place: torch.Tensor | None = None

        def gradient(self, params, tasks, how):
            Kink.place = params["prior"].clone() if Kink.place is None else Kink.place
            grads, losses, metrics = super().gradient(params, tasks, how)
            beyond = how.name == "vmap" or (params["prior"] > Kink.place).any()
            kink = (tasks.key == BATCH.key[0]).any() & beyond
            return (
                {name: grad * torch.where(kink, 1.01, 1.0) for name, grad in grads.items()},
                losses,
                metrics,
            )

    assert not tune(toy(Kink), BATCH, Wish("auto", 0, False), steps=10).dropped
    assert "vmap" in tune(toy(Kink), toy_tasks(1), Wish("auto", 0, False), steps=10).dropped


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_tasks_that_leak_into_each_other_are_seen(count: int) -> None:
    class Leaks(ToyAlgorithm):
        def gradient(self, params, tasks, how):
            if how.name == "vmap":
                support = tasks.support
                tasks = tasks._replace(
                    support=support._replace(y=support.y.mean(0, keepdim=True).expand_as(support.y))
                )
            return super().gradient(params, tasks, how)

    assert "vmap" in tune(toy(Leaks), toy_tasks(count), Wish("auto", 0, False), steps=10).dropped


class Blows(ToyAlgorithm):
    """Gradients that are not finite for the tasks with these keys."""

    keys: torch.Tensor

    def gradient(self, params, tasks, how):
        grads, losses, metrics = super().gradient(params, tasks, how)
        bad = torch.isin(tasks.key, self.keys).any()
        return {name: torch.where(bad, torch.inf, grad) for name, grad in grads.items()}, losses, metrics


@pytest.mark.parametrize("bad", [0, 1, 3])
def test_a_task_that_is_not_finite_is_no_reason_to_drop_a_plan(
    bad: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Blows, "keys", BATCH.key[bad], raising=False)
    assert not tune(toy(Blows), BATCH, Wish("auto", 0, False), steps=10).dropped


def test_where_nothing_is_finite_the_run_goes_on_by_loop_and_says_so_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Blows, "keys", BATCH.key, raising=False)
    found = tune(toy(Blows), BATCH, Wish("auto", 0, False), steps=10)
    assert [timing.plan for timing in found.timings] == [TaskPlan("loop")]
    assert found.dropped["vmap"] == "no task of the first meta-batch has a finite gradient to compare with"


def test_all_plans_are_timed_and_the_algorithm_is_left_alone() -> None:
    algorithm = toy()
    before = {name: value.clone() for name, value in algorithm.state_dict().items()}
    found = tune(algorithm, toy_tasks(20), Wish("auto", 8, False), steps=10)
    assert [str(timing.plan) for timing in found.timings] == [
        "loop",
        "vmap chunk 4",
        "vmap chunk 8",
        "vmap chunk 16",
        "vmap",
    ]
    assert found.best(10).plan != TaskPlan("loop")
    assert all(torch.equal(value, before[name]) for name, value in algorithm.state_dict().items())
    assert all(p.grad is None for p in algorithm.parameters())


def test_compilation_is_tried_only_where_it_can_pay_for_itself(
    monkeypatch: pytest.MonkeyPatch, instant_compiler: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "metalearn")
    found = tune(toy(), BATCH, Wish("vmap", 0, "auto"), steps=10)
    assert [timing.plan.compile for timing in found.timings] == [False]
    assert caplog.messages == [
        "not compiled: vmap, as 10 outer steps allow 0 s for it, and it takes 40 s or more"
    ]
    monkeypatch.setattr(autotune, "SMALLEST_BUILD", 0.0)
    found = tune(toy(), BATCH, Wish("vmap", 0, "auto"), steps=10, ahead=lambda plan, limit: Attempt(41.0))
    assert [timing.plan.compile for timing in found.timings] == [False, True]
    assert found.timings[1].build == 41.0 + found.timings[1].again
    assert (
        caplog.messages[1]
        == "compiling vmap for at most 0 s of processor time: 10 outer steps take 0 s as they are"
    )
    assert caplog.messages[2].startswith(
        f"compiled vmap in {found.timings[1].build:.0f} s of processor time: "
    )


def test_what_others_do_on_the_machine_makes_no_plan_slow(caplog: pytest.LogCaptureFixture) -> None:
    """Here a gradient waits as it would for a processor: 10,000 steps take 200 s by the clock, and two of
    computing.
    """

    class Waits(ToyAlgorithm):
        def gradient(self, params, tasks, how):
            time.sleep(0.02)
            return super().gradient(params, tasks, how)

    def never(plan: TaskPlan, limit: float | None) -> Attempt:
        raise AssertionError

    found = tune(toy(Waits), BATCH, Wish("vmap", 0, "auto"), steps=10_000, ahead=never)
    assert found.timings[0].seconds < 0.02 <= found.timings[0].wall
    assert "by the clock: the machine is busy)" in found.table(10_000)


def test_a_compiler_that_took_too_long_is_named_and_no_other_plan_is_tried(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "metalearn")
    monkeypatch.setattr(autotune, "NEAR", 1000.0)  # so that two plans would be compiled
    monkeypatch.setattr(autotune, "SMALLEST_BUILD", 0.0)
    limits: list[float | None] = []

    def ahead(plan: TaskPlan, limit: float | None) -> Attempt:
        limits.append(limit)
        return Attempt(
            9.0, "given up after 9 s of processor time: it can no longer pay for itself", ended=True
        )

    found = tune(toy(), toy_tasks(20), Wish("auto", 0, "auto"), steps=10, ahead=ahead)
    assert len(limits) == 1 and limits[0] is not None
    assert not any(timing.plan.compile for timing in found.timings)
    assert (
        caplog.messages[-1] == f"{next(iter(found.dropped))} is dropped: {next(iter(found.dropped.values()))}"
    )


def test_what_hinders_the_compilers_process_does_not_hinder_who_was_told_to_compile(
    instant_compiler: None,
) -> None:
    found = tune(
        toy(), BATCH, Wish("vmap", 0, True), steps=10, ahead=lambda plan, limit: Attempt(0.0, "no folder")
    )
    assert [timing.plan for timing in found.timings] == [TaskPlan("vmap", 0, True)]


def test_a_compiler_may_take_what_its_plan_can_save() -> None:
    lean, fast = Timing(TaskPlan("loop"), 0.011), Timing(TaskPlan("vmap"), 0.010)
    assert worth_spending([lean, fast], TaskPlan("vmap", 0, True), 10_000) == pytest.approx(
        10_000 * (0.010 - 0.010 / 3) / 1.15
    )
    # twice as fast, so that 2.6 times is the most for the other
    compiled = Timing(TaskPlan("vmap", 0, True), 0.005)
    assert worth_spending([lean, fast, compiled], TaskPlan("loop", 0, True), 10_000) == pytest.approx(
        10_000 * (0.005 - 0.011 / 2.6) / 1.15
    )


def test_what_compiling_took_is_no_reason_against_what_it_made() -> None:
    """It is spent. What each process that uses it takes again is not."""
    slow, built = (
        Timing(TaskPlan("vmap"), 0.01),
        Timing(TaskPlan("vmap", 0, True), 0.002, build=400.0, again=40.0),
    )
    measured = Measured([slow, built])
    assert measured.best(1000) is slow
    assert measured.best(10_000) is built
    assert Measured.from_json(measured.to_json()) == measured


def test_the_fastest_plan_and_a_lean_one_that_is_near_are_compiled() -> None:
    loop, small, large = (
        Timing(TaskPlan("loop"), 0.024),
        Timing(TaskPlan("vmap", 4), 0.022),
        Timing(TaskPlan("vmap"), 0.020),
    )
    assert finalists([loop, small, large], large) == [TaskPlan("vmap", 0, True), TaskPlan("loop", 0, True)]
    assert finalists([small, large], large) == [TaskPlan("vmap", 0, True), TaskPlan("vmap", 4, True)]
    assert finalists([Timing(TaskPlan("loop"), 0.027), large], large) == [TaskPlan("vmap", 0, True)]
    assert finalists([loop], loop) == [TaskPlan("loop", 0, True)]


def test_what_cannot_be_compiled_is_dropped_or_refused(
    monkeypatch: pytest.MonkeyPatch, no_inductor: None
) -> None:
    monkeypatch.setattr(autotune, "SMALLEST_BUILD", 0.0)
    found = tune(toy(CannotBeCompiled), BATCH, Wish("vmap", 0, "auto"), steps=10)
    assert [timing.plan.compile for timing in found.timings] == [False]
    assert "cannot be compiled" in found.dropped["vmap compiled"]
    with pytest.raises(
        ConfigError, match=r"device\.compile=true, but no compiled plan works \(vmap compiled: "
    ):
        tune(toy(CannotBeCompiled), BATCH, Wish("auto", 0, True), steps=10)


def test_no_plan_at_all_is_an_error_with_every_reason() -> None:
    with pytest.raises(MetalearnError, match=r"no plan works on these tasks \(loop: broken\)"):
        Measured(dropped={"loop": "broken"}).best(10)


@pytest.mark.parametrize(
    ("words", "wish"),
    [
        ([], Wish("vmap", 16, False)),
        (["device.plan=auto"], Wish("auto", 16, "auto")),
        (["device.plan=auto", "device.compile=false"], Wish("auto", 16, False)),
        (["device.plan=loop", "device.compile=true", "device.chunk=0"], Wish("loop", 0, True)),
        (["device.compile=auto"], Wish("vmap", 16, "auto")),
    ],
)
def test_the_wish_follows_from_the_command_line(words: list[str], wish: Wish) -> None:
    assert plan_wish(compose(words)) == wish


def test_a_run_writes_down_its_plan_and_an_equal_run_does_not_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    words = [*QUICK, "device.plan=auto", "trainer.outer_steps=2"]
    cfg = configuration(tmp_path / "cache", *words)
    assert train(cfg, words, tmp_path / "first") == 0
    first = read_saved(tmp_path / "first")["device"]
    assert first["plan"] in ("loop", "vmap")
    assert first["compile"] is False
    assert "<- chosen" in (tmp_path / "first" / "train.log").read_text()

    monkeypatch.setattr(plans, "tune", None)  # measuring again would raise
    assert train(configuration(tmp_path / "cache", *words), words, tmp_path / "second") == 0
    assert read_saved(tmp_path / "second")["device"] == first
    assert (tmp_path / "first" / "results.json").read_bytes() == (
        tmp_path / "second" / "results.json"
    ).read_bytes()
    assert resume(tmp_path / "second", ["trainer.outer_steps=3"]) == 0
    assert read_saved(tmp_path / "second")["device"] == first


@pytest.mark.parametrize(
    "damage", ["", "{", '{"timings": [{}], "dropped": {}}', '{"timings": [], "dropped": {}}']
)
def test_timings_that_cannot_be_read_are_measured_again(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(damage)
    assert plans.remembered(path) is None
    plans.remember(path, Measured([Timing(TaskPlan("vmap", 4), 0.5)]))
    assert plans.remembered(path) == Measured([Timing(TaskPlan("vmap", 4), 0.5)])
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


class Shifted(MAML):
    """MAML with a number that all logits share, whose true gradient is zero: what is computed is made of
    rounding alone.
    """

    def __init__(self, *args: Any, **dials: Any) -> None:
        super().__init__(*args, **dials)
        self.shift = nn.Parameter(torch.zeros(8))

    def network(self, x: Any, given: Any = None, mask: Any = None, step: int = 0) -> tuple[Tensor, Any]:
        prediction, statistics = super().network(x, given=given, mask=mask, step=step)
        return prediction + self.shift.sum(), statistics


def test_a_gradient_that_is_truly_zero_passes_the_proof() -> None:
    torch.manual_seed(0)
    model = built(Conv4, IMAGE, channels=8)
    algorithm = built(
        Shifted,
        model,
        image_spec(),
        inner_lr=0.4,
        adaptation_steps=2,
        eval_adaptation_steps=2,
        adapts=["model", "head"],
    ).float()
    tasks = tree_map(lambda leaf: leaf.float() if leaf.is_floating_point() else leaf, image_tasks(4))
    references = references_of(algorithm, tasks)
    for plan in (TaskPlan("vmap"), TaskPlan("vmap", 2)):
        problems = [
            reference.mismatch(Executor(algorithm, plan).sums(reference.batch)) for reference in references
        ]
        assert not any("gradient of shift" in (problem or "") for problem in problems), problems
    # And what is wrong by little, beside a large gradient, is still found.
    reference = references[0]
    largest = max(grad.norm() for grad in reference.sums.grads.values())
    spoiled = {**reference.sums.grads, "head.bias": reference.sums.grads["head.bias"] + 1e-2 * largest}
    assert reference.mismatch(reference.sums._replace(grads=spoiled)) is not None
