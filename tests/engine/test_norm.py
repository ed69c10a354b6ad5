"""A norm by PyTorch's own kernel: the same outputs, statistics and derivatives as by the formula, and never
where the kernel is wrong.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

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
    def work(x: Tensor) -> tuple[Tensor, ...]:
        y, (mean, var) = norm()(x)
        return y.sin(), mean.exp(), var.sqrt()

    x = rows(3, 3, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(work, x)
    assert torch.autograd.gradgradcheck(work, x)
    assert kernels


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
