"""Work that is left out because it cannot change a number, and work that is done in one kernel instead of
many.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.utils._python_dispatch import TorchDispatchMode

from metalearn.build.objects import build_algorithm, build_optimizer, build_source
from metalearn.config.compose import compose
from metalearn.core import InputSpec, Metrics, Parameters, Plan
from metalearn.engine.evaluate import draw_tasks
from metalearn.engine.executor import Executor, TaskPlan
from metalearn.engine.update import Clip, Updater
from metalearn.models.base import Norm
from metalearn.models.conv4 import Conv4
from metalearn.models.convolution import normalised
from tests.engine.toy import ToyAlgorithm, ToySource
from tests.shipped import built

CONF = Path(__file__).parents[2] / "conf"
OPTIMIZERS = sorted(path.stem for path in (CONF / "optimizer").glob("[!_]*.yaml"))
MODELS = {"conv4": "glyphs", "mlp": "sinusoid", "user_item": "synthetic_ratings"}


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "model").glob("[!_]*.yaml")))
def test_no_convolution_before_a_norm_has_a_bias(name: str, tmp_path: Path) -> None:
    cache = [f"data.cache_dir={tmp_path}"] if name == "conv4" else []
    cfg = compose([f"data={MODELS[name]}", f"model={name}", "device=cpu", *cache])
    model = build_algorithm(cfg, build_source(cfg, torch.device("cpu")), torch.device("cpu")).model
    modules = list(model.modules())
    if any(isinstance(module, Norm) for module in modules):
        assert all(module.bias is None for module in modules if isinstance(module, nn.Conv2d))


class ReluFirst(Conv4):
    """As it is usually written."""

    def forward(self, x: Tensor, given: Any = None, mask: Any = None, step: int = 0) -> Any:
        for conv, norm in zip(self.convs, self.bns, strict=True):
            x = F.max_pool2d(F.relu(normalised(conv, norm, x)[0]), 2)
        return x.flatten(1), ()


def test_relu_after_pooling_gives_the_same_bits_in_features_and_gradients_and_the_same_second_order() -> None:
    dials = {"channels": 8, "downsample": "pool", "readout": "flatten"}
    model, usual = (built(kind, InputSpec((1, 28, 28)), **dials).double() for kind in (Conv4, ReluFirst))
    usual.load_state_dict(model.state_dict())
    weights = {name: p.detach() for name, p in model.named_parameters()}
    x = torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def outcome(network: Conv4) -> tuple[list[Tensor], list[Tensor]]:
        def loss(weights: Parameters) -> Tensor:
            return functional_call(network, weights, (x,))[0].square().mean()

        def after_a_step(weights: Parameters) -> Tensor:
            return loss(
                {
                    name: w - 0.1 * g
                    for (name, w), g in zip(weights.items(), grad(loss)(weights).values(), strict=True)
                }
            )

        features = functional_call(network, weights, (x,))[0]
        return [features, *grad(loss)(weights).values()], list(grad(after_a_step)(weights).values())

    (first, second), (first_usual, second_usual) = outcome(model), outcome(usual)
    for found, expected in zip(first, first_usual, strict=True):
        assert torch.equal(found, expected)
        assert found.abs().sum() > 0
    # whose sums run through memory in another order
    for found, expected in zip(second, second_usual, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


class Kernels(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.count[name] = self.count.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_outer_optimizer_is_one_fused_kernel_for_all_parameters(name: str) -> None:
    class Many(ToyAlgorithm):
        def __init__(self) -> None:
            super().__init__()
            self.more = nn.ParameterList(nn.Parameter(torch.ones(3)) for _ in range(10))

    cfg, algorithm = compose([f"optimizer={name}"]), Many()
    optimizer = build_optimizer(cfg, algorithm)
    assert optimizer is not None
    updater = Updater(algorithm, optimizer, lambda step: 1.0, Clip(norm=1.0))
    assert updater.fused
    for p in algorithm.parameters():
        p.grad = torch.ones_like(p)
    with Kernels() as kernels:
        updater.update(0, torch.ones(4))
    assert sum(count for kernel, count in kernels.count.items() if kernel.startswith("_fused_")) == 1
    # One kernel over the list where there would be one for each of the eleven parameters.
    assert kernels.count.get("_foreach_norm", 0) == 1
    assert all(
        kernels.count.get(kernel, 0) < 11 for kernel in ("mul", "mul_", "add", "add_", "linalg_vector_norm")
    )


def test_gradient_in_another_memory_layout_gives_the_same_update() -> None:
    class Square(ToyAlgorithm):
        transposed = False

        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.zeros(3, 4))

        def gradient(self, params: Parameters, tasks: Any, how: Plan) -> tuple[Parameters, Tensor, Metrics]:
            grads, losses, _ = super().gradient(params, tasks, how)
            grad = torch.arange(12.0).view(3, 4)
            return {**grads, "matrix": grad.t().contiguous().t() if self.transposed else grad}, losses, {}

    matrices = []
    for transposed in (False, True):
        algorithm = Square()
        algorithm.transposed = transposed
        Executor(algorithm, TaskPlan("vmap")).execute(
            draw_tasks(algorithm, ToySource(), "train", seed=0, first=0, count=2)
        )
        torch.optim.Adam(algorithm.parameters(), lr=0.1, fused=True).step()
        matrices.append(algorithm.matrix.detach())
    assert torch.equal(*matrices)
