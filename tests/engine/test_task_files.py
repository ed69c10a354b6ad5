"""What a task is by name, and files that list tasks."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn.core import NamedTask, Row
from metalearn.data.glyphs import Glyphs
from metalearn.data.sinusoid import Sinusoid
from metalearn.data.synthetic_ratings import SyntheticRatings
from metalearn.engine.locked import LockedTasks
from metalearn.engine.task_file import read_tasks, rows_of
from metalearn.engine.task_names import lines, named_sha256, task_hashes
from metalearn.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def glyphs(cache: Path, **dials: Any) -> Glyphs:
    rest: dict[str, Any] = {
        "num_classes": 36,
        "num_drawings": 6,
        "seed": 0,
        "partition": "random",
        "partition_seed": 0,
        "way": 3,
        "shot": 2,
        "query_shot": 2,
        "train": None,
        "rotations": [],
        "rotations_as": "classes",
        "invert": True,
        "image_size": 14,
        "cache_dir": str(cache),
        "device": torch.device("cpu"),
    }
    return Glyphs(**(rest | dials))


def sinusoid() -> Sinusoid:
    shape: dict[str, Any] = {"amplitude": [0.1, 5.0], "phase": [0.0, 3.14], "interval": [-5.0, 5.0]}
    return Sinusoid(device=torch.device("cpu"), shot=3, query_shot=2, train=None, **shape)


def write(path: Path, *tasks: Any) -> Path:
    path.write_text("\n".join(json.dumps(task) for task in tasks), encoding="utf-8")
    return path


def row(owner: int, drawing: int, **more: Any) -> dict[str, Any]:
    return {"class": f"seed=0/character={owner}", "drawing": drawing, **more}


def test_the_sum_of_a_task_is_that_of_its_names_in_order() -> None:
    task = NamedTask([Row("é/a", 3, 0), Row("b", "1.png", 1, 90)], [Row("b", 2, 1)])
    text = '["data",[["é/a",3,0],["b","1.png",1,90]],[["b",2,1]]]'
    assert named_sha256("data", task) == hashlib.sha256(text.encode()).hexdigest()


def test_size_and_ink_do_not_make_another_task_but_the_seed_of_tasks_does(cache: Path) -> None:
    one = task_hashes(glyphs(cache), "test", seed=5, count=4)
    assert task_hashes(glyphs(cache, image_size=20, invert=False), "test", seed=5, count=4) == one
    assert not set(one) & set(task_hashes(glyphs(cache), "test", seed=6, count=4))


def test_a_turned_class_is_named_with_its_turn(cache: Path) -> None:
    source = glyphs(cache, rotations=["test"])
    turns = {row.turned for task in source.named("test", seed=1, first=0, count=20) for row in task.support}
    assert turns == {0, 90, 180, 270}


def test_functions_are_their_numbers() -> None:
    sums = task_hashes(sinusoid(), "val", seed=0, count=3)
    batch = sinusoid().tasks("val", seed=0, first=1, count=1)
    whole = hashlib.sha256(b"sinusoid")
    for part in (batch.support.x, batch.support.y, batch.query.x, batch.query.y):
        whole.update(part.numpy().astype("<f4").tobytes())
    assert sums[1] == whole.hexdigest()


def ratings() -> SyntheticRatings:
    sizes = {"num_users": 40, "num_items": 20, "min_ratings": 5, "max_ratings": 9, "query_shot": 2}
    return SyntheticRatings(device=torch.device("cpu"), **sizes, seed=0, noise=0.1)


@pytest.mark.parametrize("kind", ["glyphs", "turned", "sinusoid", "ratings"])
def test_a_file_of_tasks_gives_the_same_tasks(kind: str, cache: Path, tmp_path: Path) -> None:
    source: Any = {
        "glyphs": lambda: glyphs(cache),
        "turned": lambda: glyphs(cache, rotations=["test"]),
        "sinusoid": sinusoid,
        "ratings": ratings,
    }[kind]()
    path = write(tmp_path / "tasks.jsonl", *lines(source, "test", seed=3, count=7))
    locked = LockedTasks(source, path, "test")
    assert locked.num_tasks("test") == 7
    expected = task_hashes(source, "test", seed=3, count=7)
    assert task_hashes(locked, "test", seed=3, count=7) == expected
    then, now = (some.tasks("test", seed=3, first=2, count=4) for some in (source, locked))
    assert torch.equal(then.key, now.key)
    for part in ("support", "query"):
        one, other = getattr(then, part), getattr(now, part)
        rows = one.mask.sum()
        assert rows == other.mask.sum()
        assert torch.equal(one.y[one.mask], other.y[other.mask])
        names = list(one.x) if isinstance(one.x, dict) else [None]
        for name in names:
            left, right = (
                (x[name] if name else x)[mask] for x, mask in ((one.x, one.mask), (other.x, other.mask))
            )
            assert torch.equal(left, right)


def test_classes_are_numbered_as_the_support_names_them(cache: Path, tmp_path: Path) -> None:
    task = {"support": [row(4, 1), row(2, 1), row(4, 2)], "query": [row(2, 5), row(4, 5)]}
    locked = LockedTasks(glyphs(cache), write(tmp_path / "t.jsonl", task), "test")
    batch = locked.tasks("test", seed=0, first=0, count=1)
    assert batch.support.y.tolist() == [[0, 1, 0]]
    assert batch.query.y.tolist() == [[1, 0]]


def test_tasks_of_other_sizes_are_padded_and_said_to_be_ragged(cache: Path, tmp_path: Path) -> None:
    small = {"support": [row(1, 1), row(2, 1)], "query": [row(1, 2)]}
    large = {"support": [row(1, 1), row(2, 1), row(3, 1)], "query": [row(1, 2), row(3, 2)]}
    locked = LockedTasks(glyphs(cache), write(tmp_path / "t.jsonl", small, large), "test")
    spec = locked.spec("test")
    assert (spec.support_size, spec.query_size, spec.max_way, spec.ragged) == (3, 2, 3, True)
    assert locked.tasks("test", seed=0, first=0, count=1).support.mask.tolist() == [[True, True, False]]
    assert locked.protocol("test")["way"] is None


def test_other_libraries_words_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "episodes.csv"
    path.write_text(
        "\ufeffepisode,set,label,filename\n7,support,cat,a/1.png\n7,support,dog,b/1.png\n7,query,dog,b/2.png\n",
        encoding="utf-8",
    )
    (task,) = read_tasks(path)
    assert task.name == "7"
    assert rows_of(task, "support") == [Row("cat", "a/1.png"), Row("dog", "b/1.png")]
    assert rows_of(task, "query") == [Row("dog", "b/2.png")]


GOOD = {"support": [row(1, 1), row(2, 1)], "query": [row(1, 2)]}


@pytest.mark.parametrize(
    ("task", "problem"),
    [
        (
            {**GOOD, "query": [row(77, 2)]},
            "line 1, task '0', query: class 'seed=0/character=77' is not in data=",
        ),
        ({**GOOD, "query": [row(1, 9)]}, "has no drawing 9; it has 1 to 6, 6 of them"),
        ({**GOOD, "query": [row(1, 1)]}, "is in support and query"),
        (
            {**GOOD, "query": [row(3, 1)]},
            "the query asks for 'seed=0/character=3', of which the support shows",
        ),
        ({**GOOD, "query": [row(1, 2, label=0)]}, "some rows have a label and others have none"),
        ({"support": [row(1, 1, label=1)], "query": [row(1, 2, label=1)]}, "labels are not 0 to 0"),
        (
            {"support": [row(1, 1, label=0), row(2, 1, label=1)], "query": [row(1, 2, label=1)]},
            "label 1 and class 'seed=0/character=1' do not belong together",
        ),
        (
            {"support": [row(1, 1, label=0), row(2, 1, label=0)], "query": [row(1, 2, label=0)]},
            "label 0 and class 'seed=0/character=2' do not belong together",
        ),
        ({**GOOD, "query": [{**row(1, 2), "drawing": [1]}]}, "is neither a name nor a whole number"),
        ({**GOOD, "query": [row(1, 2, label=float("inf"))]}, "label=inf"),
        ({**GOOD, "query": [row(1, 2, turned=45)]}, "turned=45 of .* expected 0, 90, 180 or 270"),
        ({**GOOD, "query": []}, "task '0' has no query row"),
        ({**GOOD, "query": [{"class": "a"}]}, "names no picture; expected one of file, drawing"),
        ({"support": GOOD["support"]}, "line 1 is no task"),
    ],
)
def test_what_a_file_names_and_the_data_lack_is_said(
    task: dict[str, Any], problem: str, cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=problem):
        LockedTasks(glyphs(cache), write(tmp_path / "t.jsonl", task), "test")


@pytest.mark.parametrize(
    ("name", "text", "error", "problem"),
    [
        ("t.txt", "", ConfigError, "neither a .jsonl nor a .csv"),
        ("t.jsonl", "\n", ConfigError, "lists no task"),
        ("t.jsonl", "{", DataError, "line 1 is no task"),
        ("t.jsonl", json.dumps({**GOOD, "source": "omniglot"}), ConfigError, "tasks of data=omniglot, but"),
        ("t.csv", "task,class\n", DataError, "has no column part, only task, class"),
        ("t.csv", "task,part,file\n1,neither,a\n", DataError, "'neither' is neither support nor query"),
        ("t.csv", "task,part,file\n1,support\n", DataError, "line 2 has not 3 cells"),
    ],
)
def test_a_file_that_is_none_of_tasks_is_refused(
    name: str, text: str, error: type[Exception], problem: str, cache: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(error, match=problem):
        LockedTasks(glyphs(cache), tmp_path / name, "test")


def test_functions_whose_rows_are_no_such_numbers_are_refused(tmp_path: Path) -> None:
    good = {"x": [0.5], "y": [1.0]}
    for odd in ({"x": 0.5, "y": 1.0}, {"x": [0.5, 0.5], "y": [1.0]}, {"x": [0.5], "y": [float("nan")]}):
        path = write(tmp_path / "t.jsonl", {"support": [good], "query": [odd, good]})
        with pytest.raises(DataError, match="finite numbers|holds no numbers"):
            LockedTasks(sinusoid(), path, "test")


def test_owners_that_no_split_names_leave_it_open_who_was_trained_on(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = LockedTasks(glyphs(cache), write(tmp_path / "t.jsonl", GOOD), "test")
    found = locked.members("test")
    assert isinstance(found, list)
    assert {member.name for member in found} == {"seed=0/character=1", "seed=0/character=2"}
    monkeypatch.setattr(locked.source, "members", lambda split: [])
    assert locked.members("test") is None


def test_a_missing_file_says_how_to_make_one(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist; write one with: metalearn data lock"):
        LockedTasks(glyphs(cache), tmp_path / "t.jsonl", "test")
