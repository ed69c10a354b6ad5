"""Each fault is planted in a clean folder, and has to be found by its name."""

from __future__ import annotations

import hashlib
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metalearn.core import DRAWN_WITHOUT_END, Member, Members
from metalearn.data.audit import audit, disjoint
from metalearn.data.audit_pictures import bare, gini
from metalearn.data.duplicates import near_pairs, perceptual_hash
from metalearn.data.files.image_file import Picture
from metalearn.data.findings import Audit, Finding
from metalearn.data.image_folder import ImageFolder
from metalearn.data.omniglot import Omniglot
from metalearn.data.overlap import chance_of_both
from metalearn.data.pictures import Pictures, Prints, take_prints
from metalearn.data.sinusoid import Sinusoid
from metalearn.data.synthetic_ratings import SyntheticRatings
from metalearn.errors import DataError
from tests.shipped import built

CLASSES = {f"k{number}": ("train", "val", "test")[number // 2] for number in range(6)}
IMAGES = 4


def pattern(*seed: int) -> np.ndarray:
    """A picture whose thumbnail is like no other's: 4x4 blocks of random grey, uint8 (32, 32)."""
    return np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8).repeat(4, 0).repeat(4, 1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """train/k0/0.png … test/k5/3.png, 32x32 pixels, no two alike."""
    for number, (name, split) in enumerate(CLASSES.items()):
        folder = tmp_path / "images" / split / name
        folder.mkdir(parents=True)
        for image in range(IMAGES):
            Image.fromarray(pattern(number, image)).save(folder / f"{image}.png")
    return tmp_path / "images"


def audited(root: Path, **dials: object) -> Audit:
    given = {"way": 2, "shot": 1, "query_shot": 2, "image_size": 16, **dials}
    source = built(
        ImageFolder, device=torch.device("cpu"), root=str(root), cache_dir=str(root.parent / "cache"), **given
    )
    return audit(source, {"root": str(root)})


def found(result: Audit, check: str) -> Finding:
    """The one finding of this check."""
    (finding,) = (finding for finding in result.findings if finding.check == check)
    return finding


def said(result: Audit, check: str) -> list[tuple[str, str]]:
    return [(finding.severity, finding.text) for finding in result.findings if finding.check == check]


def test_a_clean_folder_is_clean(root: Path) -> None:
    result = audited(root)
    assert {finding.severity for finding in result.findings} == {"ok", "note"}
    assert result.exit_code == 0
    assert result.sizes == {split: [IMAGES] * 2 for split in ("train", "val", "test")}
    assert said(result, "sizes and modes") == [("note", "32x32 pixels; mode L 24")]


def test_a_picture_in_two_splits_is_an_error_whatever_its_format(root: Path) -> None:
    grey = Image.open(root / "train/k0/1.png")
    grey.convert("RGB").save(root / "test/k4/copy.png")
    result = audited(root)
    finding = found(result, "equal pictures across splits")
    assert (finding.severity, result.exit_code) == ("error", 3)
    assert finding.names == ["train/k0/1.png (train) = test/k4/copy.png (test)"]
    assert len(finding.exhibits[0].pictures) == 2
    assert found(result, "equal pictures within a class").severity == "ok"


def test_a_jpeg_of_a_picture_in_another_split_is_a_near_duplicate(root: Path) -> None:
    Image.open(root / "train/k0/1.png").resize((40, 40)).save(root / "val/k2/copy.jpg", quality=80)
    finding = found(audited(root), "near duplicates across splits")
    assert finding.severity == "warning"
    assert finding.names == ["train/k0/1.png (train) ~ val/k2/copy.jpg (val)"]


def test_equal_pictures_of_one_class_land_in_support_and_query(root: Path) -> None:
    shutil.copy(root / "train/k0/0.png", root / "train/k0/copy.png")
    result = audited(root)
    assert found(result, "equal pictures within a class").severity == "warning"
    # Both classes are drawn, and of 5 pictures of k0 one is support and two are query: 2·1·2 / (5·4) = 20%.
    finding = found(result, "support and query (train)")
    assert finding.severity == "warning"
    assert "expected in 20.00% of tasks" in finding.text
    met = int(finding.text.partition("tasks; ")[2].split()[0])
    assert 40 <= met <= 80  # of 300, 60 are expected
    assert found(result, "support and query (val)").severity == "ok"
    assert result.exit_code == 0


def test_equal_pictures_of_two_classes_are_named_with_both(root: Path) -> None:
    shutil.copy(root / "val/k2/0.png", root / "val/k3/copy.png")
    finding = found(audited(root), "equal pictures in two classes of a split")
    assert (finding.severity, finding.names) == ("warning", ["val/k2/0.png (val) = val/k3/copy.png (val)"])


def test_a_class_that_lies_in_two_splits_under_two_names_is_an_error(root: Path) -> None:
    shutil.rmtree(root / "test/k5")
    shutil.copytree(root / "train/k0", root / "test/other")
    finding = found(audited(root), "classes of splits")
    assert (finding.severity, finding.names) == ("error", ["k0 (train) and other (test)"])


def test_a_rotated_copy_counts_where_classes_are_rotated(root: Path) -> None:
    turned = np.rot90(np.asarray(Image.open(root / "train/k0/0.png"))).copy()
    Image.fromarray(turned).save(root / "test/k4/turned.png")
    assert audited(root).exit_code == 0
    result = audited(root, rotations=["train"])
    finding = found(result, "equal pictures across splits")
    assert result.exit_code == 3
    assert "1 pair after a rotation" in finding.text
    assert "train/k0/0.png" in finding.names[0] and "turned by 90°" in finding.names[0]


@pytest.mark.parametrize(
    ("plant", "sentence"),
    [
        (lambda file: file.write_bytes(b""), "is empty (0 bytes)"),
        (lambda file: file.write_bytes(file.read_bytes()[:80]), "is not a readable image"),
        (lambda file: file.write_text("no picture"), "is not a readable image (it is no PNG or JPEG)"),
    ],
    ids=["empty", "truncated", "text"],
)
def test_pictures_that_cannot_be_read_are_errors_by_name(
    root: Path, plant: Callable[[Path], object], sentence: str
) -> None:
    plant(root / "val/k2/1.png")
    plant(root / "val/k3/2.png")
    result = audited(root)
    finding = found(result, "reading")
    assert (finding.severity, result.exit_code) == ("error", 3)
    assert finding.text.startswith(f"2 of 24 pictures: val/k2/1.png {sentence}")
    assert "not looked at" in found(result, "support and query").text


def odd(root: Path, name: str) -> list[str]:
    return [text for severity, text in said(audited(root), name) if severity in ("warning", "note")]


def test_odd_pictures_are_found(root: Path) -> None:
    folder, grey = root / "train/k0", Image.fromarray(pattern(7))
    exif = Image.Exif()
    exif[0x0112] = 6
    grey.save(folder / "exif.jpg", exif=exif)
    Image.fromarray(pattern(8)).save(folder / "anim.png", save_all=True, append_images=[grey])
    Image.fromarray(pattern(9)).save(folder / "named.jpg", format="PNG")
    Image.fromarray(pattern(10)[:8]).save(folder / "long.png")
    Image.fromarray(np.full((8, 8), 200, np.uint8)).save(folder / "blank.png")
    Image.fromarray(pattern(11).astype(np.uint16) * 257).save(folder / "deep.png")
    layers = Image.fromarray(pattern(12)).convert("RGBA")
    layers.putalpha(200)
    layers.save(folder / "clear.png")
    (root.parent / "far.png").write_bytes((folder / "0.png").read_bytes())
    Image.fromarray(pattern(13)).save(root.parent / "far.png")
    (folder / "link.png").symlink_to(root.parent / "far.png")
    sentences = odd(root, "odd pictures")
    for name, words in (
        ("exif.jpg", "turned only by its EXIF tag"),
        ("anim.png", "animated or of several pictures"),
        ("named.jpg", "of another format than its name says"),
        ("long.png", "more than 3 times as long as wide"),
        ("blank.png", "of one grey level"),
        ("deep.png", "of 16 or more bits"),
        ("clear.png", "transparent"),
        ("link.png", "a link to a file outside of the root"),
    ):
        assert any(words in text and name in text for text in sentences), (name, sentences)
    assert len(sentences) == 8
    assert "8 to 32 wide" in found(audited(root), "sizes and modes").text


def test_what_is_not_read_is_named(root: Path) -> None:
    Image.fromarray(pattern(7)).save(root / "train/k0/a.webp")
    (root / "train/k0/.DS_Store").write_text("")
    (root / "train/k0/notes.txt").write_text("")
    (root / "train/k0/more").mkdir()
    (root / "train/k0/gone.png").symlink_to(root / "nowhere.png")
    shutil.copy(root / "train/k0/0.png", root / "val/loose.png")
    (root / "extra").mkdir()
    sentences = odd(root, "files")
    for words in (
        "a picture of a format that is not read (.webp): train/k0/a.webp",
        "hidden: train/k0/.DS_Store",
        "no picture: train/k0/notes.txt",
        "a folder within a class folder: train/k0/more",
        "a link that leads nowhere: train/k0/gone.png",
        "a picture outside of the class folders: val/loose.png",
        "a folder beside train, val and test: extra",
    ):
        assert any(words in text for text in sentences), (words, sentences)
    assert len(sentences) == 7


def test_folders_of_two_splits_of_three_are_taken_for_classes(root: Path) -> None:
    shutil.move(root / "val", root.parent / "val")
    for split in ("train", "test"):
        shutil.copy(root / split / ("k0" if split == "train" else "k4") / "0.png", root / split / "0.png")
    sentences = odd(root, "files")
    assert any("taken for a class, since not all of train, val and test are there" in s for s in sentences)


@pytest.mark.parametrize("other", ["K0", "k 0", "k_0"])
def test_names_that_differ_little_are_found(root: Path, other: str) -> None:
    (root / "val/k2").rename(root / "val" / other)
    finding = found(audited(root), "names of classes")
    assert finding.severity == "warning"
    assert finding.names == [f"'k0' (train) and {other!r} (val)"]


def test_forms_of_unicode_are_one_name() -> None:
    assert bare(unicodedata.normalize("NFD", "Café au_lait")) == bare("cafÉ AU lait") != bare("cafe au lait")


def test_decomposed_names_are_noted(root: Path) -> None:
    name = unicodedata.normalize("NFD", "é")
    (root / "val/k2").rename(root / "val" / name)
    assert found(audited(root), "names of classes").text.startswith("1 name is in decomposed Unicode")


def test_classes_that_are_too_small_are_named(root: Path) -> None:
    (root / "val/k2/0.png").unlink()
    (root / "val/k2/1.png").unlink()
    result = audited(root)
    texts = [text for severity, text in said(result, "balance of classes") if severity == "warning"]
    assert texts == ["1 class has fewer pictures than shot + query_shot ask for: k2 (2 of 3 in val)"]
    assert found(result, "support and query (val)").text.startswith("tasks of this split cannot be drawn")
    assert result.exit_code == 0


def test_gini_of_equal_sizes_is_zero_and_of_one_owner_near_one() -> None:
    assert gini(np.array([5, 5, 5])) == 0
    assert gini(np.array([0, 0, 0, 12])) == pytest.approx(0.75)


def write_sums(root: Path) -> None:
    lines = [
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(root.parent)}"
        for file in sorted(root.rglob("*.png"))
    ]
    (root.parent / "SHA256SUMS").write_text("\n".join(lines), encoding="utf-8")


def test_files_are_held_against_the_checksums_beside_them(root: Path) -> None:
    assert found(audited(root), "checksums").severity == "note"
    write_sums(root)
    assert found(audited(root), "checksums").text == f"24 files have the sha256 of {root.parent}/SHA256SUMS"
    Image.fromarray(pattern(99)).save(root / "train/k0/0.png")
    (root / "train/k0/1.png").unlink()
    result = audited(root, query_shot=1)
    assert result.exit_code == 3
    text = found(result, "checksums").text
    assert f"1 of the 24 files in {root.parent}/SHA256SUMS have another sha256: {root}/train/k0/0.png" in text
    assert "are missing" in text


class Shared(SyntheticRatings):
    """A user in two splits."""

    def members(self, split: str) -> Members:
        return [Member("here", "bo" if split == "train" else "jo", "a" * 64 if split != "val" else None)]


def test_members_of_equal_content_in_two_splits_are_an_error() -> None:
    finding = disjoint(built(Shared, device=torch.device("cpu")))
    assert finding.severity == "error"
    assert finding.names == ["bo (train) and jo (test)", "jo (val) and jo (test)"]


def test_sources_without_pictures_say_what_does_not_apply() -> None:
    ratings = audit(built(SyntheticRatings, device=torch.device("cpu")), {})
    assert found(ratings, "tasks").text.startswith("train ")
    assert found(ratings, "classes of splits").severity == "ok"
    assert "do not apply" in found(ratings, "pictures").text
    sinusoid = built(Sinusoid, device=torch.device("cpu"))
    assert sinusoid.members("train") == DRAWN_WITHOUT_END
    result = audit(sinusoid, {})
    assert found(result, "support and query (test)").severity == "ok"
    assert (result.exit_code, result.sizes) == (0, {})


def test_data_that_are_not_here_are_not_fetched(tmp_path: Path) -> None:
    source = built(
        Omniglot, device=torch.device("cpu"), root=str(tmp_path), cache_dir=str(tmp_path / "cache")
    )
    with pytest.raises(DataError, match="data=omniglot is not here .* metalearn data prepare omniglot"):
        audit(source, {"root": str(tmp_path), "cache_dir": str(tmp_path / "cache")})


def prints_of(*pixels: np.ndarray) -> Prints:
    whole = Pictures(
        [str(n) for n in range(len(pixels))],
        np.zeros(len(pixels), int),
        ["a"],
        {},
        (),
        lambda n: Picture(pixels[n]),
    )
    return take_prints(whole)


def test_brightness_and_noise_leave_a_near_duplicate_and_other_pictures_are_none() -> None:
    noise = np.random.default_rng(0).normal(0, 4, (32, 32))
    changed = np.clip(pattern(0) * 0.7 + 30 + noise, 0, 255).astype(np.uint8)
    pairs = near_pairs(prints_of(pattern(0), changed, *(pattern(n) for n in range(1, 40))), np.arange(41))
    assert list(zip(pairs.first, pairs.second, strict=True)) == [(0, 1)]


def test_blank_pictures_and_equal_ones_are_no_near_duplicates() -> None:
    blank = np.full((32, 32), 255, np.uint8)
    pairs = near_pairs(prints_of(blank, blank, blank - 1, pattern(0), pattern(0)), np.arange(5))
    assert len(pairs.first) == 0


def test_pairs_are_found_across_blocks_of_comparison() -> None:
    thumbs = np.random.default_rng(0).integers(0, 256, (5000, 32, 32), dtype=np.uint8)
    thumbs[4999] = thumbs[3]
    prints = Prints([str(number) for number in range(5000)], thumbs, np.zeros((5000, 2), int))
    pairs = near_pairs(prints, np.arange(5000))
    assert list(zip(pairs.first, pairs.second, strict=True)) == [(3, 4999)]


def test_a_turned_picture_is_found_once() -> None:
    one = pattern(0)
    for turn, expected in ((1, (0, 1, 1)), (2, (0, 1, 2)), (3, (1, 0, 1))):
        other = np.ascontiguousarray(np.rot90(one, -turn))
        pairs = near_pairs(prints_of(one, other), np.arange(2), (0, 1, 2))
        assert list(zip(*(column.tolist() for column in pairs[:3]), strict=True)) == [expected]


def test_hashes_of_equal_pictures_are_equal_and_of_others_far() -> None:
    hashes = perceptual_hash(np.stack([pattern(0), pattern(0), pattern(1)]))
    assert hashes[0] == hashes[1]
    assert np.bitwise_count(hashes[0] ^ hashes[2]) > 15


@pytest.mark.parametrize("twins", [True, False])
def test_the_chance_of_two_classes_is_that_of_counting(twins: bool) -> None:
    from itertools import combinations

    total, way, times = 8, 3, 4
    draws = [
        classes
        for classes in combinations(range(total), way)
        if twins or len({number % (total // times) for number in classes}) == way
    ]
    if not twins:  # three of two classes cannot be had
        assert draws == []
        way = 2
        draws = [pair for pair in combinations(range(total), way) if pair[0] % 2 != pair[1] % 2]
    for one, other in ((0, 1), (0, 2), (1, 6)):
        share = sum(one in classes and other in classes for classes in draws) / len(draws)
        assert chance_of_both(one, other, total, way, times, twins=twins) == pytest.approx(share)
