"""What a constructor asks of values that a person can type, for YAMLs that have no range for them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any


def one_of(key: str, value: Any, choices: Collection[Any]) -> None:
    """Raise ValueError, in the words that a range has for it, if a value is none of the choices.

    key: dotted, as it is typed on the command line.
    """
    if value not in choices:
        raise ValueError(f"{key}={value} is none of {', '.join(map(str, choices))}")
