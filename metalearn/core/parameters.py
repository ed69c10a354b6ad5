"""Parameters that are replaced for the time of a call, and chosen by their names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

Parameters = dict[str, Tensor]


class Swappable(nn.Module):
    """A module whose methods can be called with other parameters than its own."""

    def call(self, params: Parameters, method: str, *args: Any, **kwargs: Any) -> Any:
        """self.<method>(…) with some or all parameters replaced. Nests: the rest keep their present
        values.
        """
        if torch.compiler.is_compiling():
            return functional_call(self, params, (method, *args), kwargs, tie_weights=False)
        # What `functional_call` does, whose walk through all modules costs as much as a small network.
        homes = self._homes_of(params)
        before = {name: homes[name][0][homes[name][1]] for name in params}
        try:
            for name, value in params.items():
                home, key = homes[name]
                home[key] = value
            return getattr(self, method)(*args, **kwargs)
        finally:
            for name, value in before.items():
                home, key = homes[name]
                home[key] = value

    def present(self, names: Iterable[str]) -> Parameters:
        """The present values of these parameters: what `call` has put in their place."""
        if torch.compiler.is_compiling():
            parameters = dict(self.named_parameters())
            return {name: parameters[name] for name in names}
        names = list(names)
        homes = self._homes_of(names)
        return {name: home[key] for name in names for home, key in [homes[name]]}

    def _homes_of(self, names: Iterable[str]) -> dict[str, tuple[dict[str, Any], str]]:
        """Where the parameters of these names live: the dictionary of their module, and their key in it."""
        family, homes = self._family
        if not all(
            children.get(name) is child for children, name, child in family
        ) or not homes.keys() >= set(names):
            del self._family  # modules were replaced since, or parameters added
            _, homes = self._family
        return homes

    @cached_property
    def _family(self) -> tuple[list[tuple[dict[str, Any], str, Any]], dict[str, tuple[dict[str, Any], str]]]:
        """Every module as a child of another, and the homes of all parameters, while these are its
        children.
        """
        modules = list(self.named_modules())
        family = [
            (parent._modules, name, child) for _, parent in modules for name, child in parent._modules.items()
        ]
        homes = {
            f"{prefix}.{key}" if prefix else key: (module._parameters, key)
            for prefix, module in modules
            for key, p in module._parameters.items()
            if p is not None
        }
        return family, homes

    def forward(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The door for `functional_call`, which can only enter a module through `forward`."""
        return getattr(self, method)(*args, **kwargs)


def is_transformed() -> bool:
    """Whether a compiler or a transform of `torch.func` sees these operations, rather than ordinary autograd
    alone.
    """
    return torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None


def starting_with(names: Sequence[str], prefixes: str | Sequence[str], *, key: str) -> list[str]:
    """The names that begin with one of the prefixes, in their order. `all` means all of them.

    key: the dial that holds the prefixes. Raises ValueError naming every prefix that no name begins with.
    """
    if prefixes == "all":
        return list(names)
    wanted = [prefixes] if isinstance(prefixes, str) else list(prefixes)
    idle = [prefix for prefix in wanted if not any(name.startswith(prefix) for name in names)]
    if idle or not wanted:
        parts = {".".join(name.split(".")[:n]) for name in names for n in range(1, name.count(".") + 2)}
        close = difflib.get_close_matches(idle[0], sorted(parts), 1) if idle else []
        meant = f"; did you mean {close[0]}?" if close else ";"
        found = f"{', '.join(idle)} matches no parameter" if idle else "it matches no parameter"
        raise ValueError(f"{key}={prefixes}: {found}{meant} choose 'all' or prefixes of: {', '.join(names)}")
    return [name for name in names if name.startswith(tuple(wanted))]
