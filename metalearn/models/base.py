"""What every model is: inputs to features, batch-norm statistics as values in and out, and how weights
start.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from metalearn.core import is_transformed

Statistics = tuple[tuple[Tensor, Tensor], ...]  # one (mean, variance) per norm layer, in order

STATISTICS = ("transductive", "support", "support_and_one", "running")
AnyModule = TypeVar("AnyModule", bound=nn.Module)


class Norm(nn.Module):
    """Batch normalisation over one task's rows (Ioffe & Szegedy 2015), with its statistics as values.

    Nothing is written in the forward pass: the caller decides whose statistics count, which is a choice
    of protocol. The affine is a multiply-add outside the normalisation, because `F.batch_norm` with affine
    arguments gives wrong second-order gradients under vmap.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_channels: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.register_buffer("running_mean", torch.zeros(num_channels))
        self.register_buffer("running_var", torch.ones(num_channels))

    def forward(
        self,
        x: Tensor,
        given: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
        step: int | Tensor = 0,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x: (n, C, …) → the same shape, and the (mean, variance) that were used, each (C,).

        given: use these statistics; None measures those of x, where mask (n,) counts only the real rows.
        """
        if given is None and mask is None and self.fits_kernel(x):
            weight, bias = self.learned(step)
            y, mean, inverse = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, self.eps)
            return y, Measured.apply(x, mean.detach(), inverse.detach(), self.eps)
        mean, var = self.measure(x, mask) if given is None else given
        scale, shift = self.affine(mean, var, step)
        column = (-1, *[1] * (x.ndim - 2))
        return torch.addcmul(shift.view(column), x, scale.view(column)).to(x.dtype), (mean, var)

    def affine(self, mean: Tensor, var: Tensor, step: int | Tensor = 0) -> tuple[Tensor, Tensor]:
        """Scale and shift (C,), so that scale·x + shift is the normalised x with the learned affine.

        step: inner steps taken, for a norm whose affine differs from one to the next.
        """
        weight, bias = self.learned(step)
        scale = weight * torch.rsqrt(var + self.eps)
        return scale, bias - mean * scale

    def per_step(self, num_steps: int) -> None:
        """From now on an affine of its own for each of so many inner steps (MAML++): weight and bias become
        (num_steps, C). Steps beyond the last share its affine.
        """
        self.weight = nn.Parameter(self.weight.detach().repeat(num_steps, 1))
        self.bias = nn.Parameter(self.bias.detach().repeat(num_steps, 1))

    def learned(self, step: int | Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias (C,) after so many inner steps."""
        if self.weight.ndim == 1:
            return self.weight, self.bias
        last = len(self.weight) - 1
        if isinstance(step, int):
            return self.weight[min(step, last)], self.bias[min(step, last)]
        row = step.clamp(max=last).reshape(1)  # a tensor with one dimension: without any, it would be read
        return self.weight.index_select(0, row)[0], self.bias.index_select(0, row)[0]

    def fits_kernel(self, x: Tensor) -> bool:
        """Whether PyTorch's own kernel gives the same: once it is mapped, its second derivatives are wrong,
        and it refuses an x without elements.

        It goes through x less often, and tells the statistics that it has used.
        """
        same_type = x.dtype == self.weight.dtype and x.itemsize >= 4
        ours = type(self).affine is Norm.affine and type(self).measure is Norm.measure
        return same_type and ours and not is_transformed() and x.numel() > 0

    @staticmethod
    def measure(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """In float32 at least: a mean over many pixels has more digits than bfloat16."""
        x = x.float() if x.itemsize < 4 else x
        dims = [0, *range(2, x.ndim)]
        if mask is None:
            var, mean = torch.var_mean(x, dims, correction=0)
            return mean, var
        weight = mask.to(x.dtype).view(-1, *[1] * (x.ndim - 1))
        count = (weight.sum() * x[0, 0].numel()).clamp(min=1)
        mean = (x * weight).sum(dims) / count
        centred = x - mean.view(-1, *[1] * (x.ndim - 2))
        return mean, (centred.square() * weight).sum(dims) / count


class Measured(torch.autograd.Function):
    """(mean, variance) of x over all but its channels (C,), as a kernel has found them, with their gradient
    as functions of x.

    inverse: 1/√(variance + eps). The kernel itself drops the gradients of its statistics without a word.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, inverse: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        ctx.set_materialize_grads(False)
        return mean, inverse.reciprocal().square_().sub_(eps).clamp_(min=0)

    @staticmethod
    def backward(
        ctx: Any, of_mean: Tensor | None, of_var: Tensor | None
    ) -> tuple[Tensor | None, None, None, None]:
        """Of x, so that it can be differentiated once more: 1/n and 2·(x − mean)/n."""
        (x,) = ctx.saved_tensors
        dims, column = [0, *range(2, x.ndim)], (-1, *[1] * (x.ndim - 2))
        count = x.numel() / x.shape[1]
        grad = torch.zeros_like(x) if of_mean is None else (of_mean / count).view(column).expand_as(x)
        if of_var is not None:
            grad = grad + (of_var * 2 / count).view(column) * (x - x.mean(dims, keepdim=True))
        return grad, None, None, None


class Model(nn.Module):
    """Turns the inputs of one task into features.

    out_features: width of the features. norm_statistics: whose batch-norm statistics predictions use.
    compute_dtype: what to compute in, if not in the type of the parameters; see `lower`.
    """

    out_features: int
    norm_statistics: str = "none"
    compute_dtype: torch.dtype | None = None

    def __init__(self, *, init: str, head_init: str) -> None:
        super().__init__()
        self.init = init
        self.head_init = head_init

    def lower(self, dtype: torch.dtype) -> None:
        """Compute in this type. Parameters, norms with their statistics, and the features that come out stay
        as they are.

        The casts are explicit, since `torch.autocast` passes a convolution by under vmap without a word, and
        the threads of a backward pass on CUDA do not know its type.
        """
        self.compute_dtype = dtype
        self.kept = {name for name, module in self.named_modules() if isinstance(module, Norm)}

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Statistics]:
        dtype = self.compute_dtype
        high = (
            {
                name: p
                for name, p in self.named_parameters()
                if name.rpartition(".")[0] not in self.kept and p.dtype != dtype
            }
            if dtype
            else {}
        )
        if not high:
            result: tuple[Tensor, Statistics] = super().__call__(x, *args, **kwargs)
            return result
        x = tree_map(lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf, x)
        features, statistics = functional_call(
            self, {name: p.to(dtype) for name, p in high.items()}, (x, *args), kwargs
        )
        return features.to(next(iter(high.values())).dtype), statistics

    def forward(
        self, x: Any, given: Statistics | None = None, mask: Tensor | None = None, step: int | Tensor = 0
    ) -> tuple[Tensor, Statistics]:
        """x: n rows → features (n, out_features), and the statistics used, one pair per norm layer."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(x, given, mask, step)")

    def head(self, num_outputs: int) -> nn.Linear:
        """A linear layer on the features, started as `head_init` says."""
        return initialise(nn.Linear(self.out_features, num_outputs), self.head_init)

    def norms(self) -> list[Norm]:
        return [module for module in self.modules() if isinstance(module, Norm)]

    def running(self) -> Statistics:
        """The running averages, as `given` wants them."""
        return tuple((norm.running_mean, norm.running_var) for norm in self.norms())

    @torch.no_grad()
    def update_running(self, statistics: Statistics, momentum: float = 0.1) -> None:
        """Let the running averages follow the statistics of one outer step."""
        for norm, (mean, var) in zip(self.norms(), statistics, strict=True):
            norm.running_mean.lerp_(mean, momentum)
            norm.running_var.lerp_(var, momentum)


def initialise(module: AnyModule, scheme: str) -> AnyModule:
    """Start the weights of every convolution and linear layer; biases start at 0 except under `default`.

    default: PyTorch's own. xavier: Glorot & Bengio 2010, uniform. kaiming: He et al. 2015, normal.
    normal: N(0, 1). truncated_normal: N(0, 0.01²) cut at two deviations. zero.
    """
    fill = {
        "xavier": nn.init.xavier_uniform_,
        "kaiming": lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu"),
        "normal": nn.init.normal_,
        "truncated_normal": lambda w: nn.init.trunc_normal_(w, std=0.01, a=-0.02, b=0.02),
        "zero": nn.init.zeros_,
    }
    if scheme == "default":
        return module
    if scheme not in fill:
        raise ValueError(f"unknown initialisation {scheme!r}; choose one of {', '.join(['default', *fill])}")
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fill[scheme](layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module
