"""What PyTorch says in riddles about a method, in a sentence with the line of its author's file and the way
out.
"""

from __future__ import annotations

import inspect
import linecache
import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from metalearn.errors import ConfigError, MetalearnError

OURS = ("metalearn", "torch", "builtins", "abc", "typing")
LOOP = "take tasks one by one with device.plan=loop"
# What torch.func says, what the line does (its own words in braces), and the way out.
RIDDLES: tuple[tuple[str, str, str], ...] = (
    (
        "called random operation",
        "draws random numbers, which would differ between plans and after a resume",
        "ask for them in `draws(spec)` and read them from task.draws",
    ),
    (
        "data-dependent control flow",
        "branches on the value of a tensor (if, while, and, or), of which there is one per task",
        f"write it with torch.where, or {LOOP}",
    ),
    (
        r"calling \.item\(\)",
        "reads the value of a tensor as a number (.item(), int(…), float(…)), of which there is one per task",
        f"go on computing with the tensor, or {LOOP}",
    ),
    (
        "indexing with a boolean mask",
        "indexes with a boolean mask, so that the shape depends on values",
        f"multiply by the mask or use torch.where, or {LOOP}",
    ),
    (
        r"can output dynamic shape\. Attempted to vmap over (?:aten::)?(\w+)",
        "calls {0}, whose result has a shape that depends on values",
        f"use masks of a fixed shape, or {LOOP}",
    ),
    (
        r"Batching rule not implemented for (?:aten::)?(lstm|gru|rnn)\w*",
        "uses a fused {0} cell, which vmap cannot map",
        f"write the cell with linear layers, or {LOOP}",
    ),
    (
        r"Batching rule not implemented for (?:aten::)?([\w.]+)",
        "uses {0}, which vmap cannot map",
        f"write it with other operations, or {LOOP}",
    ),
    (
        "would mutate a captured Tensor|in-?place arithmetic|_\\(self, \\*extra_args\\)|Batch norm got a "
        "batched tensor"
        "|doesn't match the broadcast shape",
        "writes in place into a tensor that is not of this task alone, such as a buffer",
        "make a new tensor; a buffer follows metrics['statistics'] in `update_running`, and batch norm is "
        "metalearn.models.Norm",
    ),
    (
        "must only return Tensors, got type <class '(\\w+)'>|Expected tensors, got unsupported type <class "
        "'(\\w+)'>"
        "|expected Tensor as element 0 in argument 0, but got (\\w+)|^'(float|int|bool)' object is not "
        "iterable$",
        "returns a plain {0} among its metrics or in what it adapts",
        "return tensors only: loss.detach(), or torch.tensor(value)",
    ),
    (
        "doesn't have storage|numpy\\(\\) on a (tensor|TensorWrapper)",
        "leaves PyTorch (.numpy(), .tolist(), a pointer), where nothing can be mapped or differentiated",
        "compute it with torch operations",
    ),
)


@contextmanager
def explained(*parts: Any) -> Iterator[None]:
    """Turn what the code of these parts (method, source) raises into a ConfigError of one sentence, where it
    can be explained.
    """
    try:
        yield
    except MetalearnError:
        raise
    except Exception as error:
        sentence = explanation(error, *parts)
        if sentence is None:
            raise
        raise ConfigError(sentence) from error


def explanation(error: BaseException, *parts: Any) -> str | None:
    """Where in the author's code it came from, what is wrong and the way out; None if this is not about that
    code.

    parts: the method, the source: the authors' packages are those of their classes, and of the modules
    within.
    """
    packages = {package_of(cls) for part in parts for cls in classes_of(part)} - set(OURS)
    line = author_line(error, packages)
    message = " ".join(str(error).split())
    for pattern, what, way_out in RIDDLES:
        found = re.search(pattern, message)
        if found:
            place = line or returning(error, parts, packages)
            what = what.format(next((group for group in found.groups() if group), ""))
            return f"{place or 'the method'} {what}; {way_out}"
    if line is not None:
        return (
            f"{line} failed with {type(error).__name__}: {message or 'no further reason'}; correct that line"
        )
    if isinstance(error, ValueError) and raised_by_us(error):
        author = returning(error, parts, packages)
        return (
            f"{message}; correct {author}, or declare in `kinds` the tasks that it takes"
            if author
            else f"{type(parts[0]).__name__}: {message}; choose other data or another method"
        )
    return None


class pure(TorchDispatchMode):  # noqa: N801 - read as a word after `with`
    """Random numbers, and writing into what the module holds, raise as under vmap, so that their line is
    named under any plan.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.held = {
            value.untyped_storage().data_ptr() for value in (*module.buffers(), *module.parameters())
        }

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in function.tags:
            raise RuntimeError(f"called random operation {function}")
        if (
            function._schema.is_mutable
            and isinstance(args[0], torch.Tensor)
            and args[0].untyped_storage().data_ptr() in self.held
        ):
            raise RuntimeError(f"in-place arithmetic {function} would mutate a captured Tensor")
        return function(*args, **(kwargs or {}))


def classes_of(part: Any) -> Iterator[type]:
    for owner in part.modules() if isinstance(part, nn.Module) else [part]:
        yield from type(owner).__mro__


def package_of(cls: type) -> str:
    return cls.__module__.partition(".")[0]


def author_line(error: BaseException, packages: set[str]) -> str | None:
    """The innermost line of the traceback that lies in one of these packages."""
    place = None
    for frame, number in traceback.walk_tb(error.__traceback__):
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] in packages:
            place = shown(frame.f_code.co_filename, number)
    return place


def returning(error: BaseException, parts: tuple[Any, ...], packages: set[str]) -> str | None:
    """Where the author's method begins whose result was refused, when no line of it is in the traceback any
    more.
    """
    shapes = isinstance(error, ValueError) and raised_by_us(error)
    names = (
        ("predict",)
        if shapes
        else ("losses", "task_loss", "gradient", "metrics", "predict", "adapt_path", "adapt")
    )
    for part in parts:
        for name in names:
            owner = next((cls for cls in type(part).__mro__ if name in vars(cls)), None)
            if owner is not None and package_of(owner) in packages:
                function = inspect.unwrap(vars(owner)[name])
                return shown(function.__code__.co_filename, function.__code__.co_firstlineno)
    return None


def raised_by_us(error: BaseException) -> bool:
    """Such errors are sentences."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__) if error.__traceback__ else [(None, 0)]
    return frame is not None and str(frame.f_globals.get("__name__", "")).startswith("metalearn.")


def shown(file: str, number: int) -> str:
    """A line with its place, from the working folder if it lies within."""
    inside = os.path.relpath(file) if not os.path.relpath(file).startswith("..") else file
    return f"{inside}:{number} `{linecache.getline(file, number).strip()}`"
