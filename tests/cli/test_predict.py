"""`metalearn predict`: the lines of pictures, and one sentence for what does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import metalearn
from metalearn.cli import main as cli
from tests.cli.conftest import answer
from tests.reliability import harness


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of ProtoNet on small glyphs."""
    folder = tmp_path_factory.mktemp("predict")
    words = ["algo=protonet", f"data.cache_dir={folder / 'cache'}", f"run_dir={folder / 'run'}"]
    assert cli.main(["train", *harness.TINY, *harness.QUICK, *words]) == 0
    return folder / "run"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """examples/{bar,dot}/*.png, and unknown.png, which is another bar."""
    for label, column in (("bar", 5), ("dot", 12)):
        (tmp_path / "examples" / label).mkdir(parents=True)
        for number in range(2):
            drawn(column + number, label == "bar").save(tmp_path / "examples" / label / f"{number}.png")
    drawn(7, True).save(tmp_path / "unknown.png")
    return tmp_path


def drawn(column: int, long: bool) -> Image.Image:
    picture = Image.new("L", (28, 28), 255)
    picture.paste(0, (column, 4, column + 3, 24 if long else 8))
    return picture


def test_a_line_names_picture_label_and_probability_as_python_would(
    run_dir: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unknown, support = pictures / "unknown.png", pictures / "examples"
    code, shown, complaint = answer(
        capsys, "predict", str(run_dir), str(unknown), str(unknown), "--support", str(support)
    )
    assert (code, complaint) == (0, "")
    files = sorted(support.glob("*/*.png"))
    adapted = metalearn.load(run_dir).adapt(files, [file.parent.name for file in files])
    [row] = adapted.predict_proba([unknown])
    expected = f"{unknown}\t{adapted.predict([unknown])[0]}\t{row.max():.4f}"
    assert shown.splitlines() == [expected] * 2
    assert torch.isclose(row.sum(), torch.ones(()))


@pytest.mark.parametrize(
    ("support", "code", "sentence"),
    [
        ("gone", 2, "--support=gone is not a folder; put the pictures of each label into gone/<label>/"),
        (".", 2, "--support=. holds no picture in a folder of a label; put the pictures of each label into"),
    ],
)
def test_a_support_that_holds_nothing_is_one_sentence(
    run_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    support: str,
    code: int,
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    found, shown, complaint = answer(capsys, "predict", str(run_dir), "x.png", "--support", support)
    assert (found, shown) == (code, "")
    assert complaint.startswith(f"error: {sentence}")


def test_a_picture_that_cannot_be_read_is_named_with_exit_code_3(
    run_dir: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "examples" / "bar" / "0.png").write_bytes(b"no picture")
    words = ["predict", str(run_dir), str(pictures / "unknown.png"), "--support", str(pictures / "examples")]
    found, shown, complaint = answer(capsys, *words)
    assert (found, shown) == (3, "")
    assert str(pictures / "examples" / "bar" / "0.png") in complaint
    assert complaint.count("\n") == 1
