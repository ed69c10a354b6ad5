"""What can be wrong with pictures and the classes that they are in: files, names, balance, duplicates."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from metalearn.core import SPLITS, Split
from metalearn.data.duplicates import (
    MOST_PAIRS,
    Pairs,
    equal_groups,
    near_pairs,
)
from metalearn.data.findings import KEPT, SHOWN, Exhibit, Finding, Severity, counted, listed
from metalearn.data.images import ImageClasses
from metalearn.data.pictures import take_prints

log = logging.getLogger(__name__)

NOT_READ: dict[str, Severity] = {"hidden": "note", "no picture": "note"}  # anything else is a warning
IN_GROUP = 6  # pictures of a group that the page shows


class Relation(NamedTuple):
    """How two equal or like pictures lie to each other. check: its name. exact, near: how bad that is."""

    check: str
    exact: Severity
    near: Severity


RELATIONS = (
    Relation("across splits", "error", "warning"),
    Relation("in two classes of a split", "warning", "warning"),
    Relation("within a class", "warning", "note"),
    Relation("of a class and its rotated copy", "note", "note"),
)
ACROSS, BETWEEN, WITHIN, OWN_COPY = range(4)


class PictureAudit:
    """Reads every picture when it is made; each method then looks at one thing."""

    def __init__(self, source: ImageClasses) -> None:
        self.source, self.pictures = source, source.pictures()
        self.prints = take_prints(self.pictures)
        self.split_of_class = self.pictures.split_of_class()
        self.split_of = self.split_of_class[self.pictures.class_of]
        self.turned = np.array([split in self.pictures.turned for split in SPLITS] + [False])
        counted_pictures = np.bincount(self.pictures.class_of, minlength=len(self.pictures.classes))
        self.size_of_class = counted_pictures
        self.sizes: dict[Split, list[int]] = {
            split: counted_pictures[list(self.pictures.partition[split])].tolist() for split in SPLITS
        }

    # Files

    def files(self) -> Iterator[Finding]:
        yield self._readable()
        yield from self._not_read()
        yield self._kinds()
        yield from self._odd()

    def _readable(self) -> Finding:
        total, broken = len(self.pictures.names), self.prints.unreadable
        if not broken:
            return Finding("reading", "ok", f"all {counted(total, 'picture')} can be read")
        names = [f"{self.pictures.names[number]} {reason}" for number, reason in broken.items()]
        return Finding("reading", "error", f"{len(broken)} of {total} pictures: {listed(names)}", names)

    def _not_read(self) -> Iterator[Finding]:
        for what, names in self.source.unread().items():
            text = f"{counted(len(names), 'entry is', 'entries are')} not used: {what}: {listed(names)}"
            yield Finding("files", NOT_READ.get(what, "warning"), text, names)

    def _kinds(self) -> Finding:
        readable = [number for number, sha256 in enumerate(self.prints.sha256) if sha256]
        if not readable:
            return Finding("sizes and modes", "note", "no picture could be read")
        height, width = self.prints.shapes[readable].T
        side = self.source.input_spec.shape[-1]
        modes = ", ".join(f"{mode} {len(numbers)}" for mode, numbers in self.prints.modes.items())
        sizes = (
            f"{width[0]}x{height[0]}"
            if len(np.unique(self.prints.shapes[readable], axis=0)) == 1
            else f"{width.min()} to {width.max()} wide, {height.min()} to {height.max()} high"
        )
        small = int((np.maximum(height, width) < side).sum())
        enlarged = f"; {small} are smaller than data.image_size={side} and enlarged" if small else ""
        return Finding("sizes and modes", "note", f"{sizes} pixels; mode {modes}{enlarged}")

    def _odd(self) -> Iterator[Finding]:
        odd = dict(self.prints.traits)
        readable = np.array([bool(sha256) for sha256 in self.prints.sha256], dtype=bool)
        if flat := np.flatnonzero(self.prints.flat & readable).tolist():
            odd["of one grey level, which shows nothing"] = flat
        for what, numbers in odd.items():
            names = [self.pictures.names[number] for number in numbers]
            text = f"{counted(len(numbers), 'picture is', 'pictures are')} {what}: {listed(names)}"
            yield Finding("odd pictures", "warning", text, names[:KEPT], self._shown(numbers))

    def _shown(self, numbers: Sequence[int]) -> list[Exhibit]:
        pictures = [(self._label(number), self.pictures.read(number).pixels) for number in numbers[:SHOWN]]
        return [Exhibit("", pictures)]

    # Classes

    def classes(self) -> Iterator[Finding]:
        yield self._names()
        yield from self._balance()

    def _names(self) -> Finding:
        alike: dict[str, list[str]] = {}
        for number, name in enumerate(self.pictures.classes):
            if self.split_of_class[number] >= 0:
                alike.setdefault(bare(name), []).append(f"{name!r} ({SPLITS[self.split_of_class[number]]})")
        found = [" and ".join(names) for names in alike.values() if len(names) > 1]
        if found:
            text = f"names that differ only by case, spaces or Unicode form: {listed(found)}"
            return Finding("names of classes", "warning", text, found)
        odd = [repr(name) for name in self.pictures.classes if unicodedata.normalize("NFC", name) != name]
        if odd:
            text = (
                f"{counted(len(odd), 'name is', 'names are')} in decomposed Unicode, which a list of "
                f"composed names does not match: {listed(odd)}"
            )
            return Finding("names of classes", "note", text, odd)
        return Finding("names of classes", "ok", "no two differ only by case, spaces or Unicode form")

    def _balance(self) -> Iterator[Finding]:
        sizes = np.array([size for found in self.sizes.values() for size in found])
        if not len(sizes):
            yield Finding("balance of classes", "warning", "no split has a class")
            return
        left = len(self.pictures.classes) - len(sizes)
        text = (
            f"{sizes.min()} to {sizes.max()} pictures per class, median {np.median(sizes):g}, Gini "
            f"{gini(sizes):.2f}; "
            + ", ".join(f"{split} {counted(len(self.sizes[split]), 'class', 'classes')}" for split in SPLITS)
        )
        yield Finding("balance of classes", "note", text + (f", {left} in no split" if left else ""))
        short = [
            f"{self.pictures.classes[number]} ({self.size_of_class[number]} of {shape.per_class} in {split})"
            for split, shape in self.source.shapes.items()
            for number in self.pictures.partition[split]
            if self.size_of_class[number] < shape.per_class
        ]
        if short:
            what = counted(len(short), "class has", "classes have")
            text = f"{what} fewer pictures than shot + query_shot ask for: {listed(short)}"
            yield Finding("balance of classes", "warning", text, short)

    # Duplicates

    def duplicates(self) -> Iterator[Finding]:
        used = np.flatnonzero(self.split_of >= 0)
        groups = equal_groups(self.prints.sha256, used)
        log.info("looking for near duplicates among %d pictures", len(used))
        pairs = near_pairs(self.prints, used, (0, 1, 2) if self.turned.any() else (0,))
        pairs = pairs.at(self._exists(pairs))
        relation = self._relations(pairs)
        exact = self._equal_after_turn(pairs)
        for number, kind in enumerate(RELATIONS):
            if number == OWN_COPY and not self.turned.any():
                continue
            yield self._exact(kind, number, groups, pairs.at((relation == number) & exact))
            yield self._near(kind, pairs.at((relation == number) & ~exact))

    def _exists(self, pairs: Pairs) -> np.ndarray:
        """Whether the data hold this pair: one of the two must be in a split whose classes are turned."""
        turned = self.turned[self.split_of[pairs.first]] | self.turned[self.split_of[pairs.second]]
        return (pairs.turn == 0) | turned

    def _relations(self, pairs: Pairs) -> np.ndarray:
        same_class = self.pictures.class_of[pairs.first] == self.pictures.class_of[pairs.second]
        same_split = self.split_of[pairs.first] == self.split_of[pairs.second]
        within = np.where(pairs.turn == 0, WITHIN, OWN_COPY)
        return np.where(~same_split, ACROSS, np.where(same_class, within, BETWEEN))

    def _equal_after_turn(self, pairs: Pairs) -> np.ndarray:
        """Which pairs are equal to the bit once the second is turned. Unturned ones never are."""
        exact = np.zeros(len(pairs.first), dtype=bool)
        for place in np.flatnonzero((pairs.turn > 0) & (pairs.correlation > 0.999)):
            first, second = (
                self.pictures.read(int(side[place])).pixels for side in (pairs.first, pairs.second)
            )
            exact[place] = np.array_equal(first, np.rot90(second, pairs.turn[place]))
        return exact

    def _exact(self, kind: Relation, number: int, groups: list[list[int]], turned: Pairs) -> Finding:
        check = f"equal pictures {kind.check}"
        found = [group for group in groups if self._holds(group, number)]
        names = [" = ".join(map(self._label, group)) for group in found] + self._pair_names(turned)
        if not names:
            return Finding(check, "ok", "none")
        several = sum(map(len, found))
        parts = [f"{counted(len(found), 'group')} of together {several} pictures"] if found else []
        if len(turned.first):
            parts.append(f"{counted(len(turned.first), 'pair')} after a rotation")
        shown = [self._exhibit(group[:IN_GROUP]) for group in found[:SHOWN]]
        return Finding(
            check,
            kind.exact,
            f"{' and '.join(parts)}: {listed(names)}",
            names[:KEPT],
            shown + self._pair_exhibits(turned, SHOWN - len(shown)),
        )

    def _holds(self, group: Sequence[int], relation: int) -> bool:
        """Whether two pictures of the group lie to each other in this way."""
        classes = {int(self.pictures.class_of[number]) for number in group}
        splits = {int(self.split_of_class[number]) for number in classes}
        if relation == ACROSS:
            return len(splits) > 1
        if relation == BETWEEN:
            return any(
                self.split_of_class[one] == self.split_of_class[other]
                for one, other in combinations(sorted(classes), 2)
            )
        return relation == WITHIN and len(classes) < len(group)

    def _near(self, kind: Relation, pairs: Pairs) -> Finding:
        check = f"near duplicates {kind.check}"
        names = self._pair_names(pairs)
        end = "" if pairs.complete else f" (of the first {MOST_PAIRS:,} pairs, where the search ended)"
        if not names:
            return Finding(check, "note" if end else "ok", f"none{end}")
        several = len({*pairs.first.tolist(), *pairs.second.tolist()})
        total = f"{counted(len(pairs.first), 'pair')} of {several} pictures{end}"
        return Finding(
            check, kind.near, f"{total}: {listed(names)}", names, self._pair_exhibits(pairs, SHOWN)
        )

    def _pair_names(self, pairs: Pairs) -> list[str]:
        rows = zip(*(column[:KEPT].tolist() for column in pairs[:3]), strict=True)
        return [
            f"{self._label(first)} ~ {self._label(second)}" + (f", turned by {90 * turn}°" if turn else "")
            for first, second, turn in rows
        ]

    def _pair_exhibits(self, pairs: Pairs, count: int) -> list[Exhibit]:
        rows = zip(*(column[: max(count, 0)].tolist() for column in pairs[:4]), strict=True)
        return [
            self._exhibit([first, second], f"correlation {correlation:.3f}", turn)
            for first, second, turn, correlation in rows
        ]

    def _exhibit(self, numbers: Sequence[int], caption: str = "equal", turn: int = 0) -> Exhibit:
        """turn: quarter turns of the last one."""
        pictures = [(self._label(number), self.pictures.read(number).pixels) for number in numbers]
        if turn:
            label, pixels = pictures[-1]
            pictures[-1] = f"{label}, turned by {90 * turn}°", np.ascontiguousarray(np.rot90(pixels, turn))
        return Exhibit(caption, pictures)

    def _label(self, number: int) -> str:
        split = self.split_of[number]
        return f"{self.pictures.names[number]} ({SPLITS[split] if split >= 0 else 'in no split'})"


def bare(name: str) -> str:
    """What is left of a name without case, spaces, underscores and forms of Unicode."""
    return "".join(unicodedata.normalize("NFKC", name).casefold().replace("_", " ").split())


def gini(sizes: np.ndarray) -> float:
    """0 where all classes are of one size, near 1 where one class has all pictures."""
    ordered, total = np.sort(sizes), sizes.sum()
    if total == 0:
        return 0.0
    rank = np.arange(1, len(sizes) + 1)
    return float((2 * rank - len(sizes) - 1) @ ordered / (len(sizes) * total))
