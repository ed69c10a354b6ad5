"""What every source of tasks keeps. Shape letters as in `core`."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from metalearn.core import SPLITS, Examples, Source, Split, TaskBatch, TaskSpec
from metalearn.engine.membership import Splits, digest
from metalearn.errors import MetalearnError
from metalearn.testing.checking import Check, NotApplicable, close, equal, require, run_all
from metalearn.testing.naming import named_tasks_can_be_gathered_again, tasks_have_an_identity

TASKS = 50  # that are looked at in one split
MOST_BATCHES = 12  # of so many tasks, in which the order of labels is looked for
RETURNS = 400  # rows that were seen in an earlier task, from which an order of labels can be told
FREE = 0.8  # share of all variance; labels that follow an order have at most 2/3
TOO_MANY = 10**6  # ways that no data give
FACTS = ("data", "split", "way", "shot", "query_shot", "partition", "augmentation")


@dataclass(frozen=True)
class SourceTrial:
    """make(**dials): a new source, of the same data each time; dials: what is asked otherwise, as `way`,
    where it takes them.
    """

    make: Callable[..., Source]

    @property
    def parts(self) -> tuple[Any, ...]:
        return (self.source,)

    @cached_property
    def source(self) -> Source:
        return self.make()

    def tasks(self, split: Split, count: int = TASKS, *, first: int = 0, seed: int = 0) -> TaskBatch:
        return self.source.tasks(split, seed=seed, first=first, count=count)


def check_source(make: Callable[..., Source]) -> None:
    """Raise ContractError at the first promise that the source does not keep. make: as in SourceTrial."""
    run_all(SOURCE_CHECKS, SourceTrial(make))


def tasks_have_the_shapes_of_their_spec(trial: SourceTrial) -> str:
    for split in SPLITS:
        spec, task = trial.source.spec(split), trial.tasks(split, 3, first=5)
        for what, rows, size in (
            ("support", task.support, spec.support_size),
            ("query", task.query, spec.query_size),
        ):
            require_rows(f"{what} of split {split}", rows, (3, size), spec)
        require(
            task.key.shape == (3,) and task.key.dtype == torch.int64,
            f"keys are {describe(task.key)}; expected int64 of (3,)",
        )
        padded = not bool(task.support.mask.all() and task.query.mask.all())
        require(
            padded == spec.ragged,
            f"spec says ragged={spec.ragged}, but masks {'hide rows' if padded else 'are all True'} "
            f"({split})",
        )
    return f"{spec.kind}, {spec.support_size} support and {spec.query_size} query rows"


def require_rows(what: str, rows: Examples, size: tuple[int, ...], spec: TaskSpec) -> None:
    require(
        rows.mask.shape == size and rows.mask.dtype == torch.bool,
        f"mask of the {what} is {describe(rows.mask)}; expected bool of {size}",
    )
    specs = spec.input_spec if isinstance(spec.input_spec, dict) else {"x": spec.input_spec}
    inputs = rows.x if isinstance(rows.x, dict) else {"x": rows.x}
    require(
        inputs.keys() == specs.keys(),
        f"inputs of the {what} are {sorted(inputs)}, but input_spec has {sorted(specs)}",
    )
    for name, x in inputs.items():
        shape = (*size, *specs[name].shape)
        require(x.shape == shape, f"{name} of the {what} is {describe(x)}; its input_spec makes it {shape}")
    labels = spec.kind == "classification"
    shape = size if labels else (*size, spec.num_outputs)
    fits = rows.y.shape == shape and rows.y.is_floating_point() != labels
    require(
        fits,
        f"y of the {what} is {describe(rows.y)}; expected {'whole labels' if labels else 'numbers'} of "
        f"{shape}",
    )
    if labels and spec.max_way:
        low, high = int(rows.y.min()), int(rows.y.max())
        require(
            low >= 0 and high < spec.max_way,
            f"labels of the {what} are {low} to {high}; expected 0 to max_way-1={spec.max_way - 1}",
        )


def describe(values: Tensor) -> str:
    return f"{str(values.dtype).removeprefix('torch.')} of {tuple(values.shape)}"


def tasks_are_a_pure_function_of_their_numbers(trial: SourceTrial) -> str:
    """Whatever batch they come in, whatever was asked before, and in a source that was made anew."""
    together, again = trial.tasks("val", 9, first=10, seed=3), trial.make()
    again.tasks("train", seed=1, first=0, count=1)
    for first in (16, 10, 13):
        expected = tree_map(lambda leaf, start=first - 10: leaf[start : start + 3], together)
        found = again.tasks("val", seed=3, first=first, count=3)
        require(
            equal(found, expected),
            f"tasks {first} to {first + 2} of seed 3 differ from those in a larger batch; draw from their "
            "keys",
        )
    return "the same in other batches and another order"


def seeds_and_splits_give_different_tasks(trial: SourceTrial) -> str:
    count = 6 * TASKS
    keys = torch.cat([trial.tasks(split, seed=seed).key for split in SPLITS for seed in (0, 1)])
    require(
        len(keys.unique()) == count,
        f"{count} tasks of three splits and two seeds have {len(keys.unique())} keys; hash all of these",
    )
    one, other = trial.tasks("train"), trial.tasks("train", seed=1)
    require(
        not equal((one.query.x, one.query.y), (other.query.x, other.query.y)),
        "two seeds give the same tasks; draw from their keys",
    )
    return f"{count} keys"


def support_and_query_share_no_example(trial: SourceTrial) -> str:
    for split in SPLITS:
        task, ids = trial.tasks(split), Identities(trial.source.spec(split))
        support, query = ids.of(task.support), ids.of(task.query)
        twins = (
            (support[:, :, None] == query[:, None]) & task.support.mask[:, :, None] & task.query.mask[:, None]
        )
        bad = twins.flatten(1).any(1).nonzero().flatten().tolist()
        require(
            not bad,
            f"tasks {bad[:5]} of split {split} have an input in support and query; draw them without "
            "replacement",
        )
    return f"in {TASKS} tasks of each split"


def splits_share_no_example(trial: SourceTrial) -> str:
    seen: dict[int, Split] = {}
    for split in SPLITS:
        task, ids = trial.tasks(split), Identities(trial.source.spec(split))
        for rows in (task.support, task.query):
            found = ids.of(rows)[rows.mask].tolist()
            twice = next((number for number in found if seen.get(number, split) != split), None)
            where = seen[twice] if twice is not None else split
            require(
                twice is None,
                f"an input of split {split} stands in split {where} too; divide classes or users before "
                "drawing",
            )
            seen |= dict.fromkeys(found, split)
    return f"{len(seen)} different inputs"


def nobody_is_in_two_splits(trial: SourceTrial) -> str:
    """By what the source itself says, which guards evaluations on other data."""
    splits = Splits.of(trial.source)
    said, tree = splits.members, splits.to_json()
    lists = {
        split: members
        for split, members in said.items()
        if members is not None and not isinstance(members, str)
    }
    if not lists:
        raise NotApplicable(f"members={said['train']!r}: there is nobody to compare")
    require(
        len(lists) == len(SPLITS),
        f"members of {', '.join(split for split in SPLITS if split not in lists)} are not said",
    )
    again = Splits.from_json(json.loads(json.dumps(tree))).to_json()
    require(
        digest(again) == digest(tree),
        "members do not come back from JSON as they were; give them plain strings",
    )
    seen: dict[tuple[str, str], Split] = {}
    contents: dict[str, tuple[str, Split]] = {}
    for split, members in lists.items():
        for member in members:
            where = seen.setdefault((member.source, member.name), split)
            require(
                where == split,
                f"{member.name} is in split {split} and in split {where}; a class or user belongs to one",
            )
            twin, home = (
                (member.name, split)
                if member.sha256 is None
                else contents.setdefault(member.sha256, (member.name, split))
            )
            require(
                home == split,
                f"{member.name} of split {split} has the content of {twin} of split {home}; leave one of "
                "them out",
            )
    return f"{len(seen)} classes, users or groups"


class Identities:
    """Numbers by which equal examples are known. Only where an input holds measured values: different
    examples may share codes.
    """

    def __init__(self, spec: TaskSpec) -> None:
        specs = spec.input_spec if isinstance(spec.input_spec, dict) else {"x": spec.input_spec}
        self.labelled = spec.kind == "classification"
        self.names = [name for name, of in specs.items() if of.num_categories is None]
        if not self.names:
            raise NotApplicable(
                f"input_spec has codes alone ({', '.join(specs)}), which different examples may share"
            )

    def of(self, rows: Examples) -> Tensor:
        """int64 (T, n)."""
        inputs = rows.x if isinstance(rows.x, dict) else {"x": rows.x}
        # one number alone may well come twice
        parts = [inputs[name] for name in self.names] + ([] if self.labelled else [rows.y])
        return torch.stack(
            [hashed(part, rows.mask.ndim) * (number + 1) for number, part in enumerate(parts)]
        ).sum(0)


def hashed(x: Tensor, dims: int) -> Tensor:
    """A number of 63 bits for each row, equal for equal rows: a dot product with odd numbers, modulo 2^64.
    dims: of the result.
    """
    words = (
        x.double().flatten(dims).view(torch.int64)
        if x.ndim > dims
        else x.double()[..., None].view(torch.int64)
    )
    words = words ^ (words >> 29)  # of round numbers only the high bits are set
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, words.shape[-1:], generator=generator).to(words.device) * 2 + 1
    return (words * factors).sum(-1)


def labels_do_not_follow_an_order_of_the_classes(trial: SourceTrial) -> str:
    """A class that comes again gets any label: where labels follow a fixed order, those of one class vary
    less than all do.
    """
    spec = trial.source.spec("test")
    if spec.kind != "classification":
        raise NotApplicable(f"kind={spec.kind}: there are no labels")
    ids, seen = Identities(spec), {}
    classes = Unions()
    for batch in range(MOST_BATCHES):
        task = trial.tasks("test", first=batch * TASKS)
        for number, (rows, labels) in enumerate(
            zip(ids.of(task.support).tolist(), task.support.y.tolist(), strict=True)
        ):
            of_task: dict[int, int] = {}
            for row, label in zip(rows, labels, strict=True):
                classes.join(row, of_task.setdefault(label, row))
                seen[batch, number, label] = row
    labels_of: dict[int, list[int]] = {}
    for (_, _, label), row in seen.items():
        labels_of.setdefault(classes.root(row), []).append(label)
    returned = [labels for labels in labels_of.values() if len(labels) > 1]
    if sum(len(labels) - 1 for labels in returned) < RETURNS:
        raise NotApplicable(
            f"fewer than {RETURNS} inputs of {MOST_BATCHES * TASKS} tasks came again: their order cannot be "
            "told"
        )
    within = sum(spread(labels) for labels in returned) / sum(len(labels) - 1 for labels in returned)
    every = [label for labels in returned for label in labels]
    share = within / (spread(every) / (len(every) - 1))
    require(
        share > FREE,
        f"labels of one class vary {share:.0%} as much as all labels; give the classes of a task their "
        "labels at random",
    )
    return f"labels of one class vary {share:.0%} as much as all"


def spread(labels: list[int]) -> float:
    """Sum of squared distances from the mean."""
    mean = sum(labels) / len(labels)
    return sum((label - mean) ** 2 for label in labels)


class Unions:
    """Rows that were given the same label in one task, which are of one class, and theirs in turn."""

    def __init__(self) -> None:
        self.parent: dict[int, int] = {}

    def root(self, row: int) -> int:
        while self.parent.setdefault(row, row) != row:
            row = self.parent[row]
        return row

    def join(self, one: int, other: int) -> None:
        self.parent[self.root(one)] = self.root(other)


def examples_are_a_pure_stream_or_refused(trial: SourceTrial) -> str:
    source, classes = trial.source, trial.source.spec("train").num_train_classes
    if not classes:
        try:
            source.examples(seed=0, first=0, count=4)
        except (ValueError, MetalearnError) as refusal:
            require(bool(str(refusal)), "examples() refuses without a word; say what there is instead")
            return "none, refused in a sentence"
        require(
            False, "spec says num_train_classes=0, but examples() gives rows; say how many classes there are"
        )
    rows = source.examples(seed=0, first=0, count=40)
    fits = rows.y.shape == rows.mask.shape == (40,) and int(rows.y.min()) >= 0 and int(rows.y.max()) < classes
    require(
        fits,
        f"examples() gives y {describe(rows.y)} from {int(rows.y.min())} to {int(rows.y.max())} for "
        f"{classes} classes",
    )
    part = trial.make().examples(seed=0, first=10, count=5)
    require(
        equal(part, tree_map(lambda leaf: leaf[10:15], rows)),
        "examples 10 to 14 differ from those in a larger batch",
    )
    return f"rows of {classes} classes"


def more_classes_than_there_are_is_refused(trial: SourceTrial) -> str:
    if trial.source.spec("train").kind != "classification":
        raise NotApplicable(f"kind={trial.source.spec('train').kind}: there are no ways")
    if not takes(trial.make, "way"):
        raise NotApplicable("way is no dial of this source")
    try:
        source = trial.make(way=TOO_MANY)
        source.check(SPLITS)
        source.tasks("test", seed=0, first=0, count=1)
    except (ValueError, MetalearnError) as refusal:
        require(
            str(TOO_MANY) in str(refusal), f"way={TOO_MANY} is refused without naming the value: {refusal}"
        )
        return "refused in a sentence"
    require(
        False,
        f"way={TOO_MANY} is taken, though there cannot be so many classes; raise ValueError that names how "
        "many there are",
    )
    raise AssertionError


def takes(make: Callable[..., Source], dial: str) -> bool:
    parameters = inspect.signature(make).parameters.values()
    return any(p.name == dial or p.kind is p.VAR_KEYWORD for p in parameters)


def fingerprint_and_protocol_are_stable_and_json(trial: SourceTrial) -> str:
    one, other = trial.source, trial.make()
    require(
        one.fingerprint() == other.fingerprint(),
        "two sources of the same data have other fingerprints; hash the data and its dials",
    )
    for split in SPLITS:
        protocol = one.protocol(split)
        missing = [fact for fact in FACTS if fact not in protocol]
        require(
            not missing,
            f"the protocol of {split} lacks {', '.join(missing)}; a result cannot be read without (None "
            "where there is none)",
        )
        require(
            json.loads(json.dumps(protocol)) == protocol,
            f"the protocol of {split} does not come back from JSON; use plain values",
        )
    return f"sha256 {one.fingerprint()[:8]}…"


def tasks_come_in_the_precision_of_the_run(trial: SourceTrial) -> str:
    single = trial.tasks("train", 2)
    with default_dtype(torch.float64):
        double = trial.make().tasks("train", seed=0, first=0, count=2)
    for expected, found in zip(tree_leaves(single), tree_leaves(double), strict=True):
        wanted = torch.float64 if expected.is_floating_point() else expected.dtype
        require(
            found.dtype == wanted,
            f"with device.precision=float64 a tensor is {found.dtype}; make numbers of "
            "torch.get_default_dtype()",
        )
        require(
            close(found.to(expected.dtype), expected, 1e-5),
            "tasks of float64 have other values than those of float32",
        )
    return "float32 and float64"


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SOURCE_CHECKS: tuple[Check, ...] = (
    tasks_have_the_shapes_of_their_spec,
    tasks_are_a_pure_function_of_their_numbers,
    seeds_and_splits_give_different_tasks,
    support_and_query_share_no_example,
    splits_share_no_example,
    nobody_is_in_two_splits,
    labels_do_not_follow_an_order_of_the_classes,
    examples_are_a_pure_stream_or_refused,
    more_classes_than_there_are_is_refused,
    fingerprint_and_protocol_are_stable_and_json,
    tasks_come_in_the_precision_of_the_run,
    tasks_have_an_identity,
    named_tasks_can_be_gathered_again,
)
