"""The promises that every later part must keep, one test each; the details are tested where they are made.

Runs live in processes of their own: tests/reliability/harness.py.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_map

from metalearn.build.objects import build_algorithm, build_source, plan_wish
from metalearn.build.parts import Parts
from metalearn.cli import main as cli
from metalearn.core import Algorithm, Source, TaskBatch
from metalearn.data.sampling import draw_classes, task_keys
from metalearn.distributed.strategy import Link, pool
from metalearn.engine.evaluate import EvalSpec, draw_tasks, evaluate, evaluate_batch
from metalearn.engine.executor import Executor, TaskPlan
from metalearn.engine.results import REQUIRED
from metalearn.engine.settings import Settings, share_of
from metalearn.engine.strategy import SingleProcess
from metalearn.rundir.checkpoint_files import WEIGHTS_FILE
from metalearn.rundir.checkpoints import CheckpointStore
from tests.distributed.test_ranks import together
from tests.engine.toy import eval_spec
from tests.plugins import METHODS, class_of, small
from tests.reference.tasks import image_tasks
from tests.reference.test_gradients import gradients, maml, mismatch
from tests.reliability import harness
from tests.reliability.harness import KILLED, QUICK, assert_same_end, finish, resume, train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("invariants")


@pytest.fixture(scope="module")
def cfg(place: Path) -> dict[str, Any]:
    return harness.configuration(place / "cache", *QUICK)


@pytest.fixture(scope="module")
def finished(place: Path, cfg: dict[str, Any]) -> Path:
    harness.warm_up(cfg, place / "warm_up")
    assert finish(train(cfg, place / "run"), plots=True) == 0
    return place / "run"


def built(place: Path, *overrides: str) -> tuple[dict[str, Any], Algorithm, Source]:
    cfg = harness.configuration(place / "cache", *overrides)
    source = build_source(cfg, CPU)
    return cfg, build_algorithm(cfg, source, CPU), source


def test_invariant_01_equal_configurations_give_equal_runs(
    cfg: dict[str, Any], finished: Path, place: Path, tmp_path: Path
) -> None:
    assert list((finished / "plots").glob("*.png"))
    assert finish(train(cfg, tmp_path / "again")) == 0
    assert_same_end(tmp_path / "again", finished)
    assert finish(train(harness.configuration(place / "cache", *QUICK, "seed=1"), tmp_path / "other")) == 0
    assert harness.metrics(tmp_path / "other") != harness.metrics(finished)


@pytest.mark.parametrize(
    "place_of_death",
    [
        "step:end@5",
        *(pytest.param(place, marks=pytest.mark.slow) for place in ("save:before_rename@3", "eval:batch@3")),
        pytest.param("end:before_results", marks=pytest.mark.slow),
    ],
)
def test_invariant_02_killed_and_resumed_equals_never_killed(
    place_of_death: str, cfg: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    assert finish(train(cfg, tmp_path / "run"), fault=place_of_death) == KILLED
    assert finish(resume(tmp_path / "run")) == 0
    assert_same_end(tmp_path / "run", finished)


@pytest.mark.parametrize("method", METHODS)
def test_invariant_03_evaluation_changes_nothing_and_everyone_meets_the_same_tasks(
    method: str, place: Path
) -> None:
    if "classification" not in class_of(method).kinds:
        pytest.skip("the tasks are of classification")
    cfg, algorithm, source = built(place, f"algo={method}", *small("algo", method), "seed=7")
    before, random_state = copy.deepcopy(algorithm.state_dict()), torch.get_rng_state()
    asked: list[Any] = []
    tasks = source.tasks
    source.tasks = lambda split, **numbers: asked.append((split, numbers)) or tasks(split, **numbers)  # type: ignore[func-returns-value,method-assign]
    evaluate(algorithm, source, eval_spec("test", seed=1000, episodes=4), plan=plan_wish(cfg).plan())
    assert all(torch.equal(before[name], value) for name, value in algorithm.state_dict().items())
    assert torch.equal(random_state, torch.get_rng_state())
    assert asked == [("test", {"seed": 1000, "first": 0, "count": count}) for count in (1, 4)], (
        "one to count its bytes, then all"
    )
    seen = []
    for seed in (0, 1):
        settings = Settings.of({**cfg, "seed": seed})
        strategy = SingleProcess(algorithm, source, Executor(algorithm, plan_wish(cfg).plan()), settings)
        asked.clear()
        strategy.evaluate(EvalSpec(**cfg["eval"]))
        seen.append(list(asked))
    assert seen[0] == seen[1], "the tasks of the final evaluation must not depend on `seed`"


def test_invariant_04_val_chooses_and_test_is_read_once_after_training(
    cfg: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"

    def watched() -> int:
        usual = Parts.build

        def build(cfg: dict[str, Any], **more: Any) -> Parts:
            parts = usual(cfg, **more)
            tasks = parts.source.tasks

            def noted(split: Any, **numbers: int) -> Any:
                with journal.open("a") as file:
                    file.write(f"{split}\n")
                return tasks(split, **numbers)

            parts.source.tasks = noted  # type: ignore[method-assign]
            return parts

        Parts.build = build  # type: ignore[method-assign,assignment]
        return train(cfg, tmp_path / "run")()

    assert finish(watched) == 0
    read = journal.read_text().split()
    first_test = read.index("test")
    assert set(read[first_test:]) == {"test"}
    assert len(read[first_test:]) == 2  # six tasks, three at a time
    values = {line["step"]: line["accuracy"] for line in harness.metrics(finished) if line["split"] == "val"}
    assert CheckpointStore(finished).pointed("best") == max(values, key=lambda step: (values[step], -step))
    assert json.loads((finished / "results.json").read_text())["step"] == CheckpointStore(finished).pointed(
        "best"
    )


def test_invariant_05_class_order_in_an_episode_is_random_and_does_not_matter(place: Path) -> None:
    _, _, source = built(place, "data.way=4", "data.query_shot=2")
    key = task_keys(0, "train", first=0, count=4000, device=CPU)
    smallest = draw_classes(key, source.spec("train").num_train_classes, 4).argmin(1)
    counts = torch.bincount(smallest, minlength=4)
    # 5 binomial deviations
    assert ((counts - 1000).abs() < 5 * 27.4).all(), f"labels of the lowest class: {counts.tolist()}"
    for method in METHODS:
        if "classification" not in class_of(method).kinds:
            continue
        cfg, algorithm, source = built(place, f"algo={method}", "data.way=4", "data.query_shot=2")
        if not takes_any_way(algorithm):
            continue  # its head is learned across tasks, so that its labels have an order
        tasks = draw_tasks(algorithm, source, "test", seed=0, first=0, count=20)
        other = torch.tensor([2, 0, 3, 1])
        spec = eval_spec("test", seed=0, episodes=20, curve=False)
        support, query = (rows._replace(y=other[rows.y]) for rows in (tasks.support, tasks.query))
        scores = [
            evaluate_batch(algorithm, source.spec("test").objective, plan_wish(cfg).plan(), spec, batch)[
                "accuracy"
            ]
            for batch in (tasks, tasks._replace(support=support, query=query))
        ]
        assert torch.equal(*scores), method
        assert scores[0].mean() > 0.25


def takes_any_way(algorithm: Algorithm) -> bool:
    try:
        algorithm.check(replace(algorithm.spec, num_outputs=7, max_way=7))
    except ValueError:
        return False
    return True


def gradients_by_ranks(tasks: TaskBatch) -> Callable[[Link], dict[str, torch.Tensor]]:
    def part(link: Link) -> dict[str, torch.Tensor]:
        share, executor = (
            share_of(link.rank, link.ranks, len(tasks.key)),
            Executor(maml(order=2), TaskPlan("vmap")),
        )
        sums = executor.sums(tree_map(lambda leaf: leaf[share.start : share.stop], tasks))
        executor.write(pool(sums, share, len(tasks.key), link)[0])
        return {name: p.grad for name, p in executor.algorithm.named_parameters() if p.grad is not None}

    return part


def test_invariant_06_plans_and_ranks_agree_and_second_order_is_really_on(tmp_path: Path) -> None:
    tasks = image_tasks(3)
    for order in (1, 2):
        reference = gradients(maml(order), tasks, TaskPlan("loop"))
        for plan in (TaskPlan("vmap"), TaskPlan("vmap", 2)):
            for name, grad in gradients(maml(order), tasks, plan).items():
                torch.testing.assert_close(grad, reference[name], rtol=1e-9, atol=1e-12)
    for name, grad in together(2, gradients_by_ranks(tasks), tmp_path).items():
        torch.testing.assert_close(grad, reference[name], rtol=1e-9, atol=1e-12)
    assert mismatch(maml(order=2), image_tasks(2)) < 1e-5
    assert mismatch(maml(order=1), image_tasks(2)) > 1e-2, (
        "the first-order gradient must fail this check, or it checks nothing"
    )


def test_invariant_07_no_number_without_interval_tasks_protocol_seed_and_step(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    assert {"split", "primary", "metrics", "episodes", "step", "protocol", "seed"} <= set(results)
    assert results["primary"] in results["metrics"]
    assert f"{results['primary']}_inductive" in results["metrics"]
    assert all(set(value) == {"mean", "ci95", "std"} for value in results["metrics"].values())
    assert set(REQUIRED) <= set(results["protocol"])
    rows = (finished / "eval_test.csv").read_text().splitlines()
    assert rows[0].split(",")[0] == "task_id"
    assert len(rows) - 1 == results["episodes"]
    for line in harness.metrics(finished):
        if line["split"] != "train":
            named = {
                name
                for name in line
                if name not in ("step", "split", "episodes") and not name.endswith("_ci95")
            }
            assert {f"{name}_ci95" for name in named} <= set(line)
            assert "episodes" in line


def test_invariant_08_what_is_not_finite_never_reaches_the_weights(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    wild = harness.configuration(
        place / "cache", "algo.inner_lr=1.0e+38", "algo.adaptation_steps=2", "algo.eval_adaptation_steps=1"
    )
    assert finish(train(wild, run_dir)) == 1
    assert (
        "is not finite at step 0 (counted from 0), train tasks 0, 1, algo.inner_lr=1e+38"
        in capfd.readouterr().err
    )
    assert harness.status(run_dir)["status"] == "failed"
    assert harness.status(run_dir)["exit_code"] == 1
    weights = CheckpointStore(run_dir).newest()
    assert weights.step == 0
    assert all(
        torch.isfinite(value).all() for name, value in weights.tensors.items() if name.startswith("weights.")
    )


def test_invariant_09_a_corrupt_checkpoint_is_named_and_the_one_before_it_used(
    cfg: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    assert finish(train(cfg, run_dir), fault="end:before_results") == KILLED
    store = CheckpointStore(run_dir)
    damaged = store.path(store.steps()[-1])
    content = bytearray((damaged / WEIGHTS_FILE).read_bytes())
    content[len(content) // 2] ^= 1
    (damaged / WEIGHTS_FILE).write_bytes(content)
    assert finish(resume(run_dir)) == 0
    assert (
        f"{damaged.name} is not valid: {WEIGHTS_FILE} does not have the sha256"
        in (run_dir / "train.log").read_text()
    )
    assert_same_end(run_dir, finished)


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["train", "algo.iner_lr=1"], 2, "did you mean algo.inner_lr"),
        (["train", "algo=mamel"], 2, "did you mean algo=maml"),
        (["train", "data.way=-3", "data.shot=0"], 2, "data.shot=0 must be at least 1"),
        (["trian"], 2, "train"),
        (["resume", "{tmp}"], 2, "{tmp}"),
        (["train", "run_dir={tmp}/file/run"], 2, "choose another run_dir"),
    ],
)
def test_invariant_10_nothing_that_is_typed_gives_a_traceback(
    words: list[str],
    code: int,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without a process of its own: what would be a traceback is one here too."""
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("METALEARN_DATA", raising=False)
    try:
        ended = cli.main([word.format(tmp=tmp_path) for word in words])
    except SystemExit as end:  # of argparse
        ended = end.code
    shown, complaint = capsys.readouterr()
    assert ended == code, complaint
    assert expected.format(tmp=tmp_path) in complaint
    assert "Traceback" not in shown + complaint
