"""Every source says who is in its splits, the same whatever is done to the inputs, and checks only the splits
it is asked for.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from metalearn.build.objects import build_source
from metalearn.config.compose import compose
from metalearn.config.loader import packaged_options
from metalearn.core import DRAWN_WITHOUT_END, Member, Source
from metalearn.data.files import omniglot as omniglot_files
from metalearn.data.files.image_file import pixels_sha256
from metalearn.data.glyphs import Glyphs
from metalearn.data.images import share_with_twins
from metalearn.data.omniglot import Omniglot
from metalearn.data.sampling import SPLITS, task_keys
from metalearn.errors import ConfigError
from tests.shipped import built

CPU = torch.device("cpu")
SMALL = ["data.num_classes=48", "data.num_drawings=6", "data.num_users=40", "data.way=2", "data.query_shot=2"]
# What changes inputs, sizes of tasks or places, and nobody's name.
VARIATIONS = [
    "data.image_size=9",
    "data.invert=true",
    "data.invert=false",
    "data.rotations=[train,val,test]",
    "data.resize=lanczos",
]
VARIATIONS += [
    "data.channels=1",
    "data.shot=2",
    "data.train.shot=2",
    "data.noise=0.5",
    "data.amplitude=[1.0,2.0]",
    "data.max_ratings=9",
]


@functools.cache
def composed(name: str) -> dict[str, Any]:
    return compose([f"data={name}"])


@pytest.fixture
def made(make_folder: Callable[..., Path], tmp_path: Path) -> Callable[..., Source]:
    """A small source of a YAML of conf/data; words that it has no key for are left out."""
    make_folder({f"class{number}": 3 for number in range(10)})

    def make(name: str, *words: str) -> Source:
        place = [f"data.root={tmp_path / 'images'}", f"data.cache_dir={tmp_path / 'cache'}"]
        cfg = copy.deepcopy(composed(name))
        for word in (*SMALL, *place, *words):
            *groups, key = word.partition("=")[0].split(".")
            node = functools.reduce(lambda tree, group: tree.get(group, {}), groups, cfg)
            if key in node:
                node[key] = yaml.safe_load(word.partition("=")[2])
        return build_source(cfg, CPU)

    return make


@pytest.fixture(scope="session")
def omniglot_made(omniglot_root: Path, omniglot_cache: Path) -> Callable[..., Source]:
    return lambda **dials: built(
        Omniglot, device=CPU, root=str(omniglot_root), cache_dir=str(omniglot_cache), **dials
    )


def everybody(source: Source) -> dict[str, Any]:
    return {split: source.members(split) for split in SPLITS}


@pytest.mark.parametrize("name", [name for name in packaged_options("data") if name != "omniglot"])
def test_members_are_disjoint_and_do_not_depend_on_what_is_done_to_inputs(
    name: str, made: Callable[..., Source]
) -> None:
    expected = everybody(made(name))
    for word in VARIATIONS:
        assert everybody(made(name, word)) == expected, word
    if expected["train"] == DRAWN_WITHOUT_END:
        assert set(expected.values()) == {DRAWN_WITHOUT_END}
        return
    everyone = [member for members in expected.values() for member in members]
    assert len({(member.source, member.name) for member in everyone}) == len(everyone) > 0
    assert {member.source for member in everyone} == {name}
    contents = [member.sha256 for member in everyone if member.sha256 is not None]
    assert len(set(contents)) == len(contents) == (len(everyone) if name == "image_folder" else 0)


def test_members_of_omniglot_are_characters_of_alphabets(omniglot_made: Callable[..., Source]) -> None:
    source = omniglot_made()
    counts = {split: len(members) for split, members in everybody(source).items()}
    assert counts == {"train": 1028, "val": 172, "test": 423}
    first = source.members("train")
    assert first is not None and not isinstance(first, str)
    assert ("omniglot", "Greek/character01") in {(member.source, member.name) for member in first}
    assert len({member.sha256 for member in first}) == 1028
    assert everybody(omniglot_made(rotations=[], invert=False)) == everybody(source)


def test_the_same_pictures_under_other_names_have_the_same_content(
    made: Callable[..., Source], tmp_path: Path
) -> None:
    expected = {member.sha256 for members in everybody(made("image_folder")).values() for member in members}
    for number, folder in enumerate(sorted((tmp_path / "images").iterdir())):
        for file in sorted(folder.iterdir(), reverse=True):
            file.rename(file.with_name(f"again_{99 - int(file.stem)}.png"))
        folder.rename(folder.with_name(f"renamed{9 - number}"))
    found = [member for members in everybody(made("image_folder")).values() for member in members]
    assert {member.sha256 for member in found} == expected
    assert all(member.name.startswith("renamed") for member in found)


def test_a_picture_is_what_it_shows_however_its_file_packs_it(tmp_path: Path) -> None:
    ink = torch.arange(20).reshape(4, 5).numpy() % 3 == 0
    one_bit = Image.fromarray(ink)
    grey, colour = one_bit.convert("L"), one_bit.convert("RGB")
    hashes = {
        pixels_sha256(torch.tensor(list(image.tobytes()), dtype=torch.uint8).reshape(4, 5, *more).numpy())
        for image, more in ((grey, ()), (colour, (3,)))
    }
    assert len(hashes) == 1
    assert pixels_sha256(ink.T.astype("uint8") * 255) not in hashes


def test_omniglot_in_a_folder_of_one_s_own_is_still_omniglot(
    omniglot_made: Callable[..., Source], omniglot_root: Path, tmp_path: Path, made: Callable[..., Source]
) -> None:
    drawings = sorted(
        omniglot_files._members(omniglot_root / "omniglot" / "images_background.zip", "images_background")
    )[:60]
    for drawing in drawings:
        (tmp_path / "own" / f"class{drawing.number}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / f"class{drawing.number}" / f"{drawing.drawer}.png").write_bytes(drawing.content)
    copy = made("image_folder", f"data.root={tmp_path / 'own'}", "data.fractions=[0,0,1]")
    members = omniglot_made().members("train")
    assert isinstance(members, Sequence)
    assert [member.sha256 for member in copy.members("test") or ()] == [
        member.sha256 for member in members[:3]
    ]  # type: ignore[union-attr]


def test_a_source_of_one_s_own_need_not_say_who_is_in_it() -> None:
    class Own(Source):
        name = "own"
        spec = tasks = protocol = fingerprint = None  # type: ignore[assignment]

    assert Own().members("test") is None  # type: ignore[abstract]
    Own().check(("test",))  # type: ignore[abstract]
    assert Member("own", "a").sha256 is None


class TestChecks:
    def test_a_split_is_checked_when_it_is_asked_for(self, made: Callable[..., Source]) -> None:
        source = made("image_folder", "data.fractions=[0.1,0.1,0.8]")
        source.check(("test",))
        assert source.tasks("test", seed=0, first=0, count=1).support.y.shape == (1, 2)
        assert source.spec("train").num_train_classes == 1
        with pytest.raises(ConfigError, match="split 'val' of image_folder has 1 classes"):
            source.tasks("val", seed=0, first=0, count=1)
        with pytest.raises(
            ConfigError,
            match="split 'train' of image_folder has 1 classes and split 'val' of image_folder has 1 classes",
        ):
            source.check(SPLITS)

    def test_all_classes_can_be_judged(self, made: Callable[..., Source]) -> None:
        source = made("image_folder", "data.fractions=[0,0,1]")
        source.check(("test",))
        assert [len(members) for members in everybody(source).values()] == [0, 0, 10]
        with pytest.raises(ConfigError, match="split 'train' of image_folder has 0 classes"):
            source.examples(seed=0, first=0, count=1)


class TestRotatedTwins:
    def test_the_share_of_tasks_with_two_turns_of_one_character(self) -> None:
        assert share_with_twins(423, 20) == pytest.approx(0.288, abs=0.02)
        # of the seven other classes, three are turns of the first
        assert share_with_twins(2, 2) == pytest.approx(3 / 7)
        assert share_with_twins(5, 1) == 0
        assert share_with_twins(3, 4) == 1

    def test_it_is_the_share_that_is_drawn(self, made: Callable[..., Source]) -> None:
        source = made("glyphs", "data.rotations=[test]", "data.way=5")
        facts = source.protocol("test")
        assert facts["rotated_copies_are"] == "classes of their own"
        assert "share_of_tasks_with_rotated_twins" not in source.protocol("val")
        from metalearn.data.sampling import draw_classes

        classes = draw_classes(task_keys(0, "test", first=0, count=4000, device=CPU), 48, 5)
        drawn = (classes % 12).sort().values  # the turns of class c of 12 are c, c + 12, c + 24, c + 36
        share = (drawn.diff() == 0).any(-1).double().mean()
        expected = facts["share_of_tasks_with_rotated_twins"]
        assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / 4000)

    def test_as_tasks_no_task_holds_one_character_twice(self, made: Callable[..., Source]) -> None:
        words = "data.rotations=[test]", "data.rotations_as=tasks"
        source = made("glyphs", *words, "data.way=12")
        assert isinstance(source, Glyphs)
        facts = source.protocol("test")
        assert (facts["rotated_copies_are"], facts["num_classes"]) == ("one turn per class and task", 12)
        assert "share_of_tasks_with_rotated_twins" not in facts
        key = task_keys(0, "test", first=0, count=4000, device=CPU)
        classes = source._draw_classes("test", key, 48, 12)
        assert torch.equal((classes % 12).sort().values, torch.arange(12).expand(4000, 12))
        turns = torch.bincount((classes // 12).flatten(), minlength=4)
        assert (turns - 12_000).abs().max() < 5 * math.sqrt(48_000 * 3 / 16), turns  # binomial deviations
        assert source.tasks("test", seed=0, first=0, count=2).support.y.shape == (2, 12)
        with pytest.raises(ConfigError, match=r"data.way=13 but split 'test' of glyphs has 12 classes"):
            made("glyphs", *words, "data.way=13").check(("test",))

    def test_they_are_there_by_default_and_in_splits_that_are_not_rotated(
        self, made: Callable[..., Source]
    ) -> None:
        usual, apart = (made("glyphs", *words) for words in ([], ["data.rotations_as=tasks"]))
        for split in SPLITS:
            one, other = (source.tasks(split, seed=0, first=0, count=3) for source in (usual, apart))
            assert torch.equal(one.key, other.key)
            same = torch.equal(one.support.x, other.support.x)  # type: ignore[arg-type]
            assert same == (split not in composed("glyphs")["data"]["rotations"])
