"""A norm by PyTorch's own kernel: the same outputs, statistics and derivatives as by the formula, and never
where the kernel is wrong.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from metalearn.models.base import Norm


class Formula(Norm):
    """The same norm, which the kernel does not fit."""

    def fits_kernel(self, x: Tensor) -> bool:
        return False


class Stepwise(Norm):
    """An affine of its own for every step."""

    def affine(self, mean: Tensor, var: Tensor, step: int | Tensor = 0) -> tuple[Tensor, Tensor]:
        scale, shift = super().affine(mean, var, step)
        return scale * (1 + step), shift


class Uncentred(Norm):
    """Statistics of its own: the second moment instead of the variance."""

    @staticmethod
    def measure(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        mean, var = Norm.measure(x, mask)
        return torch.zeros_like(mean), var + mean.square()


def norm(kind: type[Norm] = Norm) -> Norm:
    made = kind(3).double()
    with torch.no_grad():
        made.weight.copy_(torch.tensor([0.5, 2.0, -1.0]))
        made.bias.copy_(torch.tensor([1.0, 0.0, 3.0]))
    return made


def rows(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every time that PyTorch's kernel was called."""
    calls: list[int] = []
    kernel = torch.native_batch_norm
    monkeypatch.setattr(torch, "native_batch_norm", lambda *args: (calls.append(1), kernel(*args))[1])
    return calls


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 2, 5)], ids=["rows", "images"])
def test_kernel_gives_what_the_formula_gives(shape: tuple[int, ...], kernels: list[int]) -> None:
    x = rows(*shape)
    y, (mean, var) = norm()(x)
    expected, (expected_mean, expected_var) = norm(Formula)(x)
    assert len(kernels) == 1
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mean, expected_mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(var, expected_var, rtol=1e-12, atol=1e-12)


def test_first_and_second_derivatives_reach_the_input_through_outputs_and_statistics(
    kernels: list[int],
) -> None:
    made = norm()

    def work(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        y, (mean, var) = functional_call(made, {"weight": weight, "bias": bias}, (x,))
        return y.sin(), mean.exp(), var.sqrt()

    x = rows(3, 3, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(work, (x, made.weight, made.bias))
    assert torch.autograd.gradgradcheck(work, (x, made.weight, made.bias))
    assert kernels


def test_channels_last_gives_the_same_with_second_derivatives(kernels: list[int]) -> None:
    def parts(kind: type[Norm], x: Tensor) -> tuple[Tensor, ...]:
        made = norm(kind)
        y, (mean, var) = made(x)
        scalar = y.sin().sum() + mean.exp().sum() + var.sqrt().sum()
        first = torch.autograd.grad(scalar, (x, made.weight, made.bias), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), (x, made.weight, made.bias))
        return y, mean, var, *first, *second

    x = rows(4, 3, 2, 5)
    expected = parts(Formula, x.requires_grad_())
    found = parts(Norm, x.detach().contiguous(memory_format=torch.channels_last).requires_grad_())
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert len(kernels) == 1
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_statistics_of_a_subclass_are_used(kernels: list[int]) -> None:
    x = rows(4, 3) + 1
    y, (mean, var) = norm(Uncentred)(x)
    torch.testing.assert_close(mean, torch.zeros(3).double())
    torch.testing.assert_close(var, x.square().mean(0))
    expected = x * torch.rsqrt(var + 1e-5) * norm().weight + norm().bias
    torch.testing.assert_close(y, expected)
    assert kernels == []


@pytest.mark.filterwarnings("ignore:var_mean")  # the statistics of nothing are NaN
@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 2, 5), (4, 3, 0, 5)])
def test_no_rows_give_no_rows(shape: tuple[int, ...]) -> None:
    y, (mean, var) = norm()(torch.empty(shape).double())
    assert y.shape == shape
    assert mean.shape == var.shape == (3,)


def test_a_channel_without_spread_has_variance_zero(kernels: list[int]) -> None:
    _, (mean, var) = norm().float()(torch.full((4, 3, 2, 2), 0.7))
    torch.testing.assert_close(var, torch.zeros(3), rtol=0, atol=1e-10)  # beside eps = 1e-5
    torch.testing.assert_close(mean, torch.full((3,), 0.7))
    assert kernels


def test_the_kernel_is_left_alone_where_it_would_be_wrong(kernels: list[int]) -> None:
    x, ordinary = rows(2, 4, 3), norm()
    torch.vmap(lambda one: ordinary(one)[0])(x)  # wrong second derivatives
    torch.func.grad(lambda one: ordinary(one)[0].sum())(x[0])
    norm(Stepwise)(x[0], step=2)  # an affine that the kernel does not know
    norm()(x[0], mask=torch.tensor([True, True, False, True]))  # rows that do not count
    norm()(x[0].to(torch.bfloat16))  # statistics need more digits
    norm()(x[0], given=(torch.zeros(3).double(), torch.ones(3).double()))  # somebody else's statistics
    assert kernels == []


def test_an_affine_per_step_starts_as_the_one_before_and_is_chosen_by_the_step(kernels: list[int]) -> None:
    plain, ours, formula = norm(), norm(), norm(Formula)
    for stepwise in (ours, formula):
        stepwise.per_step(3)
        assert stepwise.weight.shape == stepwise.bias.shape == (3, 3)
    x = rows(4, 3, 2, 5)
    assert torch.equal(ours(x, step=1)[0], plain(x)[0])
    with torch.no_grad():
        for stepwise in (ours, formula):
            stepwise.weight.mul_(torch.tensor([[1.0], [2.0], [3.0]]))
            stepwise.bias.add_(torch.tensor([[0.0], [1.0], [2.0]]))
    kernels.clear()
    for step, row in [(0, 0), (2, 2), (5, 2)]:  # what is beyond the last shares its affine
        with torch.no_grad():
            plain.weight.copy_(ours.weight[row])
            plain.bias.copy_(ours.bias[row])
        expected = plain(x)[0]
        for stepwise in (ours, formula):
            torch.testing.assert_close(stepwise(x, step=step)[0], expected, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(
                stepwise(x, step=torch.tensor(step))[0], expected, rtol=1e-12, atol=1e-12
            )
            mapped = torch.vmap(lambda one, number, norm=stepwise: norm(one, step=number)[0])
            found = mapped(x[None], torch.tensor([step]))[0]
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert len(kernels) == 3 * 3  # of the plain one and ours, by a number and by a tensor; never mapped
