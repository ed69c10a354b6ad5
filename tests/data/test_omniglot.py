from __future__ import annotations

import hashlib
import io
import json
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors import safe_open

from metalearn.data.files import omniglot as omniglot_files
from metalearn.data.files.omniglot import CONTENT, Character, read_drawings
from metalearn.data.files.resize import resize_ink
from metalearn.data.omniglot import TEST_ALPHABETS, VAL_ALPHABETS, Omniglot, vinyals_partition
from metalearn.data.sampling import SPLITS
from metalearn.errors import ConfigError, DataError
from tests.shipped import built

CPU = torch.device("cpu")


def archive(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def png(size: tuple[int, int] = (105, 105)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full(size[::-1], 255, np.uint8)).convert("1").save(buffer, "PNG")
    return buffer.getvalue()


def source(root: Path, cache: Path, **dials: object) -> Omniglot:
    return built(Omniglot, device=CPU, root=str(root), cache_dir=str(cache), **dials)  # type: ignore[arg-type]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """One character of twenty drawings that passes for the background set."""
    members = {f"images_background/Greek/character01/0001_{drawer:02}.png": png() for drawer in range(1, 21)}
    packed = np.packbits(np.zeros((20, 105 * 105), bool), axis=1)
    monkeypatch.setattr(
        omniglot_files, "CONTENT", {"images_background": hashlib.sha256(packed.tobytes()).hexdigest()}
    )
    monkeypatch.setattr(omniglot_files, "NUM_IMAGES", {"images_background": 20})
    return members


# --- real data
# -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("partition", "rotations", "counts"),
    [
        ("vinyals", ["train", "val", "test"], [4112, 688, 1692]),
        ("vinyals", [], [1028, 172, 423]),
        ("random", [], [1100, 100, 423]),
        ("random", ["train"], [4400, 100, 423]),
    ],
)
def test_partitions_have_their_published_sizes(
    omniglot_root: Path, omniglot_cache: Path, partition: str, rotations: list[str], counts: list[int]
) -> None:
    data = source(omniglot_root, omniglot_cache, partition=partition, rotations=rotations)
    assert [data.protocol(split)["num_classes"] for split in SPLITS] == counts
    assert data.spec("val").num_train_classes == counts[0]
    assert data.protocol("test")["partition"] == partition


def test_the_cache_loads_in_under_a_second_and_gives_the_same_data(
    omniglot_root: Path, omniglot_cache: Path, tmp_path: Path
) -> None:
    first = source(omniglot_root, omniglot_cache).fingerprint()
    start = time.monotonic()
    again = source(tmp_path, omniglot_cache)
    assert again.fingerprint() == first
    assert time.monotonic() - start < 1


def test_the_vinyals_partition_follows_alphabets(omniglot_root: Path, omniglot_cache: Path) -> None:
    data = source(omniglot_root, omniglot_cache)
    data.prepare()
    with zipfile.ZipFile(omniglot_root / "omniglot" / "images_evaluation.zip") as file:
        drawings = file.namelist()
    first_gurmukhi = min(int(name[-11:-7]) for name in drawings if "/Gurmukhi/" in name)
    train, test = set(data._set.partition["train"]), set(data._set.partition["test"])
    numbers = range(first_gurmukhi - 1, first_gurmukhi - 1 + 45)
    assert [number in train for number in numbers] == [True] * 41 + [False] * 4
    assert [number in test for number in numbers] == [False] * 41 + [True] * 4


def test_the_alphabets_have_their_published_sizes(omniglot_root: Path, omniglot_cache: Path) -> None:
    source(omniglot_root, omniglot_cache).prepare()
    prepared = next(omniglot_cache.glob("omniglot-*.safetensors"), None)
    assert prepared is not None
    with safe_open(prepared, framework="pt") as file:
        characters = [Character(*fields) for fields in json.loads(file.metadata()["facts"])["characters"]]
    assert len(characters) == 1623
    assert len({character.alphabet for character in characters}) == 50
    assert sum(character.alphabet in VAL_ALPHABETS for character in characters) == 172
    assert sum(character.alphabet in TEST_ALPHABETS for character in characters) == 419


def test_a_truncated_real_archive_is_named(omniglot_root: Path, tmp_path: Path) -> None:
    whole = (omniglot_root / "omniglot" / "images_background.zip").read_bytes()
    (tmp_path / "images_background.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        DataError, match=r"images_background\.zip is damaged or incomplete .* it was not used"
    ):
        source(tmp_path, tmp_path / "cache").prepare()
    assert not list((tmp_path / "cache").glob("*.safetensors"))
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["images_background.zip"]


# --- archives that are not what they seem
# ----------------------------------------------------------------------------


def test_a_small_archive_reads(tiny: dict[str, bytes], tmp_path: Path) -> None:
    archive(tmp_path / "omniglot" / "images_background.zip", tiny)
    ink, characters = read_drawings([tmp_path, tmp_path / "cache"], tmp_path / "cache")
    assert ink.shape == (20, 105, 105)
    assert characters == [Character("Greek", 1)]


@pytest.mark.parametrize("layout", ["", "omniglot", "omniglot-py"])
def test_an_extracted_folder_reads_as_its_archive_does(
    tiny: dict[str, bytes], tmp_path: Path, layout: str
) -> None:
    for name, content in tiny.items():
        (tmp_path / layout / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / layout / name).write_bytes(content)
    ink, characters = read_drawings([tmp_path, tmp_path / "cache"], tmp_path / "cache")
    assert ink.shape == (20, 105, 105)
    assert characters == [Character("Greek", 1)]


def test_a_changed_pixel_is_not_omniglot(tiny: dict[str, bytes], tmp_path: Path) -> None:
    pixels = np.full((105, 105), 255, np.uint8)
    pixels[50, 50] = 0
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert("1").save(buffer, "PNG")
    path = archive(
        tmp_path / "images_background.zip",
        {**tiny, "images_background/Greek/character01/0001_07.png": buffer.getvalue()},
    )
    with pytest.raises(
        DataError,
        match="is not the Omniglot that was published: its content has sha256 .*, expected .*; it was not "
        "used",
    ):
        read_drawings([tmp_path, tmp_path / "cache"], tmp_path / "cache")
    assert path.exists()


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"../../evil.txt": b"x"}, "'../../evil.txt', which leaves the archive; it was not used"),
        ({"/etc/evil.txt": b"x"}, "'/etc/evil.txt', which leaves the archive"),
        (
            {"images_background/Greek/character02/0002_01.png": b"x"},
            "holds more than the 20 images of images_background",
        ),
        (
            {"images_background/Greek/character01/0001_20.png": b"\0" * 100_000},
            "unpacks to 100000 bytes; at most 65536 are read",
        ),
        (
            {"images_background/Greek/character01/0001_20.png": png((4000, 3000))},
            "has 4000x3000 pixels; an Omniglot drawing has 105x105",
        ),
        (
            {"images_background/Greek/character01/0001_20.png": b"no image"},
            "0001_20.png is not a readable image",
        ),
    ],
)
def test_a_strange_archive_is_refused(
    tiny: dict[str, bytes], tmp_path: Path, extra: dict[str, bytes], reason: str
) -> None:
    archive(tmp_path / "images_background.zip", {**tiny, **extra})
    with pytest.raises(DataError, match=reason):
        read_drawings([tmp_path, tmp_path / "cache"], tmp_path / "cache")


def test_damage_at_any_place_of_an_archive_is_named(tiny: dict[str, bytes], tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in tiny.items():
            file.writestr(name, content)
    whole = buffer.getvalue()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 150):
        content = bytearray(whole)
        content[place] ^= 0xFF
        (tmp_path / "images_background.zip").write_bytes(content)
        found = outcome(tmp_path)
        # Damage to a date or a flag changes nothing, as the content was verified.
        assert found == "no ink" or "images_background.zip" in found


def outcome(root: Path) -> str:
    try:
        ink, _ = read_drawings([root, root / "cache"], root / "cache")
    except DataError as error:
        return str(error)
    return "ink" if ink.any() else "no ink"


def test_a_strange_name_is_refused(tiny: dict[str, bytes], tmp_path: Path) -> None:
    tiny.pop("images_background/Greek/character01/0001_20.png")
    archive(tmp_path / "images_background.zip", {**tiny, "images_background/holiday.png": png()})
    with pytest.raises(DataError, match=r"holiday\.png is not named like an Omniglot drawing"):
        read_drawings([tmp_path, tmp_path / "cache"], tmp_path / "cache")


def test_an_incomplete_folder_is_refused(tiny: dict[str, bytes], tmp_path: Path) -> None:
    for name, content in list(tiny.items())[:19]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(
        DataError, match="holds 19 drawings, but images_background has 20; it is incomplete and was not used"
    ):
        read_drawings([tmp_path, tmp_path / "cache"], tmp_path / "cache")


def test_no_data_and_no_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("METALEARN_DATA", raising=False)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr("metalearn.data.files.download.PAUSE_S", 0.01)
    start = time.monotonic()
    with pytest.raises(DataError) as caught:
        built(Omniglot, device=CPU, cache_dir=str(tmp_path)).prepare()
    for part in (
        "images_background.zip",
        "images_evaluation.zip",
        "data.root=FOLDER",
        str(tmp_path),
        "data=glyphs needs no download",
    ):
        assert part in str(caught.value)
    assert time.monotonic() - start < 20
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_broken_archive_in_the_cache_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("METALEARN_DATA", raising=False)
    (tmp_path / "omniglot").mkdir()
    (tmp_path / "omniglot" / "images_background.zip").write_bytes(b"half a download")
    with pytest.raises(DataError, match=r"omniglot/images_background\.zip is damaged or incomplete"):
        built(Omniglot, device=CPU, cache_dir=str(tmp_path)).prepare()


def test_the_official_addresses_and_sums_are_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []
    monkeypatch.setattr(
        omniglot_files,
        "download",
        lambda url, target, checksum, help_text: asked.append((url, target, checksum)),
    )
    for part in CONTENT:
        omniglot_files.fetch(part, tmp_path)
    official = torchvision.datasets.Omniglot
    assert [(url, checksum) for url, _, checksum in asked] == [
        (f"{official.download_url_prefix}/{part}.zip", f"md5:{official.zips_md5[part]}")
        for part in ("images_background", "images_evaluation")
    ]
    assert all(url.startswith("https://") for url, _, _ in asked)
    assert [target for _, target, _ in asked] == [tmp_path / "omniglot" / f"{part}.zip" for part in CONTENT]


# --- dials
# -----------------------------------------------------------------------------------------------------------


def test_every_problem_of_the_dials_is_told_before_any_file_is_touched() -> None:
    with pytest.raises(ConfigError) as caught:
        built(
            Omniglot,
            device=CPU,
            root="/nowhere",
            way=2000,
            shot=25,
            train={"way": 5000, "shot": None, "query_shot": None},
        ).check(SPLITS)
    text = str(caught.value)
    assert "data.train.way=5000 but split 'train' of omniglot has 4112 classes" in text
    assert "data.way=2000 but split 'val' of omniglot has 688 classes" in text
    assert "data.shot=25 + data.query_shot=15 needs 40 images per class, but split" in text
    assert "split 'test' of omniglot has a class with 20" in text


def test_a_root_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data\.root=.*/file is a file; expected a folder"):
        source(tmp_path / "file", tmp_path / "cache").prepare()
    with pytest.raises(DataError, match=r"data\.root=.*/gone does not exist"):
        source(tmp_path / "gone", tmp_path / "cache").prepare()


def test_vinyals_splits_the_straddling_alphabet_after_character_41() -> None:
    characters = [
        Character("Gurmukhi", 41),
        Character("Gurmukhi", 42),
        Character("Hebrew", 1),
        Character("ULOG", 3),
        Character("Greek", 9),
    ]
    assert vinyals_partition(characters) == {"train": [0, 4], "val": [2], "test": [1, 3]}


def test_nearest_takes_the_pixels_that_pillow_takes_on_one_bit_images() -> None:
    ink = np.random.default_rng(0).random((3, 105, 105)) < 0.3
    for size in (28, 32, 105):
        expected = [
            np.asarray(Image.fromarray(~drawing).resize((size, size), Image.Resampling.LANCZOS).convert("L"))
            for drawing in ink
        ]
        assert np.array_equal(resize_ink(ink, size, "nearest")[:, 0].numpy(), np.stack(expected))


def test_area_and_lanczos_give_grey_levels() -> None:
    ink = np.random.default_rng(0).random((2, 105, 105)) < 0.3
    for method in ("area", "lanczos"):
        assert len(resize_ink(ink, 28, method).unique()) > 20
    means = [float(resize_ink(ink, 15, "area").float().mean()), float(np.where(ink, 0, 255).mean())]
    assert abs(means[0] - means[1]) < 1
