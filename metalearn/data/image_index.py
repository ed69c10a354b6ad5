"""The pictures of a source by their names: class, and file or drawing."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING

from metalearn.core import Row, Split
from metalearn.errors import DataError

if TYPE_CHECKING:
    from metalearn.data.images import ImageSet

QUARTER = 90  # degrees


class ImageIndex:
    """Names of the rows of an image set, whose classes have names. data: of the source, for messages."""

    def __init__(self, data: str, images: ImageSet, item_word: str) -> None:
        assert images.names is not None
        self.data, self.images, self.names, self.item_word = data, images, images.names, item_word

    def names_of_split(self, split: Split, turns: int) -> list[Row]:
        """One row for each picture of a split, in the order of its store: all classes, then all of them
        turned once, …
        """
        rows = chain.from_iterable(self._rows[number] for number in self.images.partition[split])
        upright = list(rows)
        return [row._replace(turned=QUARTER * turn) for turn in range(turns) for row in upright]

    def recognised(self, row: Row) -> Row:
        """DataError for a class or a picture that is not there, or a turn that is none."""
        number = self._numbers.get(row.owner)
        if number is None:
            raise DataError(
                f"class {row.owner!r} is not in data={self.data}{_meant(row.owner, self.names)}; the file is "
                "of other data"
            )
        item = int(row.item) if self.images.items is None and str(row.item).isdecimal() else row.item
        if (row.owner, item) not in self._places:
            known = [known.item for known in self._rows[number]]
            raise DataError(
                f"class {row.owner!r} of data={self.data} has no {self.item_word} {row.item!r}; it has "
                f"{_some(known)}"
            )
        if row.turned % QUARTER or not 0 <= row.turned < 360:
            raise DataError(f"turned={row.turned} of {row.owner!r}; expected 0, 90, 180 or 270 degrees")
        return row._replace(item=item)

    def place(self, row: Row) -> int:
        """Which of the set's images it is."""
        return self._places[row.owner, row.item]

    @cached_property
    def _rows(self) -> list[list[Row]]:
        items = iter(self.images.items or ())
        numbers = self.images.items is None
        return [
            [Row(name, number if numbers else next(items)) for number in range(1, size + 1)]
            for name, size in zip(self.names, self.images.sizes, strict=True)
        ]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}

    @cached_property
    def _places(self) -> dict[tuple[str, str | int], int]:
        return {(row.owner, row.item): place for place, row in enumerate(chain.from_iterable(self._rows))}


def _meant(name: str, names: Sequence[str]) -> str:
    found = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def _some(items: Sequence[str | int]) -> str:
    if len(items) <= 3:
        return ", ".join(map(repr, items)) or "none"
    return f"{items[0]!r} to {items[-1]!r}, {len(items)} of them"
