"""The contract that every algorithm keeps on every data source; new YAML files are taken in by themselves."""

from __future__ import annotations

import copy
import os
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils._pytree import tree_map

from metalearn.build import build_algorithm, build_source
from metalearn.config import compose
from metalearn.core import Algorithm, Examples, Source, Task, blank_query
from metalearn.engine.evaluate import evaluate
from metalearn.engine.execution import Executor, TaskPlan, execute
from metalearn.engine.proof import Proof, with_ordinary_norms
from metalearn.engine.update import Clip, Updater
from metalearn.errors import ConfigError
from metalearn.hashing import draw

CONF = Path(__file__).parents[1] / "conf"
ALGOS = sorted(path.stem for path in (CONF / "algo").glob("*.yaml"))
DATA = sorted(path.stem for path in (CONF / "data").glob("*.yaml"))
CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return filled(tmp_path_factory.getbasetemp() / "contract")


@cache  # tests/engine takes the fixture over, for another one as pytest sees it: what the pairs read and draw is made once all the same
def filled(root: Path) -> Path:
    """An image folder of 16 classes with 8 drawings each, and a cache that all pairs share."""
    rng = np.random.default_rng(0)
    for number in range(16):
        (root / "images" / f"class_{number:02}").mkdir(parents=True)
        template = rng.integers(0, 256, (20, 20))
        for drawing in range(8):
            noisy = np.clip(template + rng.normal(0, 20, (20, 20)), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(root / "images" / f"class_{number:02}" / f"{drawing}.png")
    return root


def overrides(algo: str, data: str, folder: Path) -> list[str]:
    words = [f"algo={algo}", f"data={data}", "device=cpu"]
    cache = f"data.cache_dir={folder / 'cache'}"
    small = {
        "glyphs": [cache, "data.way=3", "data.query_shot=2"],
        "omniglot": [cache, "data.way=3", "data.query_shot=2"],
        "image_folder": [cache, f"data.root={folder / 'images'}", "data.way=3", "data.query_shot=2"],
    }
    words += small.get(data, [])
    words += ["model.channels=8"] if data in small else []
    words += ["model.norm_statistics=support"] if data in small and algo in ("maml", "reptile") else []
    words += ["algo.eval_adaptation_steps=3"] if algo in ("maml", "reptile", "baseline") else []
    words += ["algo.inner_lr=0.01"] if algo == "maml" else []  # a rate that every kind of task can stand
    return words


@cache
def built(algo: str, data: str, folder: Path) -> tuple[Algorithm, Source] | str:
    cfg = compose(overrides(algo, data, folder))
    source = build_source(cfg, CPU)
    try:
        return build_algorithm(cfg, source, CPU), source
    except ConfigError as refusal:
        return str(refusal)


@pytest.fixture(params=[(a, d) for d in DATA for a in ALGOS], ids=lambda pair: f"{pair[0]}-{pair[1]}")
def pair(request: pytest.FixtureRequest, folder: Path) -> tuple[Algorithm, Source]:
    algo, data = request.param
    if data == "omniglot" and not os.environ.get("METALEARN_DATA"):
        pytest.skip("real Omniglot: set METALEARN_DATA to a folder that holds it")
    result = built(algo, data, folder)
    if isinstance(result, str):
        pytest.skip(result)
    return result


def drawn(algorithm: Algorithm, source: Source, count: int = 4, split: str = "val") -> Task:
    tasks = source.tasks(split, seed=7, first=3, count=count)
    return tasks._replace(draws=draw(tasks.key, algorithm.draws(source.spec(split))))


def training_batch(algorithm: Algorithm, source: Source) -> Task | Examples:
    if algorithm.trains_on == "examples":
        return source.examples(seed=0, first=0, count=12)
    return drawn(algorithm, source, 4, "train")


def predictions(algorithm: Algorithm, tasks: Task) -> Tensor:
    def one(task: Task) -> Tensor:
        adapted = algorithm.adapt(blank_query(task), steps=algorithm.eval_adaptation_steps)
        return algorithm.predict(adapted, task.query.x, task.query.mask)

    return TaskPlan("vmap").map(one, tasks)


def state(algorithm: Algorithm) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in algorithm.state_dict().items()}


def one_task(tasks: Task, i: int) -> Task:
    return tree_map(lambda leaf: leaf[i : i + 1], tasks)


def test_loss_gradient_and_metrics_are_finite(pair: tuple[Algorithm, Source]) -> None:
    algorithm, source = pair
    if algorithm.trains_on is None:
        assert not list(algorithm.parameters())
        return
    losses, metrics = execute(algorithm, training_batch(algorithm, source), TaskPlan("vmap", 2))
    assert losses.isfinite().all()
    assert all(leaf.isfinite().all() for leaf in torch.utils._pytree.tree_leaves(metrics))
    grads = {name: p.grad for name, p in algorithm.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in grads.values())
    assert any(g.norm() > 0 for g in grads.values()), "nothing would be learned"


def test_loop_equals_vmap(pair: tuple[Algorithm, Source]) -> None:
    algorithm, source = pair
    if algorithm.trains_on is None:
        tasks = drawn(algorithm, source)
        singles = torch.cat([predictions(algorithm, one_task(tasks, i)) for i in range(4)])
        torch.testing.assert_close(predictions(algorithm, tasks), singles)
        return
    batch = training_batch(algorithm, source)
    assert Proof(algorithm, batch).problem(Executor(algorithm, TaskPlan("vmap"))) is None
    # And to the last digits in float64, where no value lies so near a kink that two right gradients differ.
    exact = copy.deepcopy(algorithm).double()
    batch = tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, batch)
    results = []
    for plan in (TaskPlan("loop"), TaskPlan("vmap")):
        losses, _ = execute(exact, batch, plan)
        results.append((losses, {name: p.grad.clone() for name, p in exact.named_parameters()}))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-10, atol=1e-10)
    largest = max(g.norm() for g in results[0][1].values())
    for name, grad in results[0][1].items():
        gap = (grad - results[1][1][name]).norm()
        assert gap <= 1e-9 * grad.norm() + 1e-12 * largest, f"{name}: loop and vmap differ by {gap / grad.norm():.1e}"


def test_evaluation_leaves_the_state_bit_equal_and_repeats_itself(pair: tuple[Algorithm, Source]) -> None:
    algorithm, source = pair
    before = state(algorithm)
    torch.manual_seed(1)
    first = evaluate(algorithm, source, "val", seed=5, episodes=6, plan=TaskPlan("vmap"), batch_size=4)
    torch.manual_seed(2)
    second = evaluate(algorithm, source, "val", seed=5, episodes=6, plan=TaskPlan("vmap"), batch_size=4)
    assert first.summary == second.summary
    assert all(torch.equal(before[name], value) for name, value in algorithm.state_dict().items())
    primary = source.spec("val").objective.primary
    assert {primary, f"{primary}_inductive"} <= set(first.summary)


def test_running_averages_follow_the_training_batches(pair: tuple[Algorithm, Source]) -> None:
    algorithm, source = pair
    if getattr(algorithm, "model", None) is None or algorithm.model.norm_statistics != "running":
        return
    actor = copy.deepcopy(algorithm)
    updater = Updater(actor, torch.optim.SGD(actor.parameters(), lr=0.1, fused=True), lambda step: 1.0, Clip())
    losses, metrics = execute(actor, training_batch(actor, source), TaskPlan("vmap"))
    statistics = metrics["statistics"]
    updater.update(0, losses, statistics)
    for norm, (mean, var) in zip(actor.model.norms(), statistics, strict=True):
        torch.testing.assert_close(norm.running_mean, 0.1 * mean)
        torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * var)


def test_answers_of_the_query_never_reach_the_prediction(pair: tuple[Algorithm, Source]) -> None:
    algorithm, source = pair
    tasks = drawn(algorithm, source)
    other = tasks._replace(query=tasks.query._replace(y=tasks.query.y.flip(1)))
    torch.testing.assert_close(predictions(algorithm, tasks), predictions(algorithm, other), rtol=0, atol=0)


def test_inductive_predictions_do_not_depend_on_other_queries(pair: tuple[Algorithm, Source]) -> None:
    algorithm, source = pair
    tasks = drawn(algorithm, source)

    def predict(task: Task, keep: int) -> Tensor:
        blank = blank_query(task)
        adapted = algorithm.inductive(algorithm.adapt(blank, steps=algorithm.eval_adaptation_steps), blank)
        rows = tree_map(lambda leaf: leaf[:keep], task.query)
        return algorithm.predict(adapted, rows.x, rows.mask)

    everything = torch.vmap(lambda task: predict(task, len(task.query.y)))(tasks)
    alone = torch.vmap(lambda task: predict(task, 1))(tasks)
    torch.testing.assert_close(everything[:, :1], alone, rtol=1e-4, atol=1e-4)


def test_permuting_support_rows_does_not_change_a_method_without_minibatches(pair: tuple[Algorithm, Source]) -> None:
    algorithm, source = pair
    tasks = drawn(algorithm, source)
    if tasks.draws:
        return  # The order of minibatches is part of such a method.
    flipped = tasks._replace(support=Examples(*tree_map(lambda leaf: leaf.flip(1), tuple(tasks.support))))
    torch.testing.assert_close(predictions(algorithm, tasks), predictions(algorithm, flipped), rtol=1e-3, atol=1e-3)


def test_padded_rows_never_count(pair: tuple[Algorithm, Source]) -> None:
    algorithm, source = pair
    if not source.spec("train").ragged:
        tasks = drawn(algorithm, source)
        assert tasks.support.mask.all() and tasks.query.mask.all()
        return
    batch = training_batch(algorithm, source)
    assert not batch.support.mask.all(), "a ragged source must show ragged tasks"

    def outcome(tasks: Task) -> list[Tensor]:
        losses, _ = execute(algorithm, tasks, TaskPlan("vmap"))
        return [losses, *(p.grad.clone() for p in algorithm.parameters())]

    def fill(examples: Examples) -> Examples:
        def leaf(values: Tensor) -> Tensor:
            padding = ~examples.mask.reshape(examples.mask.shape + (1,) * (values.ndim - 2))
            return torch.where(padding, torch.tensor(1e3).to(values.dtype), values) if values.is_floating_point() else values

        return examples._replace(x=tree_map(leaf, examples.x), y=leaf(examples.y))

    filled = batch._replace(support=fill(batch.support), query=fill(batch.query))
    for clean, dirty in zip(outcome(batch), outcome(filled), strict=True):
        assert torch.equal(clean, dirty)


def test_a_compiled_gradient_is_that_of_the_loop(pair: tuple[Algorithm, Source], monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm, source = pair
    if algorithm.trains_on is None or source.name in ("omniglot", "image_folder"):
        return  # nothing to compile, or tasks of the same form as those of glyphs
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch.compiler.reset()
    if getattr(algorithm, "adaptation_steps", 0) > 2:  # the compiler unrolls them, and the second already goes on from the first
        monkeypatch.setattr(algorithm, "adaptation_steps", 2)
    batch = training_batch(algorithm, source)
    actor = with_ordinary_norms(algorithm)
    assert Proof(actor, batch).problem(Executor(actor, TaskPlan("vmap", compile=True))) is None
