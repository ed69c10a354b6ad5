"""Pictures, folders of pictures and archives that are not what they seem: read, or refused as DataError or
ConfigError.
"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from metalearn.data.files.archive import Entry, Limits, read_entries
from metalearn.data.files.image_file import decode
from metalearn.data.image_folder import ImageFolder
from metalearn.errors import ConfigError, DataError
from tests.fuzz.cases import answered, cases, mutations
from tests.shipped import built

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)


def encoded(name: str, image: Image.Image, **dials: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **dials)
    return buffer.getvalue()


COLOUR = Image.fromarray(PIXELS)
PICTURES = [
    *(
        encoded("PNG", COLOUR),
        encoded("PNG", COLOUR.convert("P")),
        encoded("PNG", COLOUR.convert("LA")),
        encoded("PNG", COLOUR.convert("1")),
    ),
    *(
        encoded("PNG", Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257)),
        encoded("PNG", COLOUR.convert("RGBA"), optimize=True),
    ),
    *(
        encoded("JPEG", COLOUR),
        encoded("JPEG", COLOUR, progressive=True),
        encoded("JPEG", COLOUR.convert("CMYK")),
    ),
    *(
        encoded("JPEG", COLOUR.convert("L"), exif=Image.Exif()),
        encoded("GIF", COLOUR),
        encoded("BMP", COLOUR),
        encoded("WEBP", COLOUR),
    ),
]


@cases(250)
@given(data=st.data())
def test_a_damaged_picture_is_a_picture_or_refused(data: st.DataObject) -> None:
    content = data.draw(st.sampled_from(PICTURES).flatmap(mutations))
    found = answered(lambda: decode(content, ("PNG", "JPEG")))
    assert isinstance(found, (Image.Image, DataError))


NAMES = st.one_of(
    st.sampled_from(
        ["a", "b", "train", "val", "test", ".hidden", "with space", "ü", "\udcff", "new\nline", "x" * 200]
    ),
    st.text(
        st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",)), min_size=1, max_size=8
    ).filter(lambda name: name not in (".", "..")),
)
FILES = st.dictionaries(
    st.builds(
        lambda stem, suffix: stem[:100] + suffix,
        NAMES,
        st.sampled_from([".png", ".jpg", ".JPEG", ".txt", ""]),
    ),
    st.one_of(
        st.sampled_from(PICTURES[:4]),
        st.sampled_from(PICTURES),
        st.binary(max_size=40),
        st.sampled_from(PICTURES).flatmap(mutations),
    ),
    max_size=4,
)
FOLDERS = st.dictionaries(NAMES, st.one_of(FILES, st.dictionaries(NAMES, FILES, max_size=3)), max_size=5)


def lay(place: Path, content: object) -> None:
    """Folders and files as nested dictionaries have them; names that the disk does not take are left out."""
    if isinstance(content, bytes):
        place.write_bytes(content)
        return
    place.mkdir(exist_ok=True)
    assert isinstance(content, dict)
    for name, inner in content.items():
        try:
            lay(place / os.fsdecode(os.fsencode(name)), inner)
        except (OSError, ValueError):
            continue


@cases(100)
@given(
    tree=FOLDERS,
    special=st.sampled_from(["", "loop", "pipe", "folder.png", "dangling"]),
    way=st.integers(1, 3),
    channels=st.sampled_from([1, 3]),
)
def test_a_folder_of_anything_is_a_dataset_or_refused(
    tree: dict[str, object], special: str, way: int, channels: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("folder")
    root = folder / "root"
    lay(root, tree)
    (root / "extra").mkdir(exist_ok=True)
    if special == "loop":
        (root / "extra" / "loop").symlink_to(root)
    elif special == "pipe":
        os.mkfifo(root / "extra" / "pipe.png")
    elif special == "folder.png":
        (root / "extra" / "folder.png").mkdir(exist_ok=True)
    elif special == "dangling":
        (root / "extra" / "dangling.png").symlink_to(root / "nowhere")

    def prepare() -> ImageFolder:
        dials = {
            "way": way,
            "shot": 1,
            "query_shot": 1,
            "image_size": 4,
            "channels": channels,
            "fractions": (0.34, 0.33, 0.33),
        }
        data = built(
            ImageFolder, device=torch.device("cpu"), root=str(root), cache_dir=str(folder / "cache"), **dials
        )  # type: ignore[arg-type]
        data.prepare()
        data.tasks("train", seed=0, first=0, count=1)
        return data

    listing = sorted(os.fsencode(path) for path in root.rglob("*"))
    assert isinstance(answered(prepare), (ImageFolder, DataError, ConfigError))
    assert sorted(os.fsencode(path) for path in root.rglob("*")) == listing
    assert {path.name for path in folder.iterdir()} <= {"root", "cache"}
    shutil.rmtree(folder)


def archived(kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/one.png", PICTURES[0])
            archive.writestr("a/two.txt", b"text" * 50)
    else:
        with tarfile.open(
            fileobj=buffer, mode="w:gz" if kind == "tar.gz" else "w", format=tarfile.PAX_FORMAT
        ) as archive:
            for name, content in (("a/" + "ü" * 120, PICTURES[0]), ("a/two.txt", b"text" * 50)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


ARCHIVES = {kind: archived(kind) for kind in ("zip", "tar", "tar.gz")}


@cases(200)
@given(data=st.data(), kind=st.sampled_from(sorted(ARCHIVES)))
def test_a_damaged_archive_is_read_or_refused(
    data: st.DataObject, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("archive")
    path = folder / f"x.{kind}"
    path.write_bytes(data.draw(mutations(ARCHIVES[kind])))
    found = answered(lambda: list(read_entries(path, Limits(entries=10, size=1 << 16, total=1 << 18))))
    assert isinstance(found, DataError) or all(isinstance(entry, Entry) for entry in found)
    assert list(folder.iterdir()) == [path]
    shutil.rmtree(folder)
