"""Whose batch-norm statistics count, what masks hide, which weights adapt, and what Reptile's gradient is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metalearn.algorithms.baseline import Baseline
from metalearn.algorithms.maml import MAML
from metalearn.algorithms.pixel_nn import PixelNN
from metalearn.algorithms.protonet import ProtoNet
from metalearn.core import Algorithm, Examples, Task, TaskSpec, blank_query
from metalearn.engine.executor import TaskPlan, execute
from metalearn.engine.fitting import obstacles
from metalearn.models.base import Model
from metalearn.models.conv4 import Conv4
from tests.reference.tasks import IMAGE, image_spec, image_tasks, with_draws
from tests.reference.test_gradients import maml, perturbed, reptile
from tests.shipped import built


def one_task(tasks: Task) -> Task:
    return tree_map(lambda leaf: leaf[0], tasks)


def predict_first(algorithm: Algorithm, task: Task, num_queries: int, *, inductive: bool) -> Tensor:
    """The first query's prediction when the first `num_queries` are asked together."""
    blank = blank_query(task)
    adapted = algorithm.adapt(blank, steps=algorithm.eval_adaptation_steps)
    adapted = algorithm.inductive(adapted, blank) if inductive else adapted
    return algorithm.predict(adapted, task.query.x[:num_queries], task.query.mask[:num_queries])[0]


def protonet(norm_statistics: str) -> Algorithm:
    torch.manual_seed(0)
    return perturbed(
        built(ProtoNet, built(Conv4, IMAGE, channels=16, norm_statistics=norm_statistics), image_spec())
    )


def reptile_with(norm_statistics: str) -> Algorithm:
    algorithm = reptile()
    algorithm.norm_statistics = norm_statistics
    algorithm.transductive = norm_statistics == "transductive"
    return algorithm


ADAPTED = ("transductive", "support", "support_and_one")
CASES = [
    *((lambda statistics: maml(norm_statistics=statistics), statistics) for statistics in ADAPTED),
    *((reptile_with, statistics) for statistics in ADAPTED),
    *((protonet, statistics) for statistics in ("transductive", "support", "running")),
]


@pytest.mark.parametrize(
    ("make", "statistics"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_queries_influence_each_other_exactly_where_the_protocol_says_so(make, statistics: str) -> None:
    algorithm = make(statistics)
    task = one_task(with_draws(algorithm, image_tasks(1)))
    assert algorithm.transductive == (statistics == "transductive")
    plain, fewer = (predict_first(algorithm, task, n, inductive=False) for n in (6, 2))
    assert torch.allclose(plain, fewer, rtol=1e-9) != algorithm.transductive
    together, fewer = (predict_first(algorithm, task, n, inductive=True) for n in (6, 2))
    torch.testing.assert_close(together, fewer, rtol=1e-9, atol=1e-9)


def test_reptile_gradient_is_initial_minus_adapted_weights_and_the_second_moment_is_carried_on() -> None:
    algorithm = reptile()
    optimizer = torch.optim.Adam(algorithm.parameters(), lr=algorithm.inner_lr, betas=(0.0, 0.999))
    for number in range(2):
        tasks = with_draws(algorithm, image_tasks(2))
        tasks = tree_map(lambda leaf, number=number: leaf[number : number + 1], tasks)
        start = {name: p.detach().clone() for name, p in algorithm.named_parameters()}
        _, metrics = execute(algorithm, tasks, TaskPlan("loop"))
        found = {name: p.grad.clone() for name, p in algorithm.named_parameters()}
        task = one_task(tasks)
        order = task.draws["order"].flatten()
        for step in range(algorithm.adaptation_steps):
            rows = order[step * algorithm.inner_batch_size : (step + 1) * algorithm.inner_batch_size]
            optimizer.zero_grad()
            prediction, _ = algorithm.network(task.support.x[rows])
            torch.nn.functional.cross_entropy(prediction, task.support.y[rows]).backward()
            optimizer.step()
        for name, p in algorithm.named_parameters():
            torch.testing.assert_close(found[name], start[name] - p.detach(), rtol=1e-6, atol=1e-9)
        # the original's next task goes on with the same moments
        algorithm.update_running(metrics["statistics"])
    assert algorithm.inner_steps == 2 * algorithm.adaptation_steps


def test_only_the_named_parameters_adapt() -> None:
    torch.manual_seed(0)
    dials = {"inner_lr": 0.3, "adaptation_steps": 1, "eval_adaptation_steps": 1}
    algorithm = perturbed(
        built(MAML, built(Conv4, IMAGE, channels=4), image_spec(), adapts=["head"], **dials)
    )
    adapted = algorithm.adapt(one_task(image_tasks(1)), steps=1)
    assert set(adapted["weights"]) == {"head.weight", "head.bias"}
    assert not torch.equal(adapted["weights"]["head.weight"], algorithm.head.weight)
    with pytest.raises(ValueError, match="matches no parameter"):
        built(MAML, built(Conv4, IMAGE, channels=4), image_spec(), adapts=["neck"], **dials)


def ragged(tasks: Task, fill: float) -> Task:
    """The last two support rows and the last query row become padding with this content."""

    def pad(rows: Examples, count: int) -> Examples:
        mask = rows.mask.clone()
        mask[:, -count:] = False
        return rows._replace(
            x=torch.where(mask[..., None, None, None], rows.x, fill), y=rows.y * mask, mask=mask
        )

    return tasks._replace(support=pad(tasks.support, 2), query=pad(tasks.query, 1))


@pytest.mark.parametrize("statistics", ["transductive", "support", "support_and_one"])
def test_the_content_of_padded_images_never_counts(statistics: str) -> None:
    algorithm = maml(norm_statistics=statistics)
    algorithm.spec = TaskSpec(**{**vars(algorithm.spec), "ragged": True})
    outcomes = []
    for fill in (0.0, 1e3):
        losses, _ = execute(algorithm, ragged(image_tasks(2), fill), TaskPlan("vmap"))
        outcomes.append([losses, *(p.grad.clone() for p in algorithm.parameters())])
    for clean, dirty in zip(*outcomes, strict=True):
        torch.testing.assert_close(clean, dirty, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", [ProtoNet, Baseline])
def test_methods_that_cannot_honour_a_mask_say_so(method: type[Algorithm]) -> None:
    spec = TaskSpec(**{**vars(image_spec()), "ragged": True})
    assert "ragged" in obstacles(method, spec)[0]


def test_dials_are_in_the_protocol_and_other_words_are_none() -> None:
    model = built(Conv4, IMAGE, channels=4)
    for method in (ProtoNet, PixelNN):
        with pytest.raises(ValueError, match="algo.distance=cosin is none of "):
            built(method, model, image_spec(), distance="cosin")
        assert built(method, model, image_spec(), distance="cosine").protocol() == {"distance": "cosine"}
    with pytest.raises(ValueError, match="algo.order=3 is none of 1, 2"):
        maml(order=3)
    assert maml(order=1).protocol()["order"] == 1


def test_a_step_leaves_no_autograd_graph_behind() -> None:
    for algorithm in (maml(), reptile()):
        losses, metrics = execute(algorithm, with_draws(algorithm, image_tasks(4)), TaskPlan("vmap", 2))
        leaves = [
            losses,
            *torch.utils._pytree.tree_leaves(metrics),
            *(p.grad for p in algorithm.parameters()),
        ]
        assert not any(leaf.requires_grad for leaf in leaves), (
            "graphs of all chunks would pile up until the end of the step"
        )


def test_a_method_or_model_that_lacks_a_part_is_told_which() -> None:
    class Mine(Algorithm):
        pass

    class Net(Model):
        pass

    task = one_task(image_tasks(1))
    with pytest.raises(NotImplementedError, match=r"Mine must define adapt\(task"):
        Mine(image_spec()).adapt(task, steps=1)
    with pytest.raises(NotImplementedError, match=r"Mine must define predict\(adapted"):
        Mine(image_spec()).predict({}, task.query.x, task.query.mask)
    with pytest.raises(NotImplementedError, match=r"Net must define forward\(x"):
        Net(init="default", head_init="default")(task.query.x)
