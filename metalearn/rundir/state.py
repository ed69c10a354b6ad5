"""Algorithm, optimizer and random state as flat tensors and JSON values, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metalearn.errors import CheckpointError

WEIGHTS, OPTIMIZER, RANDOM, RANDOM_CUDA = "weights.", "optimizer.", "random.cpu", "random.cuda"
ADAM = {"step", "exp_avg", "exp_avg_sq"}
LIKE_PARAMETER = {
    "exp_avg",
    "exp_avg_sq",
    "max_exp_avg_sq",
    "momentum_buffer",
}  # tensors of a parameter's own shape


def pack(
    algorithm: nn.Module, optimizer: torch.optim.Optimizer | None
) -> tuple[dict[str, Tensor], list[list[Any]]]:
    """Tensors under flat names, and [parameter, key, value] of the optimizer's state that is no tensor.

    Parameter groups are not saved: they follow from the configuration, and the schedule sets their learning
    rate at every step.
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
    return {name: value.contiguous() for name, value in tensors.items()}, values


def restore(
    algorithm: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    tensors: dict[str, Tensor],
    values: list[list[Any]],
) -> None:
    """The inverse of `pack`, in place. CheckpointError for weights or a state that are not those of such a
    run.
    """
    load_weights(algorithm, tensors)
    try:
        if optimizer is not None:
            state = _optimizer_state(optimizer, tensors, values)
            optimizer.load_state_dict(
                {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
            )
        torch.set_rng_state(tensors[RANDOM])
        if RANDOM_CUDA in tensors and _on_cuda(algorithm):
            torch.cuda.set_rng_state(tensors[RANDOM_CUDA])
    except (LookupError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"the checkpoint holds another optimizer or random state than this configuration builds: {error}"
        ) from error


def _optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], values: list[list[Any]]
) -> dict[int, dict[str, Any]]:
    """{parameter: {key: value}}. ValueError for what would only be noticed in the next step, by PyTorch."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for name in tensors:
        if name.startswith(OPTIMIZER):
            index, _, key = name.removeprefix(OPTIMIZER).partition(".")
            state.setdefault(int(index), {})[key] = tensors[name]
            tensor, wanted = tensors[name], parameters[int(index)].shape if key in LIKE_PARAMETER else ()
            if (key in LIKE_PARAMETER or key == "step") and (
                tensor.shape != wanted or not tensor.is_floating_point()
            ):
                raise ValueError(f"{name} is of {tensor.dtype} and shape {tuple(tensor.shape)}")
            # the fused optimizers go by memory
            if key in LIKE_PARAMETER and tensor.stride() != parameters[int(index)].stride():
                like = torch.empty_like(parameters[int(index)], dtype=tensor.dtype, device=tensor.device)
                state[int(index)][key] = like.copy_(tensor)
    for number, key, value in values:
        state.setdefault(number, {})[key] = value
    for number, entries in state.items():
        if isinstance(optimizer, torch.optim.Adam) and not entries.keys() >= ADAM:
            raise ValueError(f"of parameter {number} it has {', '.join(entries)} only")
    return state


def load_weights(algorithm: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Weights and buffers of a checkpoint; CheckpointError if they are those of another model."""
    weights = {
        name.removeprefix(WEIGHTS): value for name, value in tensors.items() if name.startswith(WEIGHTS)
    }
    own = algorithm.state_dict()
    # not in what older versions saved
    weights |= {name: own[name] for name in ("outer_step",) if name in own and name not in weights}
    try:
        algorithm.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:500]
        raise CheckpointError(
            f"the checkpoint holds other weights than this configuration builds: {reason}"
        ) from error


def _on_cuda(algorithm: nn.Module) -> bool:
    return any(p.is_cuda for p in algorithm.parameters())
