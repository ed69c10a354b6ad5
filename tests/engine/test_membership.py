"""Who would be judged as new, and whom a run has met: sets are compared, not keys."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from metalearn.core import DRAWN_WITHOUT_END, InputSpec, Member, Members, TaskSpec
from metalearn.engine.membership import Splits, digest, refuse_other_kind, refuse_seen
from metalearn.errors import ConfigError
from metalearn.objectives import Classification, Rating, Regression

A, B, C, D = (
    Member("letters", name, 64 * digit) for name, digit in (("a", "0"), ("b", "1"), ("c", "2"), ("d", "3"))
)
RUN = Splits("letters", {"train": [A, B], "val": [C], "test": [D]})
NEW = Member("letters", "new", 64 * "9")


def test_new_members_of_the_same_data_are_of_another_domain_only_if_none_of_it_is_known() -> None:
    assert refuse_seen(RUN, "test", [D, NEW], "letters") == {"seen_in": "none"}
    assert refuse_seen(RUN, "test", [NEW], "letters") == {
        "seen_in": "none",
        "cross_domain": True,
        "trained_on": "letters",
    }
    assert refuse_seen(RUN, "test", [D._replace(source="pages")], "pages")["cross_domain"] is True


@pytest.mark.parametrize(
    "alias", [A, A._replace(name="other"), A._replace(source="pages", name="x"), A._replace(sha256=None)]
)
def test_the_same_content_or_the_same_source_and_name_is_the_same_member(alias: Member) -> None:
    for split in ("val", "test"):
        with pytest.raises(
            ConfigError,
            match=rf"^split '{split}' of data=pages holds 1 that this run was trained on.*: {alias.name}; ",
        ):
            refuse_seen(RUN, split, [NEW, alias], "pages")  # type: ignore[arg-type]


def test_a_name_of_another_source_with_other_content_is_somebody_else() -> None:
    assert refuse_seen(RUN, "test", [Member("pages", "a", 64 * "8")], "pages")["seen_in"] == "none"


def test_train_may_be_judged_where_all_of_it_was_trained_on_and_val_may_hold_who_chose() -> None:
    assert refuse_seen(RUN, "train", [B], "letters") == {"seen_in": "train"}
    assert refuse_seen(RUN, "val", [C, NEW], "letters") == {"seen_in": "val"}
    with pytest.raises(
        ConfigError,
        match="split 'train' of data=letters holds 1 that this run was trained on, "
        "by content or by name: b; ",
    ):
        refuse_seen(RUN, "train", [B, NEW], "letters")
    for split in ("train", "test"):
        with pytest.raises(
            ConfigError, match=r"holds 1 that chose this run's checkpoint \(its split 'val'\)"
        ):
            refuse_seen(RUN, split, [C, NEW], "letters")  # type: ignore[arg-type]


def test_a_message_names_a_few_and_counts_the_rest() -> None:
    many = [Member("letters", str(number)) for number in range(50)]
    with pytest.raises(
        ConfigError, match=r"holds 50 that .*: 0, 1, 2, 3, 4 and 45 more; leave them out, divide"
    ):
        refuse_seen(Splits("letters", {"train": many, "val": [], "test": []}), "test", many, "letters")


@pytest.mark.parametrize(("trained", "found"), [(None, [A]), ([A], None)])
def test_a_source_that_does_not_say_who_is_there_is_only_judged_on_equal_data(
    trained: Members, found: Members
) -> None:
    with pytest.raises(
        ConfigError,
        match=r"data=letters does not say who is in its splits \(Source.members\), so that nobody knows",
    ):
        refuse_seen(
            Splits("letters", dict.fromkeys(("train", "val", "test"), trained)), "test", found, "letters"
        )


def test_what_is_drawn_without_end_has_been_met_by_nobody() -> None:
    endless = Splits("waves", dict.fromkeys(("train", "val", "test"), DRAWN_WITHOUT_END))
    assert refuse_seen(endless, "test", DRAWN_WITHOUT_END, "waves") == {"seen_in": "none"}
    assert refuse_seen(endless, "test", [A], "letters") == {
        "seen_in": "none",
        "cross_domain": True,
        "trained_on": "waves",
    }
    assert refuse_seen(RUN, "test", DRAWN_WITHOUT_END, "waves")["trained_on"] == "letters"


@pytest.mark.parametrize(
    "members",
    [
        {"train": [A, NEW], "val": [], "test": None},
        dict.fromkeys(("train", "val", "test"), DRAWN_WITHOUT_END),
    ],
)
def test_the_file_says_what_the_source_did(members: dict[Any, Members]) -> None:
    splits = Splits("letters", members)
    again = Splits.from_json(splits.to_json())
    assert again.to_json() == splits.to_json()
    with (
        pytest.raises(ConfigError) if members["train"] != DRAWN_WITHOUT_END else pytest.MonkeyPatch.context()
    ):
        refuse_seen(again, "test", [A], "letters")


@pytest.mark.parametrize(
    ("members", "found"),
    [
        ([A, Member("letters", 3)], "name=3"),  # type: ignore[arg-type]
        ([A, Member("letters", "e", "abc")], "sha256='abc'"),
        ([A, Member("letters", "e", 64 * "A")], "sha256='AAAA"),
        ([A, Member("letters", "e", b"0" * 64)], "sha256=b'0000"),  # type: ignore[arg-type]
        ([A, B, A], "Member.source='letters', name='a', .* twice"),
        ([A, ("letters", "e", None)], r"\('letters', 'e', None\)"),
        ("endless", "'endless'"),
        (5, "5"),
        (iter([A]), "iterator"),
    ],
)
def test_members_that_could_not_be_read_back_are_refused(members: Any, found: str) -> None:
    source: Any = SimpleNamespace(name="letters", members=lambda split: members if split == "val" else [C])
    with pytest.raises(
        ConfigError,
        match=rf"^Source.members\('val'\) of data=letters (holds|is) .*{found}.*; expected Member",
    ) as caught:
        Splits.of(source)
    assert len(str(caught.value)) < 400


def test_the_digest_sees_who_is_where_and_not_how_it_is_laid_out() -> None:
    tree = RUN.to_json()
    assert digest(dict(reversed(tree.items()))) == digest(tree)
    assert digest(tree | {"val": tree["test"], "test": tree["val"]}) != digest(tree)


@pytest.mark.parametrize(
    "tree",
    [[], 5, None, {}, {"data": 3}, RUN.to_json() | {"val": 5}, RUN.to_json() | {"val": {"letters": ["a"]}}],
)
def test_a_file_that_is_none_is_a_mistake_of_a_known_kind(tree: Any) -> None:
    with pytest.raises((ValueError, LookupError, TypeError, AttributeError)):
        Splits.from_json(tree)


def test_tasks_of_another_kind_or_input_are_refused_and_another_way_is_not() -> None:
    images = TaskSpec("classification", Classification(), 5, InputSpec((1, 28, 28)), 5, 5, max_way=5)
    curve = TaskSpec("regression", Regression(), 1, InputSpec((1,)), 10, 10)
    users = TaskSpec(
        "rating", Rating(), 1, {"user": InputSpec((3,), 29), "item": InputSpec((3,), 66)}, 10, 10
    )
    refuse_other_kind(
        images, images.__class__("classification", Classification(), 9, InputSpec((1, 28, 28)), 9, 9), "pages"
    )
    for found, reason in (
        (
            curve,
            "data=it gives tasks of regression of inputs (1,) with 1 outputs, but this run was trained on "
            "classification of inputs",
        ),
        (
            users,
            "tasks of rating of user (3,) codes below 29 and item (3,) codes below 66 with 1 outputs, but",
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            refuse_other_kind(images, found, "it")
        assert reason in str(caught.value)
    with pytest.raises(
        ConfigError, match="with 2 outputs, but this run was trained on regression of .* with 1 outputs"
    ):
        refuse_other_kind(curve, TaskSpec("regression", Regression(), 2, InputSpec((1,)), 10, 10), "it")
