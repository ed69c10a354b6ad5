"""`metalearn data audit`: the table, the page, the exit code, and what is answered in one sentence."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import answer

DIALS = ("data.way=2", "data.query_shot=2", "data.image_size=16")


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_it_was: None) -> Path:
    """Six classes of four pictures, a folder that is the working folder's only content."""
    root = tmp_path / "work" / "my images"
    for number in range(6):
        folder = root / ("train", "val", "test")[number // 2] / f"k{number}"
        folder.mkdir(parents=True)
        for image in range(4):
            pixels = np.random.default_rng([number, image]).integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels.repeat(4, 0).repeat(4, 1)).save(folder / f"{image}.png")
    monkeypatch.chdir(tmp_path / "work")
    return root


def test_a_clean_folder_is_exit_0_and_leaves_a_page(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, table, told = answer(capsys, "data", "audit", "my images", *DIALS)
    assert code == 0
    assert re.search(r"^equal pictures across splits +ok +none$", table, re.MULTILINE)
    assert table.endswith("with pictures: my images_audit.html\n")
    assert "reading every picture" in told
    page = Path("my images_audit.html").read_text(encoding="utf-8")
    assert "metalearn data audit &#39;my images&#39; data.way=2" in page
    assert "correlation is at least" in page
    assert "<script" not in page and "http" not in page.replace("http://www.w3.org", "")


def test_content_that_splits_share_is_exit_3_and_named(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(images / "train/k0/0.png", images / "test/k5/copy.png")
    code, table, _ = answer(capsys, "data", "audit", str(images), *DIALS, "--html", "out/page.html")
    assert code == 3
    assert "error" in table
    assert "train/k0/0.png (train) = test/k5/copy.png (test)" in table
    page = Path("out/page.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 2
    assert "test/k5/copy.png (test)" in page


def test_json_says_the_same_to_a_program(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (images / "val/k2/0.png").write_bytes(b"")
    words = ("image_folder", f"data.root={str(images)!r}", *DIALS)
    code, text, _ = answer(capsys, "data", "audit", *words, "--json")
    found = json.loads(text)
    assert (code, found["exit_code"], found["page"]) == (3, 3, "image_folder_audit.html")
    (reading,) = (finding for finding in found["findings"] if finding["check"] == "reading")
    assert reading["severity"] == "error"
    assert reading["names"] == ["val/k2/0.png is empty (0 bytes)"]
    assert found["sizes"]["val"] == [4, 4]


def test_a_source_without_pictures_is_audited_too(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, table, _ = answer(capsys, "data", "audit", "sinusoid")
    assert code == 0
    assert "files, duplicates, names and balance of classes do not apply" in table


def test_mistakes_are_answered_in_a_sentence(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, code, sentence in (
        (["./nothing"], 3, "data.root=./nothing does not exist"),
        (["omniglott"], 2, "omniglot"),
        (["my images", "data.root=x"], 2, "data.root=x beside the folder my images; name one of them"),
        (["glyphs", "--html", "page.png"], 2, "--html page.png does not end in .html; name a file"),
        (["my images/train/k0"], 3, "holds no images in class folders"),
        (["my images", "data.wai=2"], 2, "data.way"),
    ):
        found = answer(capsys, "data", "audit", *words)
        assert (found[0], found[1]) == (code, "")
        assert sentence in found[2]


def test_a_page_that_cannot_be_written_is_exit_2(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, told = answer(capsys, "data", "audit", "sinusoid", "--html", "my images/train/k0/0.png/a.html")
    assert code == 2
    assert "a.html cannot be written: " in told
