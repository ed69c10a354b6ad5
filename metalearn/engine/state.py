"""Algorithm, optimizer and random state as flat tensors and JSON values, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metalearn.errors import CheckpointError

WEIGHTS, OPTIMIZER, RANDOM, RANDOM_CUDA = "weights.", "optimizer.", "random.cpu", "random.cuda"


def pack(algorithm: nn.Module, optimizer: torch.optim.Optimizer | None) -> tuple[dict[str, Tensor], list[list[Any]]]:
    """Tensors under flat names, and [parameter, key, value] of the optimizer's state that is no tensor.

    Parameter groups are not saved: they follow from the configuration, and the schedule sets their learning rate at every step.
    """
    tensors = {f"{WEIGHTS}{name}": value for name, value in algorithm.state_dict().items()}
    values: list[list[Any]] = []
    state = optimizer.state_dict()["state"] if optimizer is not None else {}
    for parameter, entries in state.items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{OPTIMIZER}{parameter}.{key}"] = value
            else:
                values.append([parameter, key, value])
    tensors[RANDOM] = torch.get_rng_state()
    if _on_cuda(algorithm):
        tensors[RANDOM_CUDA] = torch.cuda.get_rng_state()
    return tensors, values


def restore(algorithm: nn.Module, optimizer: torch.optim.Optimizer | None, tensors: dict[str, Tensor], values: list[list[Any]]) -> None:
    """The inverse of `pack`, in place."""
    load_weights(algorithm, tensors)
    if optimizer is not None:
        state: dict[int, dict[str, Any]] = {}
        for name in tensors:
            if name.startswith(OPTIMIZER):
                parameter, _, key = name.removeprefix(OPTIMIZER).partition(".")
                state.setdefault(int(parameter), {})[key] = tensors[name]
        for number, key, value in values:
            state.setdefault(number, {})[key] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(tensors[RANDOM])
    if RANDOM_CUDA in tensors and _on_cuda(algorithm):
        torch.cuda.set_rng_state(tensors[RANDOM_CUDA])


def load_weights(algorithm: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Weights and buffers of a checkpoint; CheckpointError if they are those of another model."""
    weights = {name.removeprefix(WEIGHTS): value for name, value in tensors.items() if name.startswith(WEIGHTS)}
    try:
        algorithm.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"the checkpoint holds other weights than this configuration builds: {error}") from error


def _on_cuda(algorithm: nn.Module) -> bool:
    return any(p.is_cuda for p in algorithm.parameters())
