"""What every model keeps: features and statistics as values, for one task's rows, under every plan."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.utils._pytree import tree_leaves, tree_map

from metalearn.core import Inputs, InputSpec
from metalearn.testing.checking import Check, NotApplicable, changed, close, gap, require, run_all

ROWS, TASKS = 6, 3


@dataclass(frozen=True)
class ModelTrial:
    """A model for rows of this form."""

    model: nn.Module
    input_spec: InputSpec | dict[str, InputSpec]

    @property
    def parts(self) -> tuple[Any, ...]:
        return (self.model,)

    @property
    def exact(self) -> nn.Module:
        return copy.deepcopy(self.model).double()

    def inputs(self, *leading: int, dtype: torch.dtype = torch.float32) -> Inputs:
        """Rows with these leading dimensions: numbers in [0, 1), or codes."""
        generator = torch.Generator().manual_seed(0)

        def rows(spec: InputSpec) -> Tensor:
            shape = (*leading, *spec.shape)
            if spec.num_categories is not None:
                return torch.randint(0, spec.num_categories, shape, generator=generator)
            return torch.rand(prod(shape), generator=generator).to(dtype).view(shape)

        spec = self.input_spec
        return {name: rows(one) for name, one in spec.items()} if isinstance(spec, Mapping) else rows(spec)


def check_model(model: nn.Module, input_spec: InputSpec | dict[str, InputSpec]) -> None:
    """Raise ContractError at the first promise that the model does not keep on rows of this form."""
    run_all(MODEL_CHECKS, ModelTrial(model, input_spec))


def features_and_a_head_have_the_width_that_it_names(trial: ModelTrial) -> str:
    model = trial.model
    returned = model(trial.inputs(ROWS))
    pair = isinstance(returned, tuple) and len(returned) == 2
    require(
        pair,
        f"the model returned {type(returned).__name__}; return (features, statistics), with () where there "
        "are no norms",
    )
    features, _ = returned
    width = getattr(model, "out_features", None)
    require(
        features.shape == (ROWS, width),
        f"features are {tuple(features.shape)}, but out_features={width}; expected ({ROWS}, {width})",
    )
    scores = model.head(4)(features)  # type: ignore[operator]
    require(scores.shape == (ROWS, 4), f"head(4) gives {tuple(scores.shape)}; expected ({ROWS}, 4)")
    require(
        isinstance(getattr(model, "norm_statistics", None), str),
        "it does not say norm_statistics; 'none' where there are no norms",
    )
    return f"{width} features"


def it_writes_nothing_and_repeats_itself(trial: ModelTrial) -> str:
    before = {name: value.clone() for name, value in trial.model.state_dict().items()}
    one, other = (trial.model(trial.inputs(ROWS))[0] for _ in range(2))
    require(
        torch.equal(one, other),
        f"the same rows give features {gap(one, other):.1e} apart; no dropout, no random numbers in forward",
    )
    written = changed(before, trial.model.state_dict())
    require(
        not written,
        f"forward writes into {', '.join(written)}; use metalearn.models.Norm, which returns its statistics",
    )
    return "pure"


def given_statistics_make_rows_independent(trial: ModelTrial) -> str:
    x = trial.inputs(ROWS)
    features, statistics = trial.model(x)
    again, _ = trial.model(x, given=statistics)
    require(
        close(again, features, 1e-4),
        f"its own statistics as `given` change the features by {gap(again, features):.1e}; use them",
    )
    alone, _ = trial.model(tree_map(lambda leaf: leaf[:1], x), given=statistics)
    require(
        close(alone, features[:1], 1e-4),
        f"with `given`, a row alone differs by {gap(alone, features[:1]):.1e} from it in a batch",
    )
    return f"{len(tree_leaves(statistics))} statistics"


def masked_rows_never_count(trial: ModelTrial) -> str:
    if not tree_leaves(trial.model(trial.inputs(ROWS))[1]):
        raise NotApplicable("statistics are empty: no row can reach another")
    x, mask = trial.inputs(ROWS), torch.arange(ROWS) < ROWS - 2
    features, _ = trial.model(x, mask=mask)
    spoiled = tree_map(
        lambda leaf: torch.cat([leaf[:-2], leaf[-2:] * 0 + 7]) if leaf.is_floating_point() else leaf, x
    )
    other, _ = trial.model(spoiled, mask=mask)
    require(
        torch.equal(features[mask], other[mask]),
        "features of real rows change with what masked rows hold; measure under the mask",
    )
    return "statistics of real rows only"


def first_and_second_order_are_the_same_under_vmap(trial: ModelTrial) -> str:
    """In float64. Fused norms with an affine give second derivatives under vmap that are wrong without a
    word.
    """
    model, x = trial.exact, trial.inputs(TASKS, ROWS, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    # Moved off their first values, where an affine of (1, 0) hides errors.
    params = {
        name: p.detach() + 0.1 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
        for name, p in model.named_parameters()
    }

    def loss(weights: dict[str, Tensor], rows: Inputs) -> Tensor:
        features: Tensor = functional_call(model, weights, (rows,))[0]
        return (features - 0.3).square().mean()

    def adapted(weights: dict[str, Tensor], rows: Inputs) -> Tensor:
        # at the second step the weights are a task's own, which is where fused norms go wrong
        for _ in range(2):
            grads = grad(loss)(weights, rows)
            weights = {name: weight - 0.1 * grads[name] for name, weight in weights.items()}
        return loss(weights, rows)

    for order, function in ((1, loss), (2, adapted)):
        # grad around vmap, as the plans have it: the other way round gives the right one.
        mapped = grad(lambda weights: torch.vmap(partial(function, weights))(x).sum())(params)
        singles = [grad(function)(params, tree_map(lambda leaf: leaf[task], x)) for task in range(TASKS)]
        largest = max(float(value.norm()) for value in mapped.values())
        for name, found in mapped.items():
            far = float((found - torch.stack([single[name] for single in singles]).sum(0)).norm())
            require(
                far <= 1e-9 * largest,
                f"the gradient of {name} (order {order}) is {far / max(largest, 1e-300):.1e} off under vmap; "
                "write affines as multiply-add",
            )
    return f"{len(params)} parameters"


MODEL_CHECKS: tuple[Check, ...] = (
    features_and_a_head_have_the_width_that_it_names,
    it_writes_nothing_and_repeats_itself,
    given_statistics_make_rows_independent,
    masked_rows_never_count,
    first_and_second_order_are_the_same_under_vmap,
)
