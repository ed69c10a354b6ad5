"""A convolution with its norm by the moments of patches, and pooling by comparisons: the same numbers as
written plainly.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.utils._python_dispatch import TorchDispatchMode

from metalearn.core import Parameters
from metalearn.models.base import Norm
from metalearn.models.convolution import MOST_INPUTS, max_pool, normalised

MASK = torch.tensor([True, True, False, True, False])


class Layer(nn.Module):
    """The two ways to write it: `patches` is ours, `plain` the norm of the convolution."""

    def __init__(self, stride: int, channels: int = 1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(channels, 6, 3, stride=stride, padding=1, bias=False, dtype=torch.float64)
        self.norm = Norm(6).double()
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator, dtype=p.dtype)

    def forward(
        self, way: str, x: Tensor, given: tuple[Tensor, Tensor] | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        y, statistics = (
            normalised(self.conv, self.norm, x, given, mask)
            if way == "patches"
            else self.norm(self.conv(x), given, mask)
        )
        return y, *statistics


def images(channels: int = 1, *, far: float = 0.0) -> Tensor:
    return far + torch.rand(
        5, channels, 9, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
def test_outputs_and_statistics_are_those_of_the_norm_of_the_convolution(
    stride: int, channels: int, mask: Tensor | None
) -> None:
    layer = Layer(stride, channels)
    assert layer.conv.weight[0].numel() <= MOST_INPUTS
    for found, expected in zip(
        layer("patches", images(channels), None, mask),
        layer("plain", images(channels), None, mask),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_the_statistics_of_somebody_else_are_used_as_they_are() -> None:
    layer = Layer(1)
    given = (torch.linspace(-1, 1, 6, dtype=torch.float64), torch.linspace(0.5, 2, 6, dtype=torch.float64))
    found, mean, var = layer("patches", images(), given)
    torch.testing.assert_close(found, layer("plain", images(), given)[0], rtol=1e-11, atol=1e-11)
    assert mean is given[0]
    assert var is given[1]


def test_the_small_variance_of_a_filter_that_sees_differences_keeps_its_digits_in_float32() -> None:
    """Of a smooth image, whose neighbouring pixels are nearly equal."""
    layer, x = Layer(1), F.interpolate(images(), scale_factor=8, mode="bilinear")[..., 8:-8, 8:-8].float()
    layer.conv.padding = (0, 0)
    with torch.no_grad():
        layer.conv.weight.sub_(layer.conv.weight.mean((2, 3), keepdim=True))
    exact = layer.float().double()("plain", x.double())[2]
    found = layer.float()("patches", x)[2]
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
def test_first_and_second_order_gradients_are_those_of_the_norm_of_the_convolution(
    mask: Tensor | None,
) -> None:
    layer, x = Layer(2), images()
    weights = {name: p.detach() for name, p in layer.named_parameters()}

    def gradients(way: str) -> Parameters:
        def loss(weights: Parameters) -> Tensor:
            y, mean, var = functional_call(layer, weights, (way, x, None, mask))
            return y.tanh().square().mean() + mean.sum() * var.sum()

        def after_a_step(weights: Parameters) -> Tensor:
            return loss(
                {
                    name: w - 0.3 * g
                    for (name, w), g in zip(weights.items(), grad(loss)(weights).values(), strict=True)
                }
            )

        return {
            **grad(loss)(weights),
            **{f"second {name}": g for name, g in grad(after_a_step)(weights).items()},
        }

    expected = gradients("plain")
    for name, found in gradients("patches").items():
        torch.testing.assert_close(found, expected[name], rtol=1e-9, atol=1e-11)


def test_tasks_with_weights_of_their_own_can_be_mapped() -> None:
    layer = Layer(2)
    x = torch.stack([images(), images(far=1.0)])
    weights = {name: torch.stack([p.detach(), 2 * p.detach()]) for name, p in layer.named_parameters()}
    together = torch.vmap(lambda weights, x: functional_call(layer, weights, ("patches", x)))(weights, x)
    for task in range(2):
        alone = functional_call(layer, {name: w[task] for name, w in weights.items()}, ("plain", x[task]))
        for found, expected in zip(together, alone, strict=True):
            torch.testing.assert_close(found[task], expected, rtol=1e-10, atol=1e-10)


def test_rows_of_padding_change_nothing() -> None:
    layer, x = Layer(1), images()
    spoilt = torch.where(MASK.view(-1, 1, 1, 1), x, 1e3)
    for found, expected in zip(
        layer("patches", spoilt, None, MASK), layer("patches", x, None, MASK), strict=True
    ):
        rows = MASK if found.ndim > 1 else slice(None)
        assert torch.equal(found[rows], expected[rows])


class Convolutions(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(
        self,
        func: object,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        self.count += "convolution" in str(func)
        return func(*args, **(kwargs or {}))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("channels", "dtype", "expected"),
    [
        (1, torch.float64, 0),
        (1, torch.float32, 0),
        (MOST_INPUTS // 9 + 1, torch.float32, 1),
        (1, torch.bfloat16, 1),
    ],
)
def test_only_a_layer_of_few_inputs_goes_through_patches_and_not_in_bfloat16(
    channels: int, dtype: torch.dtype, expected: int
) -> None:
    """Whose rounded weights would have other statistics than those that are computed of the exact ones."""
    layer = Layer(1, channels)
    layer.conv.to(dtype)
    layer.norm.float()
    with Convolutions() as seen:
        layer("patches", images(channels).to(dtype))
    assert seen.count == expected


@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_pooling_by_comparisons_gives_the_bits_of_max_pooling_where_values_are_equal_too(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # many ties
    x = (
        torch.randint(0, 3, (4, 5, *size), generator=torch.Generator().manual_seed(0))
        .float()
        .requires_grad_()
    )
    factor = torch.randn(4, 5, size[0] // 2, size[1] // 2, generator=torch.Generator().manual_seed(1))

    def outcome(pool: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        y = pool(x)
        return y, torch.autograd.grad((y * factor).sum(), x)[0]

    expected = outcome(lambda x: F.max_pool2d(x, 2))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for found, right in zip(outcome(max_pool), expected, strict=True):
        assert torch.equal(found, right)
