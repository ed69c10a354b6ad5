"""Who is in which split of a run's data, kept in `splits.json`, and whether an evaluation would meet one that
was trained on.

What is compared is who is there, not which keys of the configuration changed. Two members are the same if
their content is, or if their source and name are.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metalearn.core import DRAWN_WITHOUT_END, SPLITS, Member, Members, Source, Split, TaskSpec
from metalearn.errors import ConfigError, DataError

FILE = "splits.json"
DIGITS = 16  # of a sha256 that the file keeps: two of a million members share them once in 40 million runs
NAMED = 5  # members that a message names before it counts
SHA256 = re.compile("[0-9a-f]{64}")
Tree = dict[str, Any]


@dataclass(frozen=True)
class Splits:
    """data: name of a source. members: of each split."""

    data: str
    members: Mapping[Split, Members]

    @staticmethod
    def of(source: Source) -> Splits:
        """ConfigError as in `members_of`."""
        return Splits(source.name, {split: members_of(source, split) for split in SPLITS})

    def to_json(self) -> Tree:
        """{"data": name, split: {source: {name: the sha256's first digits, or null}}}; `drawn without end` or
        null for a split.
        """
        return {"data": self.data, **{split: _tree(self.members[split]) for split in SPLITS}}

    @staticmethod
    def from_json(tree: Any) -> Splits:
        """The inverse. ValueError or another of its kin for a tree that is none of these."""
        if not isinstance(tree["data"], str) or tree.keys() != {"data", *SPLITS}:
            raise ValueError("its entries are none of a division into splits")
        return Splits(tree["data"], {split: _members(tree[split]) for split in SPLITS})

    def describe(self) -> str:
        """One line: how many are in each split, or what is known of it."""
        words = {None: "not said", DRAWN_WITHOUT_END: DRAWN_WITHOUT_END}
        parts = {
            split: words[found] if found is None or isinstance(found, str) else len(found)
            for split, found in self.members.items()
        }
        return f"{self.data}: {', '.join(f'{split} {part}' for split, part in parts.items())}"


def digest(tree: Tree) -> str:
    """sha256 over the content of splits.json, however it is laid out."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def members_of(source: Source, split: Split) -> Members:
    """What the source says of the split. ConfigError for what could not be compared, or not be read back from
    the file.
    """
    found: Any = source.members(split)
    if found is None or (isinstance(found, str) and found == DRAWN_WITHOUT_END):
        return found
    many = isinstance(found, Sequence) and not isinstance(found, str)
    wrong = f"is {found!r:.100}"
    if many:
        odd = next((member for member in found if not _readable(member)), None)
        places = {member[:2]: number for number, member in enumerate(found)} if odd is None else {}
        twice = next(
            (member for number, member in enumerate(found) if places.get(member[:2], number) != number), None
        )
        if odd is None and twice is None:
            return found
        wrong = f"holds {odd!r:.200}" if twice is None else f"holds {twice!r:.200} twice"
    raise ConfigError(
        f"Source.members({split!r}) of data={source.name} {wrong}; expected Member(source, name, sha256) of "
        "two str and 64 hexadecimal "
        "digits or None, each once, or DRAWN_WITHOUT_END, or None"
    )


def _readable(member: Any) -> bool:
    if not isinstance(member, Member) or not (
        isinstance(member.source, str) and isinstance(member.name, str)
    ):
        return False
    return member.sha256 is None or (
        isinstance(member.sha256, str) and SHA256.fullmatch(member.sha256) is not None
    )


def seen_in(split: Split) -> str:
    """For the protocol: where in its training a run has met the members of its own split, in the words of
    `refuse_seen`.
    """
    return "none" if split == "test" else split


class SeenError(ConfigError):
    """Who would be judged as new was trained on, or chose the checkpoint. names: of those. where: train or
    val. facts: what the protocol says if they are judged all the same.
    """

    def __init__(self, message: str, seen: Sequence[Member], where: Split, facts: dict[str, Any]) -> None:
        super().__init__(message)
        self.names = {member.name for member in seen}
        self.facts = {"seen_in": where, "anyway": True, "seen_members": len(self.names), **facts}


def refuse_seen(trained: Splits, split: Split, found: Members, data: str) -> dict[str, Any]:
    """Facts for the protocol; ConfigError if the run has met, in training, who would be judged as new.

    trained: of the run. split, found, data: which split is judged, who is in it, and the name of its source,
    whose fingerprint is not the run's. The split `train` may be judged where all of it was trained on, and
    `val` may hold who chose the checkpoint.
    """
    other = {"cross_domain": True, "trained_on": trained.data}
    if found is None or None in trained.members.values():
        silent = data if found is None else trained.data
        raise ConfigError(
            f"data={silent} does not say who is in its splits (Source.members), so that nobody knows whether "
            "the run was trained on "
            f"split '{split}' of this data; judge the run on the data that it was trained on"
        )
    if isinstance(found, str):
        return {"seen_in": "none", **(other if data != trained.data else {})}
    in_train, in_val = (_same(found, trained.members[name]) for name in ("train", "val"))
    known = in_train or in_val or _same(found, trained.members["test"])
    crossing = other if data != trained.data or not known else {}
    if in_train and not (split == "train" and len(in_train) == len(found)):
        message = _refusal(split, data, in_train, "this run was trained on")
        raise SeenError(message, [*in_train, *in_val], "train", crossing)
    if in_val and split != "val":
        message = _refusal(split, data, in_val, "chose this run's checkpoint (its split 'val')")
        raise SeenError(message, in_val, "val", crossing)
    seen = "train" if in_train else "val" if in_val else "none"
    return {"seen_in": seen, **crossing}


def refuse_other_kind(trained: TaskSpec, found: TaskSpec, data: str) -> None:
    """ConfigError for tasks that a model cannot take, since they are of another kind than those it was
    trained on.
    """
    ways = trained.kind == found.kind == "classification"  # which an evaluation may change
    if (trained.kind, trained.input_spec) == (found.kind, found.input_spec) and (
        ways or trained.num_outputs == found.num_outputs
    ):
        return
    of_run, of_data = (f"{spec.kind} of {_inputs(spec)}" for spec in (trained, found))
    raise ConfigError(
        f"data={data} gives tasks of {of_data}, but this run was trained on {of_run}; choose data of the "
        "same kind and inputs"
    )


def refuse_other_division(trained_on: str | None, found: Splits) -> None:
    """DataError if a run's data are divided otherwise than when it began. trained_on: their digest then;
    None: an older run.
    """
    now = digest(found.to_json())
    if trained_on not in (None, now):
        then_and_now = f"sha256 {now[:12]}… of {FILE}, was {str(trained_on)[:12]}…"
        raise DataError(
            f"who is train, val and test is not what it was for this run ({then_and_now}); divide the data "
            "as then, or start a new run"
        )


def _inputs(spec: TaskSpec) -> str:
    parts = spec.input_spec if isinstance(spec.input_spec, dict) else {"inputs": spec.input_spec}
    codes = {
        name: "" if part.num_categories is None else f" codes below {part.num_categories}"
        for name, part in parts.items()
    }
    outputs = "" if spec.kind == "classification" else f" with {spec.num_outputs} outputs"
    return " and ".join(f"{name} {part.shape}{codes[name]}" for name, part in parts.items()) + outputs


def _same(found: Sequence[Member], trained: Members) -> list[Member]:
    """Those of `found` who are among `trained`."""
    if trained is None or isinstance(trained, str):
        return []
    known = {key for member in trained for key in _keys(member)}
    return [member for member in found if not known.isdisjoint(_keys(member))]


def _keys(member: Member) -> Iterator[tuple[str, ...]]:
    yield member.source, member.name
    if member.sha256 is not None:
        yield (member.sha256[:DIGITS],)


def _refusal(split: Split, data: str, seen: Sequence[Member], how: str) -> str:
    names = ", ".join(member.name for member in seen[:NAMED]) + (
        f" and {len(seen) - NAMED} more" if len(seen) > NAMED else ""
    )
    return (
        f"split '{split}' of data={data} holds {len(seen)} that {how}, by content or by name: {names}; "
        "leave them out, divide the data as the run did, or train a run that has not met them"
    )


def _tree(members: Members) -> Any:
    if members is None or isinstance(members, str):
        return members
    tree: Tree = {}
    for source, name, sha256 in members:
        tree.setdefault(source, {})[name] = sha256 and sha256[:DIGITS]
    return tree


def _members(tree: Any) -> Members:
    if tree is None or tree == DRAWN_WITHOUT_END:
        return tree
    return [
        Member(source, name, _hexadecimal(value))
        for source, named in tree.items()
        for name, value in _items(named)
    ]


def _items(tree: Any) -> Iterable[tuple[str, Any]]:
    items: Iterable[tuple[str, Any]] = tree.items()
    return items


def _hexadecimal(value: Any) -> str | None:
    if value is not None and not (isinstance(value, str) and len(value) == DIGITS):
        raise ValueError(f"{str(value)[:40]!r} is no beginning of a sha256")
    return value
