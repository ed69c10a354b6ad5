"""Our networks once more in plain PyTorch, for the peers: the same layers, weights and batch norm, nothing of
ours.

Everything that saves us work saves them work too: no bias before a norm, ReLU after pooling, no running
averages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.core import Algorithm
from metalearn.models.conv4 import Conv4
from metalearn.models.mlp import MLP

Weights = Sequence[Tensor]


@dataclass(frozen=True)
class PlainNetwork:
    """A network as modules, for libraries that take modules, and as functions of lists of the same
    parameters.

    body: inputs (n, …) → features (n, D); head: features → predictions, an empty Sequential for a method
    without one.
    features: the body as a function of its parameters. names: what we call the parameters, body first.
    """

    body: nn.Sequential
    head: nn.Module
    features: Callable[[Weights, Tensor], Tensor]
    names: list[str]

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.body.parameters(), *self.head.parameters()]


def plain_network_of(algorithm: Algorithm) -> PlainNetwork:
    """A copy of the algorithm's network, with its present weights."""
    model, ours = algorithm.model, dict(algorithm.named_parameters())
    features: Callable[[Weights, Tensor], Tensor]
    if isinstance(model, Conv4):
        pool, flat = model.downsample == "pool", model.readout == "flatten"
        body, features = conv4_body(ours, pool=pool, flat=flat), partial(conv4_features, pool=pool, flat=flat)
        names = [
            f"model.{part}"
            for i in range(4)
            for part in (f"convs.{i}.weight", f"bns.{i}.weight", f"bns.{i}.bias")
        ]
    elif isinstance(model, MLP):
        names = [f"model.layers.{i}.{part}" for i in range(len(model.layers)) for part in ("weight", "bias")]
        sizes = [ours[name].shape for name in names[0::2]]
        body = nn.Sequential(
            *(module for width, inputs in sizes for module in (nn.Linear(inputs, width), nn.ReLU()))
        )
        features = mlp_features
    else:
        raise ValueError(f"there is no plain network of {type(model).__name__}; expected Conv4 or MLP")
    head: nn.Module = nn.Sequential()
    if "head.weight" in ours:
        num_outputs, num_features = ours["head.weight"].shape
        head, names = nn.Linear(num_features, num_outputs), [*names, "head.weight", "head.bias"]
    network = PlainNetwork(body, head, features, names)
    for name, p in zip(names, network.parameters, strict=True):
        p.data = ours[name].detach().clone()
    return network


def conv4_body(ours: Mapping[str, Tensor], *, pool: bool, flat: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(4):
        channels, inputs = ours[f"model.convs.{i}.weight"].shape[:2]
        layers.append(nn.Conv2d(inputs, channels, 3, stride=1 if pool else 2, padding=1, bias=False))
        layers.append(nn.BatchNorm2d(channels, track_running_stats=False))
        layers += [nn.MaxPool2d(2), nn.ReLU()] if pool else [nn.ReLU()]
    readout = [nn.Flatten()] if flat else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *readout)


def conv4_features(weights: Weights, x: Tensor, *, pool: bool, flat: bool) -> Tensor:
    for conv, scale, shift in zip(weights[0::3], weights[1::3], weights[2::3], strict=True):
        x = F.batch_norm(
            F.conv2d(x, conv, stride=1 if pool else 2, padding=1), None, None, scale, shift, training=True
        )
        x = F.relu(F.max_pool2d(x, 2) if pool else x)
    return x.flatten(1) if flat else x.mean((-2, -1))


def mlp_features(weights: Weights, x: Tensor) -> Tensor:
    for weight, bias in zip(weights[0::2], weights[1::2], strict=True):
        x = F.relu(F.linear(x, weight, bias))
    return x
