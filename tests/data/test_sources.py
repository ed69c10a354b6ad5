"""That each check of what a source promises notices what it is for; ours are held to them in
tests/test_contract.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metalearn.core import Examples, Member, Members, Split, TaskBatch
from metalearn.data import images
from metalearn.data.glyphs import Glyphs
from metalearn.data.sinusoid import Sinusoid
from metalearn.testing import sources as checks
from metalearn.testing.checking import Check, ContractError, run
from metalearn.testing.sources import SourceTrial, check_source
from tests.shipped import built

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def glyphs(cache: str, cls: type[Glyphs] = Glyphs, **dials: Any) -> Glyphs:
    train = {"way": 7, "shot": 2, "query_shot": None}
    usual = {"num_classes": 120, "rotations": ["train"], "query_shot": 3, "train": train}
    source: Glyphs = built(cls, device=CPU, cache_dir=cache, **{**usual, **dials})
    return source


class Leaking(Glyphs):
    def tasks(self, split: Split, *, seed: int, first: int, count: int) -> TaskBatch:
        task = super().tasks(split, seed=seed, first=first, count=count)
        x = task.query.x.clone()
        x[:, -1] = task.support.x[:, 0]
        return task._replace(query=task.query._replace(x=x))


class OneSplit(Glyphs):
    def tasks(self, split: Split, *, seed: int, first: int, count: int) -> TaskBatch:
        return super().tasks("val", seed=seed, first=first, count=count)


class Overlapping(Glyphs):
    def members(self, split: Split) -> Members:
        return super().members("train" if split == "val" else split)


class Seedless(Glyphs):
    def tasks(self, split: Split, *, seed: int, first: int, count: int) -> TaskBatch:
        return super().tasks(split, seed=0, first=first, count=count)


class Stateful(Glyphs):
    def tasks(self, split: Split, *, seed: int, first: int, count: int) -> TaskBatch:
        return super().tasks(split, seed=seed + first, first=first, count=count)


class Padded(Glyphs):
    def tasks(self, split: Split, *, seed: int, first: int, count: int) -> TaskBatch:
        task = super().tasks(split, seed=seed, first=first, count=count)
        mask = task.support.mask.clone()
        mask[:, -1] = False
        return task._replace(support=task.support._replace(mask=mask))


class FloatLabels(Glyphs):
    def tasks(self, split: Split, *, seed: int, first: int, count: int) -> TaskBatch:
        task = super().tasks(split, seed=seed, first=first, count=count)
        return task._replace(query=task.query._replace(y=task.query.y.float()))


class Single(Glyphs):
    def tasks(self, split: Split, *, seed: int, first: int, count: int) -> TaskBatch:
        task = super().tasks(split, seed=seed, first=first, count=count)
        return task._replace(support=task.support._replace(x=task.support.x.float()))


class TooGenerous(Glyphs):
    def __init__(self, *, way: int = 5, **dials: Any) -> None:
        super().__init__(way=min(way, 5), **dials)


class Numbered(Glyphs):
    def members(self, split: Split) -> Members:
        return [Member("glyphs", number) for number in range(3)]  # type: ignore[arg-type]


class Twins(Glyphs):
    def members(self, split: Split) -> Members:
        return [Member("glyphs", f"{split}{number}", 64 * str(number)) for number in range(3)]


class Wordless(Glyphs):
    def protocol(self, split: Split) -> dict[str, Any]:
        return {"data": "glyphs"}


class Unlabelled(Glyphs):
    def examples(self, *, seed: int, first: int, count: int) -> Examples:
        rows = super().examples(seed=seed, first=first, count=count)
        return rows._replace(y=rows.y + self.spec("train").num_train_classes)


@pytest.mark.parametrize(
    ("planted", "check", "sentence"),
    [
        (Leaking, checks.support_and_query_share_no_example, "tasks .* have an input in support and query"),
        (OneSplit, checks.splits_share_no_example, "stands in split"),
        (OneSplit, checks.seeds_and_splits_give_different_tasks, "300 tasks .* have 100 keys"),
        (
            Overlapping,
            checks.nobody_is_in_two_splits,
            "is in split val and in split train; a class or user belongs to one",
        ),
        (
            Numbered,
            checks.nobody_is_in_two_splits,
            r"Source.members\('train'\) of data=glyphs holds .*name=0.*; expected Member",
        ),
        (Twins, checks.nobody_is_in_two_splits, "val0 of split val has the content of train0 of split train"),
        (Seedless, checks.seeds_and_splits_give_different_tasks, "300 tasks .* have 150 keys"),
        (Stateful, checks.tasks_are_a_pure_function_of_their_numbers, "differ from those in a larger batch"),
        (Padded, checks.tasks_have_the_shapes_of_their_spec, "spec says ragged=False, but masks hide rows"),
        (FloatLabels, checks.tasks_have_the_shapes_of_their_spec, "y of the query of split train is float32"),
        (Single, checks.tasks_come_in_the_precision_of_the_run, "torch.get_default_dtype"),
        (TooGenerous, checks.more_classes_than_there_are_is_refused, "way=1000000 is taken"),
        (Wordless, checks.fingerprint_and_protocol_are_stable_and_json, "lacks split, way"),
        (Unlabelled, checks.examples_are_a_pure_stream_or_refused, "examples.. gives y int64 of"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_planted_fault_is_found(planted: type[Glyphs], check: Check, sentence: str, cache: str) -> None:
    with pytest.raises(ContractError, match=sentence):
        run(check, SourceTrial(lambda **dials: glyphs(cache, planted, **dials)))


def test_labels_in_the_order_of_the_classes_are_found(cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a library of the field has them in every episode."""
    right = images.draw_classes
    monkeypatch.setattr(images, "draw_classes", lambda *args: right(*args).sort(-1).values)
    with pytest.raises(
        ContractError, match="labels of one class vary .* as much as all labels; give the classes"
    ):
        run(checks.labels_do_not_follow_an_order_of_the_classes, SourceTrial(lambda: glyphs(cache)))


def test_the_first_promise_that_is_not_kept_is_named() -> None:
    class Silent(Sinusoid):
        def protocol(self, split: Split) -> dict[str, Any]:
            return {}

    with pytest.raises(
        ContractError,
        match="^Silent: fingerprint and protocol are stable and json: the protocol of train lacks data",
    ):
        check_source(lambda: built(Silent, device=CPU))
