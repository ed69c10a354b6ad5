"""A default stands in one place, the YAML: a class that is made from one has none for the keys there, but for
None, which says that a relative has no such key.
"""

from __future__ import annotations

import inspect

import pytest

from metalearn.build.instantiate import BASES, NOT_ARGUMENTS, arguments_of, resolve
from metalearn.config.compose import compose
from metalearn.config.loader import Library, packaged_options
from metalearn.engine.evaluate import EvalSpec
from metalearn.engine.settings import Settings
from metalearn.rundir.choices import GROUPS


@pytest.mark.parametrize(
    ("group", "option"),
    [
        (group, option)
        for group in GROUPS
        for option in packaged_options(group)
        if group in BASES and group != "optimizer"  # whose classes are PyTorch's
    ],
)
def test_no_default_is_typed_in_yaml_and_code(group: str, option: str) -> None:
    node = Library().read(group, option)
    cls = resolve(f"{group}._target_", node["_target_"], BASES[group], [])
    taken = arguments_of(cls).parameters
    keys = node.keys() - {"_target_", "about", *NOT_ARGUMENTS.get(group, ())}
    twice = [key for key in sorted(keys) if taken[key].default not in (inspect.Parameter.empty, None)]
    assert twice == [], (
        f"{cls.__name__} has defaults for {', '.join(twice)}, which conf/{group}/{option} sets"
    )
    positional = [key for key in sorted(keys) if taken[key].kind is not inspect.Parameter.KEYWORD_ONLY]
    assert positional == [], f"{cls.__name__} takes {', '.join(positional)} by position"


@pytest.mark.parametrize(("block", "cls"), [("eval", EvalSpec), ("trainer", Settings)])
def test_no_default_of_the_primary_configuration_is_typed_in_code(block: str, cls: type) -> None:
    taken, keys = inspect.signature(cls).parameters, compose([])[block].keys()
    assert keys <= taken.keys()
    twice = [key for key in sorted(keys) if taken[key].default is not inspect.Parameter.empty]
    assert twice == [], f"{cls.__name__} has defaults for {', '.join(twice)}, which conf/train.yaml sets"
