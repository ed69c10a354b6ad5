"""Whether tasks hold one input in support and query: in tasks that are drawn, and how often to expect it.

Shape letters: T tasks, n rows, N pictures of a split.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
from torch import Tensor

from metalearn.core import SPLITS, Inputs, InputSpec, Source, Split
from metalearn.data.findings import SHOWN, Exhibit, Finding, Severity, percent
from metalearn.data.images import TURNS, ImageClasses
from metalearn.errors import ConfigError

log = logging.getLogger(__name__)

TASKS, AT_ONCE = 300, 5  # per split, and how many of them are in memory together
SEED = 0  # of these tasks
OFTEN = 0.01  # of tasks; what happens more rarely is a note


def support_and_query(source: Source) -> Iterator[Finding]:
    """One finding per split, by content."""
    for split in SPLITS:
        check = f"support and query ({split})"
        log.info("drawing %d tasks of split '%s'", TASKS, split)
        try:
            source.check((split,))
            shared = [len(set(support) & set(query)) for support, query in _drawn(source, split)]
        except ConfigError as error:
            reason = "; ".join(error.problems)
            yield Finding(check, "warning", f"tasks of this split cannot be drawn: {reason}")
            continue
        met = sum(number > 0 for number in shared)
        if isinstance(source, ImageClasses):
            yield _of_pictures(check, met, len(shared), *_chance(source, split))
        else:
            yield _of_rows(check, met, len(shared))


def _of_pictures(check: str, met: int, total: int, chance: float, exhibits: Sequence[Exhibit]) -> Finding:
    if not (met or chance):
        return Finding(check, "ok", f"no task can hold one input in support and query; {total} were drawn")
    text = (
        f"equal inputs in support and query are expected in {percent(chance)} of tasks; {met} of {total} "
        "drawn ones have them"
    )
    severity: Severity = "warning" if chance >= OFTEN else "note"
    return Finding(check, severity, text, [exhibit.caption for exhibit in exhibits], exhibits)


def _of_rows(check: str, met: int, total: int) -> Finding:
    if not met:
        return Finding(check, "ok", f"none of {total} tasks holds one input with one target in both")
    text = (
        f"{met} of {total} tasks hold one input with one target in both; rows whose inputs are attributes "
        "may be equal without being one"
    )
    return Finding(check, "note", text)


def _drawn(source: Source, split: Split) -> Iterator[tuple[list[int], list[int]]]:
    """What tells the rows of support and query of each task from one another."""
    spec = source.spec(split).input_spec
    image = isinstance(spec, InputSpec) and len(spec.shape) == 3
    for first in range(0, TASKS, AT_ONCE):
        tasks = source.tasks(split, seed=SEED, first=first, count=min(AT_ONCE, TASKS - first))
        parts = [_keys(part.x, None if image else part.y, part.mask) for part in (tasks.support, tasks.query)]
        yield from zip(*parts, strict=True)


def _keys(x: Inputs, y: Tensor | None, mask: Tensor) -> list[list[int]]:
    """A number for every real row of each task (T, n): equal rows have equal ones. y: compared too."""
    leaves = [x[name] for name in sorted(x)] if isinstance(x, dict) else [x]
    leaves += [] if y is None else [y]
    arrays = [leaf.reshape(*mask.shape, -1).cpu().numpy() for leaf in leaves]
    real = mask.cpu().numpy()
    return [
        [hash(b"".join(array[task, row].tobytes() for array in arrays)) for row in np.flatnonzero(real[task])]
        for task in range(len(real))
    ]


def _chance(source: ImageClasses, split: Split) -> tuple[float, list[Exhibit]]:
    """Probability that a task has equal pictures in support and query, as the learner sees them, and which
    these are.
    """
    shape, store = source.shapes[split], source._stores[split]
    rows, class_of, size = store.rows.cpu().numpy(), store.class_of_row.tolist(), store.size.tolist()
    groups: dict[bytes, list[int]] = {}
    for number in range(len(rows)):
        groups.setdefault(rows[number].tobytes(), []).append(number)
    equal = [group for group in groups.values() if len(group) > 1]
    drawn, times = 2 * shape.shot * shape.query_shot, TURNS if split in source.rotations else 1
    never = 1.0
    for group in equal:
        held = Counter(class_of[row] for row in group)
        for one, count in held.items():
            if count > 1:
                chance = shape.way / len(size) * drawn / (size[one] * (size[one] - 1))
                never *= (1 - min(1.0, chance)) ** (count * (count - 1) // 2)
        for one, other in combinations(held, 2):
            both = chance_of_both(
                one, other, len(size), shape.way, times, twins=source.rotations_as == "classes"
            )
            never *= (1 - min(1.0, both * drawn / (size[one] * size[other]))) ** (held[one] * held[other])
    names = source._set.names or [f"class {number}" for number in range(len(source._set.sizes))]
    numbers = source._set.partition[split]
    unturned = len(size) // times
    exhibits = []
    for group in equal[:SHOWN]:
        places = [divmod(class_of[row], unturned) for row in group[:4]]
        labels = [
            names[numbers[place]] + (f", turned by {90 * turn}°" if turn else "") for turn, place in places
        ]
        pictures = [np.moveaxis(rows[row], 0, -1).squeeze() for row in group[:4]]
        exhibits.append(Exhibit(" = ".join(labels), list(zip(labels, pictures, strict=True))))
    return 1 - never, exhibits


def chance_of_both(one: int, other: int, total: int, way: int, times: int, *, twins: bool) -> float:
    """Probability that a task of `way` of `total` classes has both of these two. times: of rotated copies per
    class, of which a task has one at most unless `twins`.
    """
    if twins or times == 1:
        return way * (way - 1) / (total * (total - 1)) if total > 1 else 0.0
    unturned = total // times
    if one % unturned == other % unturned or unturned < 2:
        return 0.0
    return way * (way - 1) / (unturned * (unturned - 1)) / times**2
