"""`Algorithm.call` and `present`: parameters replaced for the time of a call, as `torch.func.functional_call` does it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from metalearn.core import leaves_of, map_leaves
from metalearn.models.base import Norm
from tests.engine.toy import ToyAlgorithm


class Nested(ToyAlgorithm):
    """A parameter of its own and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def values(self) -> dict[str, float]:
        return {"prior": self.prior.item(), "bias": self.layer.bias.item(), "present": self.present(["layer.bias"])["layer.bias"].item()}

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
    assert str(doubled) == str({"a": (2 * torch.ones(1), 2 * torch.ones(2)), "b": [2 * torch.ones(1)], "c": ()})
    assert [leaf.numel() for leaf in leaves_of(tree)] == [1, 2, 1]


def test_the_number_of_the_inner_step_reaches_the_norms() -> None:
    class Stepped(Norm):
        def affine(self, mean: Tensor, var: Tensor, step: int = 0) -> tuple[Tensor, Tensor]:
            scale, shift = super().affine(mean, var)
            return scale, shift + step

    x = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    norm = Stepped(2)
    torch.testing.assert_close(norm(x, step=3)[0], norm(x)[0] + 3)
