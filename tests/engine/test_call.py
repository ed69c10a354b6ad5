"""`Algorithm.call` and `present`: parameters replaced for the time of a call, as `torch.func.functional_call`
does it.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from metalearn.algorithms.maml import MAML
from metalearn.core import blank_query, leaves_of, map_leaves
from metalearn.models.base import Norm
from metalearn.models.conv4 import Conv4
from tests.engine.toy import ToyAlgorithm
from tests.reference.tasks import IMAGE, image_spec, image_tasks
from tests.shipped import built


class Nested(ToyAlgorithm):
    """A parameter of its own and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def values(self) -> dict[str, float]:
        return {
            "prior": self.prior.item(),
            "bias": self.layer.bias.item(),
            "present": self.present(["layer.bias"])["layer.bias"].item(),
        }

    def nested(self) -> dict[str, float]:
        return self.call({"prior": torch.tensor([5.0])}, "values")

    def broken(self) -> None:
        raise RuntimeError("broken")


def test_calls_nest_and_leave_the_parameters_as_they_were() -> None:
    algorithm = Nested()
    before = dict(algorithm.named_parameters())
    inside = algorithm.call({"layer.bias": torch.tensor([7.0])}, "nested")
    assert inside == {"prior": 5.0, "bias": 7.0, "present": 7.0}
    with pytest.raises(RuntimeError, match="broken"):
        algorithm.call({"prior": torch.tensor([1.0])}, "broken")
    assert all(p is before[name] for name, p in algorithm.named_parameters())


def test_an_unknown_name_changes_nothing() -> None:
    algorithm = Nested()
    with pytest.raises(KeyError, match="absent"):
        algorithm.call({"prior": torch.ones(1), "absent": torch.ones(1)}, "values")
    assert algorithm.prior.item() == 0


def test_a_copy_has_parameters_of_its_own() -> None:
    algorithm = Nested()
    algorithm.values()
    copied = copy.deepcopy(algorithm)
    with torch.no_grad():
        copied.layer.bias.fill_(3.0)
    assert copied.values()["present"] == 3.0
    assert copied.call({"layer.bias": torch.tensor([9.0])}, "values")["bias"] == 9.0
    assert algorithm.values()["present"] == algorithm.layer.bias.item() != 3.0


def test_trees_keep_their_form() -> None:
    norm = Norm(1)
    tree = {"a": (torch.ones(1), torch.ones(2)), "b": [norm.weight.detach()], "c": ()}
    doubled = map_leaves(lambda leaf: 2 * leaf, tree)
    assert str(doubled) == str(
        {"a": (2 * torch.ones(1), 2 * torch.ones(2)), "b": [2 * torch.ones(1)], "c": ()}
    )
    assert [leaf.numel() for leaf in leaves_of(tree)] == [1, 2, 1]


def test_a_replaced_module_is_not_mistaken_for_the_one_before() -> None:
    algorithm = Nested()
    algorithm.values()  # its parameters are known now
    algorithm.layer = nn.Linear(1, 1)
    with torch.no_grad():
        algorithm.layer.bias.fill_(4.0)
    assert algorithm.values()["present"] == 4.0
    assert algorithm.call({"layer.bias": torch.tensor([9.0])}, "values")["bias"] == 9.0
    algorithm.more = nn.Linear(1, 1)
    assert "more.bias" in algorithm.present(["more.bias"])


class Stepped(Norm):
    """Remembers the inner step of every call."""

    def __init__(self, num_channels: int) -> None:
        super().__init__(num_channels)
        self.steps: list[int] = []

    def affine(self, mean: Tensor, var: Tensor, step: int | Tensor = 0) -> tuple[Tensor, Tensor]:
        self.steps.append(int(step))
        return super().affine(mean, var, step)


@pytest.mark.parametrize("norm_statistics", ["transductive", "support"])
def test_the_number_of_the_inner_step_reaches_the_norms_in_adaptation_and_prediction(
    norm_statistics: str,
) -> None:
    task = tree_map(lambda leaf: leaf[0], image_tasks(1))
    model = built(Conv4, IMAGE, channels=2, norm_statistics=norm_statistics)
    norm = model.bns[0] = Stepped(2)
    maml = built(
        MAML, model, image_spec(), inner_lr=0.1, adaptation_steps=2, eval_adaptation_steps=3
    ).double()
    for count, adapted in zip([0, 3], maml.adapt_path(blank_query(task), counts=[0, 3]), strict=True):
        norm.steps.clear()
        maml.predict(maml.inductive(adapted, task), task.query.x, task.query.mask)
        assert set(norm.steps) == {count}
    norm.steps.clear()
    maml.adapt(blank_query(task), steps=3)
    assert norm.steps[:3] == [0, 1, 2]
