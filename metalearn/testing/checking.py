"""What a check of the contract is: a function of what is on trial, which returns what it found in a few
words, or raises.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from metalearn.engine.explain import explanation
from metalearn.errors import MetalearnError


class ContractError(AssertionError):
    """A promise is not kept; the message says what was found, what was expected and the way out."""


class NotApplicable(Exception):  # noqa: N818 - no error
    """A check that a declaration rules out; the message begins with the declaration, as in
    `order_matters=True`.
    """


class OnTrial(Protocol):
    """parts: the objects whose authors' lines an error is traced to, the one on trial first."""

    @property
    def parts(self) -> tuple[Any, ...]: ...


Check = Callable[[Any], str]


def name_of(check: Check) -> str:
    return check.__name__.replace("_", " ")


def run(check: Check, trial: OnTrial) -> str:
    """What the check found. Raises ContractError, in which all that code on trial raises becomes a sentence,
    or NotApplicable.
    """
    try:
        return check(trial)
    except (ContractError, NotApplicable):
        raise
    except MetalearnError as error:
        raise ContractError(str(error)) from error
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        unexplained = f"{type(error).__name__}: {error} (at {place.filename}:{place.lineno})"
        raise ContractError(explanation(error, *trial.parts) or unexplained) from error


def run_all(checks: Iterable[Check], trial: OnTrial) -> None:
    for check in checks:
        try:
            run(check, trial)
        except NotApplicable:
            continue
        except ContractError as error:
            raise ContractError(f"{type(trial.parts[0]).__name__}: {name_of(check)}: {error}") from error


def require(holds: bool | Tensor, sentence: str) -> None:
    if not holds:
        raise ContractError(sentence)


def gap(values: Tensor, expected: Tensor) -> float:
    """Largest difference; 0 for equal values that are not finite, infinite where only one of two is."""
    if values.shape != expected.shape:
        return float("inf")
    difference = torch.where(values == expected, 0.0, (values.double() - expected.double()).abs()).detach()
    return float(difference.nan_to_num(nan=float("inf")).max()) if difference.numel() else 0.0


def close(values: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether all values lie within the tolerance, relative and absolute, of what was expected."""
    return values.shape == expected.shape and torch.allclose(
        values, expected, rtol=tolerance, atol=tolerance, equal_nan=True
    )


def equal(one: Any, other: Any) -> bool:
    """Whether two trees of tensors have the same bits."""
    left, right = tree_leaves(one), tree_leaves(other)
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def doubled(tree: Any) -> Any:
    """The tree with its floating-point tensors in float64."""
    return tree_map(
        lambda leaf: leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf, tree
    )


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    """Names of a state_dict whose values are not bit-equal."""
    return [
        name for name, value in after.items() if name not in before or not torch.equal(before[name], value)
    ]
