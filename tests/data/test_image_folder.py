from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metalearn.core import Member
from metalearn.data.files import image_file, image_folders
from metalearn.data.image_folder import ImageFolder
from metalearn.data.sampling import SPLITS
from metalearn.errors import ConfigError, DataError
from tests.shipped import built

SIZES = {f"class{number}": 4 + number for number in range(9)}
Make = Callable[..., Path]


def source(root: Path, **dials: object) -> ImageFolder:
    given = {
        "way": 2,
        "shot": 1,
        "query_shot": 2,
        "image_size": 8,
        "fractions": (1 / 3, 1 / 3, 1 / 3),
        **dials,
    }
    return built(
        ImageFolder, device=torch.device("cpu"), root=str(root), cache_dir=str(root.parent / "cache"), **given
    )  # type: ignore[arg-type]


def classes_of(data: ImageFolder) -> dict[str, set[str]]:
    return {split: {data.folders[number].name for number in data.split_classes[split]} for split in SPLITS}


@pytest.mark.parametrize("name", ["class00", "class4_", "zebra"])
def test_an_empty_folder_that_appears_gives_no_class_the_content_of_another(
    make_folder: Make, name: str
) -> None:
    root = make_folder(SIZES)

    def contents() -> dict[str, str | None]:
        data = source(root, fractions=(0, 0, 1))
        data.prepare()
        return {
            member.name: member.sha256 for member in data.members("test") or () if isinstance(member, Member)
        }

    before = contents()
    (root / name).mkdir()
    assert contents() == {**before, name: None}
    (root / name).rmdir()
    assert contents() == before


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".JPG"])
def test_classes_of_unequal_size_give_tasks(make_folder: Make, suffix: str) -> None:
    data = source(make_folder(SIZES, suffix=suffix))
    task = data.tasks("train", seed=0, first=0, count=6)
    assert task.support.x.shape == (6, 2, 3, 8, 8)
    assert task.query.x.shape == (6, 4, 3, 8, 8)
    assert task.query.y.sort().values.tolist() == [[0, 0, 1, 1]] * 6
    assert 0 <= task.support.x.min() < task.support.x.max() <= 1


def test_grey_images_have_one_channel(make_folder: Make) -> None:
    assert source(make_folder(SIZES), channels=1).tasks("test", seed=0, first=0, count=1).support.x.shape == (
        1,
        2,
        1,
        8,
        8,
    )


def test_pixels_are_those_of_the_file(make_folder: Make) -> None:
    root = make_folder(SIZES)
    data = source(
        root,
        image_size=14,
        resize="nearest",
        partition=str(partition_file(root, ".json")),
        query_shot=1,
        shot=3,
    )
    rows = data._stores["test"].rows
    with Image.open(root / "class2" / "000.png") as image:
        expected = np.asarray(image.convert("RGB").resize((14, 14), Image.Resampling.NEAREST))
    assert np.array_equal(rows[0].permute(1, 2, 0).numpy(), expected)


def test_splits_never_share_a_class_and_follow_the_seed(make_folder: Make) -> None:
    root = make_folder(SIZES)
    seeds = [classes_of(source(root, partition_seed=seed)) for seed in (0, 0, 1)]
    assert seeds[0] == seeds[1] != seeds[2]
    for split in seeds:
        assert sorted(name for names in split.values() for name in names) == sorted(SIZES)


def test_split_folders_decide_the_partition(make_folder: Make) -> None:
    make_folder({"train/a": 5, "train/b": 5, "val/c": 5, "val/d": 5, "test/e": 5})
    root = make_folder({"test/f": 5})
    data = source(root)
    assert classes_of(data) == {"train": {"a", "b"}, "val": {"c", "d"}, "test": {"e", "f"}}
    assert data.protocol("test")["partition"] == "folders"


def test_a_class_in_two_split_folders_is_refused(make_folder: Make) -> None:
    root = make_folder({"train/a": 5, "train/b": 5, "val/c": 5, "val/a": 5, "test/e": 5, "test/f": 5})
    with pytest.raises(DataError, match="has class 'a' in two splits; splits never share a class"):
        source(root)


def partition_file(root: Path, suffix: str) -> Path:
    mapping = {"train": ["class0", "class1"], "val": ["class4", "class5"], "test": ["class2", "class3"]}
    path = root.parent / f"partition{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(mapping))
    elif suffix == ".csv":
        path.write_text(
            "class,split\n"
            + "".join(f"{name},{split}\n" for split, names in mapping.items() for name in names)
        )
    else:
        path.write_text("".join(f"{name}: {split}\n" for split, names in mapping.items() for name in names))
    return path


@pytest.mark.parametrize("suffix", [".json", ".csv", ".yaml"])
def test_a_file_decides_the_partition(make_folder: Make, suffix: str) -> None:
    root = make_folder(SIZES)
    data = source(root, partition=str(partition_file(root, suffix)))
    assert classes_of(data) == {
        "train": {"class0", "class1"},
        "val": {"class4", "class5"},
        "test": {"class2", "class3"},
    }
    assert data.protocol("test")["partition"] == "file"


def test_every_mistake_of_a_partition_file_is_told(make_folder: Make, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("class,split\nclass0,train\nclas1,train\nclass0,test\nclass2,tset\n")
    with pytest.raises(ConfigError) as caught:
        source(make_folder(SIZES), partition=str(tmp_path / "p.csv"))
    text = str(caught.value)
    assert "class 'clas1' is not in the data; did you mean 'class1'?" in text
    assert "class 'class0' is named twice" in text
    assert "class 'class2' has split 'tset'; expected train, val or test" in text


@pytest.mark.parametrize(
    ("content", "name"), [("[1, 2]", "p.json"), ("{", "p.json"), ("a,b\n1,2\n", "p.csv"), ("a: [", "p.yaml")]
)
def test_a_file_that_is_no_partition_is_named(
    make_folder: Make, tmp_path: Path, content: str, name: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=r"data\.partition=.* expected a mapping of train, val and test"):
        source(make_folder(SIZES), partition=str(tmp_path / name))
    with pytest.raises(ConfigError, match=r"gone\.json cannot be read"):
        source(make_folder(SIZES, under="more"), partition=str(tmp_path / "gone.json"))


def test_small_classes_stop_the_run_and_are_named_with_both_ways_out(make_folder: Make) -> None:
    root = make_folder({f"class{number}": 3 if number < 7 else 30 for number in range(12)})
    with pytest.raises(ConfigError) as caught:
        source(root, query_shot=15).check(SPLITS)
    text = str(caught.value)
    assert "7 of 12 classes have fewer images than the 16 of shot + query_shot: " in text
    assert text.count("(3)") == 5
    assert (
        "and 2 more. Lower data.shot or data.query_shot, or leave these classes out with data.min_images=16"
        in text
    )


def test_min_images_leaves_small_classes_out(make_folder: Make) -> None:
    data = source(make_folder({"small": 2, **SIZES}), min_images=4)
    assert "small" not in {folder.name for folder in data.folders}
    assert data.protocol("train")["min_images"] == 4


def test_too_many_ways_and_too_small_classes_come_in_one_list(make_folder: Make) -> None:
    with pytest.raises(ConfigError) as caught:
        source(make_folder(SIZES), way=7, shot=3).check(SPLITS)
    assert (
        "split 'val' of image_folder has 3 classes and split 'test' of image_folder has 3 classes; lower "
        "data.way" in str(caught.value)
    )
    assert "class0 (4)" in str(caught.value)


def test_a_corrupt_image_is_named_and_nothing_is_cached(make_folder: Make) -> None:
    root = make_folder(SIZES)
    (root / "class3" / "001.png").write_bytes((root / "class3" / "001.png").read_bytes()[:200])
    with pytest.raises(DataError, match=r"class3/001\.png is not a readable image .* repair or remove it"):
        source(root).prepare()
    assert not list((root.parent / "cache").iterdir())


def test_corrupt_images_are_told_together_up_to_five_of_them(
    make_folder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder(SIZES)
    broken = [root / f"class{number}" / "000.png" for number in range(2)]
    for file in broken:
        file.write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        source(root).prepare()
    lines = str(caught.value).splitlines()
    assert lines[0] == "2 images cannot be used; repair or remove them. Nothing was trained"
    for line, file in zip(lines[1:], broken, strict=True):
        assert line.startswith(f"  {file} is not a readable image (")
    monkeypatch.setattr(image_file, "MAX_PIXELS", 100)
    with pytest.raises(DataError) as caught:
        source(root).prepare()
    lines = str(caught.value).splitlines()
    assert (
        lines[0]
        == "at least 5 images cannot be used (reading stopped there); repair or remove them. Nothing was "
        "trained"
    )
    assert len(lines) == 6
    assert lines[2].endswith("class0/001.png has 14x10 pixels; at most 100 are read; repair or remove it")


def test_a_bomb_is_refused(make_folder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_file, "MAX_PIXELS", 100)
    with pytest.raises(DataError, match="000.png has 14x10 pixels; at most 100 are read"):
        source(make_folder(SIZES)).prepare()


def test_a_root_without_images_a_file_and_no_root_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("METALEARN_DATA", raising=False)
    (tmp_path / "empty" / "class").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    for name, reason in (
        ("empty", "holds no images in class folders"),
        ("file", "is a file"),
        ("gone", "does not exist"),
    ):
        with pytest.raises(DataError, match=rf"data\.root=.*{name} {reason}; expected ROOT/<class>"):
            source(tmp_path / name)
    with pytest.raises(DataError, match=r"data\.root is not set .* set data\.root=ROOT"):
        built(ImageFolder, device=torch.device("cpu"))


def test_the_folder_of_data_sets_is_not_taken_for_one_of_them(
    make_folder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(SIZES)
    monkeypatch.setenv("METALEARN_DATA", str(folder))
    told = (
        rf"data.root is not set .* set data.root=ROOT \(METALEARN_DATA={folder} is the folder of all data "
        rf"sets; name the one in it\)"
    )
    with pytest.raises(DataError, match=told):
        built(ImageFolder, device=torch.device("cpu"), way=2, query_shot=2)


def test_a_changed_folder_is_read_again_and_the_root_is_never_written(make_folder: Make) -> None:
    root = make_folder(SIZES)
    before, listing = source(root).fingerprint(), sorted(root.rglob("*"))
    assert source(root).fingerprint() == before
    assert sorted(root.rglob("*")) == listing
    Image.new("RGB", (9, 9), "red").save(root / "class0" / "000.png")
    assert source(root).fingerprint() != before


def test_transparency_is_white_and_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.fromarray(np.full((4, 4), 65535, np.uint16)).save(tmp_path / "deep.png")
    read, _ = image_folders.read_images(
        [tmp_path / "clear.png", tmp_path / "deep.png"], size=4, channels=1, resize="area"
    )
    assert (read == 255).all()


def test_wrong_dials_are_told_together(make_folder: Make) -> None:
    with pytest.raises(ConfigError) as caught:
        source(make_folder(SIZES), fractions=(0.5, 0.2), partition="vinyals")
    for part in (
        "data.fractions=[0.5, 0.2]",
        "data.partition=vinyals",
    ):
        assert part in str(caught.value)
