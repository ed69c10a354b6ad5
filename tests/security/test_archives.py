"""Fault 18: handmade archives and pictures that would like to be more than data. Each is refused, and nothing
lies outside.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metalearn.cli import main as cli
from metalearn.core import InputSpec
from metalearn.data.files import archive, image_file
from metalearn.data.files import omniglot as omniglot_files
from metalearn.data.files.archive import Entry, Limits, read_entries
from metalearn.data.files.image_file import decode, read_file
from metalearn.data.files.omniglot import read_drawings
from metalearn.data.preprocessing import Preprocessing
from metalearn.errors import DataError

LIMITS = Limits(entries=20, size=1000, total=5000)
Make = Callable[[Path], Path]


def zip_of(
    path: Path,
    name: str,
    content: bytes = b"x",
    *,
    mode: int = 0,
    method: int = zipfile.ZIP_DEFLATED,
    times: int = 1,
) -> Path:
    """A zip with a plain file and, after it, the entry that is meant."""
    with zipfile.ZipFile(path.with_suffix(".zip"), "w") as file:
        file.writestr("plain.txt", b"plain")
        for number in range(times):
            info = zipfile.ZipInfo(name.format(number))
            info.external_attr = mode << 16
            info.compress_type = method
            file.writestr(info, content)
    return path.with_suffix(".zip")


def tar_of(
    path: Path,
    name: str,
    kind: bytes = tarfile.REGTYPE,
    *,
    target: str = "",
    content: bytes = b"x",
    times: int = 1,
) -> Path:
    path = path.with_suffix(".tar.gz")
    with tarfile.open(path, "w:gz") as file:
        plain = tarfile.TarInfo("plain.txt")
        plain.size = 5
        file.addfile(plain, io.BytesIO(b"plain"))
        for number in range(times):
            info = tarfile.TarInfo(name.format(number))
            info.type, info.linkname = kind, target
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            file.addfile(info, io.BytesIO(content))
    return path


def zip_that_lies_about_a_size(path: Path) -> Path:
    """Ten megabytes behind an entry that promises a hundred bytes."""
    path = zip_of(path, "bomb.txt", bytes(10 << 20))
    content = bytearray(path.read_bytes())
    true, promised = (10 << 20).to_bytes(4, "little"), (100).to_bytes(4, "little")
    path.write_bytes(bytes(content).replace(true, promised))
    return path


def tar_with_a_huge_name(path: Path) -> Path:
    """A header that announces a name of a hundred megabytes, which compress to nothing."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 100 << 20
    path = path.with_suffix(".tar.gz")
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        for _ in range(100):
            file.write(b"a" * (1 << 20))
    return path


LEAVES, KIND = "which leaves the archive", "only files and folders are read"
ARCHIVES: dict[str, tuple[Make, str]] = {
    "zip with ..": (lambda path: zip_of(path, "../../evil.txt"), LEAVES),
    "zip with .. inside": (lambda path: zip_of(path, "a/../../../evil.txt"), LEAVES),
    "zip with ..\\": (lambda path: zip_of(path, "..\\evil.txt"), LEAVES),
    "zip with an absolute path": (lambda path: zip_of(path, "/tmp/evil.txt"), LEAVES),
    "zip with a drive": (lambda path: zip_of(path, "C:\\evil.txt"), LEAVES),
    "zip with a symbolic link": (
        lambda path: zip_of(path, "link", b"/etc/passwd", mode=stat.S_IFLNK | 0o777),
        f"a symbolic link; {KIND}",
    ),
    "zip with a device": (lambda path: zip_of(path, "null", mode=stat.S_IFCHR | 0o666), f"a device; {KIND}"),
    "zip with a pipe": (lambda path: zip_of(path, "pipe", mode=stat.S_IFIFO | 0o666), f"a pipe; {KIND}"),
    "zip with a large entry": (
        lambda path: zip_of(path, "bomb", bytes(1001)),
        "unpacks to 1001 bytes; at most 1000 are read",
    ),
    "zip with too much in all": (
        lambda path: zip_of(path, "part{}", bytes(900), times=6),
        "unpacks to more than 5000 bytes",
    ),
    "zip with too many entries": (
        lambda path: zip_of(path, "part{}", times=30),
        "holds more than 20 entries",
    ),
    "zip that lies about a size": (zip_that_lies_about_a_size, "is damaged or incomplete"),
    "zip of a slow compression": (
        lambda path: zip_of(path, "a", method=zipfile.ZIP_LZMA),
        "compressed by method 14",
    ),
    "zip with an escape sequence": (lambda path: zip_of(path, "\x1b[2Jname"), r"the name '\\x1b\[2Jname'"),
    "tar with ..": (lambda path: tar_of(path, "../../evil.txt"), LEAVES),
    "tar with an absolute path": (lambda path: tar_of(path, "/tmp/evil.txt"), LEAVES),
    "tar with a symbolic link": (
        lambda path: tar_of(path, "link", tarfile.SYMTYPE, target="/etc/passwd"),
        f"a symbolic link; {KIND}",
    ),
    "tar with a hard link": (
        lambda path: tar_of(path, "link", tarfile.LNKTYPE, target="/etc/passwd"),
        f"a hard link; {KIND}",
    ),
    "tar with a device": (lambda path: tar_of(path, "null", tarfile.CHRTYPE), f"a device; {KIND}"),
    "tar with a pipe": (lambda path: tar_of(path, "pipe", tarfile.FIFOTYPE), f"a pipe; {KIND}"),
    "tar with a large entry": (
        lambda path: tar_of(path, "bomb", content=bytes(1001)),
        "unpacks to 1001 bytes; at most 1000 are read",
    ),
    "tar with too much in all": (
        lambda path: tar_of(path, "part{}", content=bytes(900), times=6),
        "unpacks to more than 5000 bytes",
    ),
    "tar with too many entries": (
        lambda path: tar_of(path, "part{}", times=30),
        "holds more than 20 entries",
    ),
    "tar with a huge name": (tar_with_a_huge_name, "unpacks to more than 5000 bytes"),
    "neither": (
        lambda path: Path(path.with_suffix(".tar").write_text("no archive") and path.with_suffix(".tar")),
        "is damaged or incomplete",
    ),
    "empty": (
        lambda path: path.with_suffix(".zip").touch() or path.with_suffix(".zip"),
        "is damaged or incomplete",
    ),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_fault_18_an_archive_that_is_more_than_data_is_refused(name: str, tmp_path: Path) -> None:
    make, reason = ARCHIVES[name]
    path = make(tmp_path / "archive")
    with pytest.raises(DataError, match=reason) as caught:
        list(read_entries(path, LIMITS))
    assert str(caught.value).startswith(f"{path} ")
    assert "was not used" in str(caught.value)
    assert list(tmp_path.rglob("*")) == [path]


@pytest.mark.parametrize("make", [zip_of, tar_of])
def test_a_plain_archive_reads(make: Callable[..., Path], tmp_path: Path) -> None:
    path = make(tmp_path / "archive", "a/b/{}.txt", content=b"hello", times=3)
    expected = [Entry("plain.txt", b"plain"), *(Entry(f"a/b/{number}.txt", b"hello") for number in range(3))]
    assert list(read_entries(path, LIMITS)) == expected


def test_an_archive_of_half_a_gigabyte_is_not_even_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MAX_FILE", 100)
    with pytest.raises(DataError, match="bytes; at most 100 are read"):
        list(read_entries(zip_of(tmp_path / "archive", "a", bytes(1000)), LIMITS))


@pytest.mark.fault(18)
def test_what_a_bomb_takes_is_bounded(tmp_path: Path) -> None:
    """Two gigabytes would be unpacked by a reader that asks for a whole entry."""
    import tracemalloc

    for path in (zip_that_lies_about_a_size(tmp_path / "a"), tar_with_a_huge_name(tmp_path / "b")):
        tracemalloc.start()
        with pytest.raises(DataError):
            list(read_entries(path, LIMITS))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 4 << 20


class TestThroughTheCommandLine:
    """The same, where a person would meet it: `data.root` holds a stranger's archive."""

    @pytest.mark.parametrize("make", [zip_of, tar_of])
    def test_fault_18_is_exit_3_and_nothing_lies_outside(
        self, make: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        root = tmp_path / "root"
        root.mkdir()
        path = make(root / "images_background", "../../evil.png")
        assert (
            cli.main(["data", "prepare", "omniglot", f"data.root={root}", f"data.cache_dir={tmp_path}/cache"])
            == 3
        )
        complaint = capsys.readouterr().err
        assert (
            f"error: {path} holds a member with the path '../../evil.png', which leaves the archive; it was "
            "not used" in complaint
        )
        assert "Traceback" not in complaint
        assert {found.name for found in tmp_path.rglob("*")} == {"root", path.name, "cache"}

    def test_omniglot_packed_again_as_a_tar_reads(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        packed = np.packbits(np.zeros((20, 105 * 105), bool), axis=1)
        monkeypatch.setattr(
            omniglot_files, "CONTENT", {"images_background": hashlib.sha256(packed.tobytes()).hexdigest()}
        )
        monkeypatch.setattr(omniglot_files, "NUM_IMAGES", {"images_background": 20})
        with tarfile.open(tmp_path / "images_background.tar", "w") as file:
            for drawer in range(1, 21):
                info = tarfile.TarInfo(f"images_background/Greek/character01/0001_{drawer:02}.png")
                content = png(Image.new("1", (105, 105), 1))
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
        ink, _ = read_drawings([tmp_path], tmp_path)
        assert ink.shape == (20, 105, 105)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def claimed(width: int, height: int) -> bytes:
    """A PNG of sixty-odd bytes that claims so many pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")
        )

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def jpeg_of_many_scans() -> bytes:
    """A progressive JPEG whose last scan is repeated a thousand times."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    last = content.rindex(image_file.SCAN)
    return content[:last] + content[last:-2] * 1000 + content[-2:]


class TestPictures:
    @pytest.mark.fault(18)
    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (claimed(8000, 8000), "has 8000x8000 pixels; at most 50000000 are read"),
            (claimed(10_000, 10_000), "has 10000x10000 pixels; at most 50000000 are read"),
            (claimed(60_000, 60_000), "has far more than the 50000000 pixels that are read"),
            (jpeg_of_many_scans(), r"is a JPEG of \d+ scans; at most 100 are read"),
            (b"", "is not a readable image"),
            (b"GIF89a" + bytes(100), "is not a readable image"),
            (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "is not a readable image"),
            (png(Image.new("L", (50, 50)))[:-30], "is not a readable image"),
        ],
    )
    def test_a_bomb_or_no_picture_is_refused(self, content: bytes, reason: str) -> None:
        with pytest.raises(DataError, match=reason):
            decode(content, ("PNG", "JPEG"))

    @pytest.mark.fault(18)
    def test_a_whole_command_names_the_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name in ("a", "b", "c", "d", "e", "f"):
            (tmp_path / "root" / name).mkdir(parents=True)
            for number in range(3):
                (tmp_path / "root" / name / f"{number}.png").write_bytes(png(Image.new("L", (9, 9), number)))
        bad = tmp_path / "root" / "c" / "1.png"
        words = [
            "data",
            "prepare",
            "image_folder",
            f"data.root={tmp_path}/root",
            f"data.cache_dir={tmp_path}/cache",
        ]
        words += ["data.way=2", "data.query_shot=1", "data.fractions=[0.34,0.33,0.33]"]
        for content, reason in (
            (claimed(9000, 9000), "has 9000x9000 pixels"),
            (b"text", "is not a readable image"),
        ):
            bad.write_bytes(content)
            assert cli.main(words) == 3
            said = [
                line for line in capsys.readouterr().err.splitlines() if not line.startswith("preparing ")
            ]
            assert said[0].startswith(f"error: {bad} {reason}")
        bad.write_bytes(png(Image.new("L", (9, 9))))
        assert cli.main(words) == 0

    def test_a_person_s_own_pictures_are_capped_as_well(self, tmp_path: Path) -> None:
        prepare = Preprocessing(InputSpec((3, 8, 8)), "area", False)
        for content, reason in (
            (claimed(9000, 9000), "has 9000x9000 pixels"),
            (b"%!PS-Adobe-3.0 EPSF-3.0\n", "is not a readable image"),
        ):
            (tmp_path / "x.png").write_bytes(content)
            with pytest.raises(DataError, match=f"x.png {reason}"):
                prepare([tmp_path / "x.png"])

    def test_what_is_no_file_is_not_read(self, tmp_path: Path) -> None:
        import os

        os.mkfifo(tmp_path / "pipe.png")
        for path in (
            tmp_path / "pipe.png",
            tmp_path,
            tmp_path / "gone.png",
            Path("/dev/zero"),
            Path("null\0byte"),
        ):
            with pytest.raises(DataError, match="is not a readable image"):
                read_file(path)
