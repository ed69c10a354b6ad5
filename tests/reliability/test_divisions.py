"""Who is in the splits counts where the fingerprint says nothing of it: a source of one's own that hashes its
content alone.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from metalearn.core import Member, Members, Source, Split
from metalearn.engine.membership import Splits, digest
from metalearn.errors import ConfigError, DataError
from metalearn.files import read_json
from metalearn.run.rollback import require_same
from metalearn.run.splits import keep_splits, novelty
from tests.engine.toy import eval_spec

SPLITS: tuple[Split, ...] = ("train", "val", "test")


class Letters(Source):
    """Six letters, two to a split, which `first` turns among them; the fingerprint knows their content
    alone.
    """

    name = "letters"
    spec = tasks = protocol = None  # type: ignore[assignment]

    def __init__(self, first: int = 0, silent: bool = False) -> None:
        self.first, self.silent = first, silent

    def members(self, split: Split) -> Members:
        start = 2 * SPLITS.index(split) + self.first
        return (
            None
            if self.silent
            else [Member("letters", "abcdef"[number % 6]) for number in (start, start + 1)]
        )

    def fingerprint(self) -> str:
        return 64 * "1"


def trained_on(run_dir: Path, source: Source) -> Any:
    """The checkpoint of a run, whose splits.json stands in its folder."""
    written = SimpleNamespace(
        run_dir=run_dir,
        read_json=lambda name: None,
        write=lambda name, text: (run_dir / name).write_bytes(text.encode()),
    )
    metadata = {"data_sha256": source.fingerprint(), "splits_sha256": keep_splits(written, source)}  # type: ignore[arg-type]
    return SimpleNamespace(metadata={**metadata, "config": {}, "metrics_offset": 0}, step=0, tensors={})


def parts_of(source: Source, run_dir: Path) -> Any:
    return SimpleNamespace(source=source, trained={"run_dir": str(run_dir), "data": {}, "trusted": []})


def test_an_equal_fingerprint_does_not_make_training_classes_new(tmp_path: Path) -> None:
    checkpoint = trained_on(tmp_path, Letters())  # type: ignore[abstract]
    with pytest.raises(
        ConfigError,
        match="split 'test' of data=letters holds 2 that this run was trained on, "
        "by content or by name: a, b",
    ):
        novelty(parts_of(Letters(first=2), tmp_path), checkpoint, eval_spec("test", 0, 4), named=True)  # type: ignore[abstract]


def test_a_name_that_is_no_unicode_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Letters()  # type: ignore[abstract]
    monkeypatch.setattr(source, "members", lambda split: [Member("letters", f"\udce9{split}ß")])
    trained_on(tmp_path, source)
    assert Splits.from_json(read_json(tmp_path / "splits.json")) == Splits.of(source)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("silent", [False, True])
def test_an_equal_division_needs_no_comparison(tmp_path: Path, split: Split, silent: bool) -> None:
    checkpoint = trained_on(tmp_path, source := Letters(silent=silent))  # type: ignore[abstract]
    (tmp_path / "splits.json").unlink()
    assert novelty(parts_of(source, tmp_path), checkpoint, eval_spec(split, 0, 4), named=True) == {
        "seen_in": "none" if split == "test" else split
    }


def test_a_run_older_than_its_file_of_splits_is_known_by_its_fingerprint(tmp_path: Path) -> None:
    checkpoint = trained_on(tmp_path, Letters())  # type: ignore[abstract]
    del checkpoint.metadata["splits_sha256"]
    assert novelty(parts_of(Letters(first=2), tmp_path), checkpoint, eval_spec("test", 0, 4), named=True) == {
        "seen_in": "none"
    }  # type: ignore[abstract]


def test_a_run_does_not_go_on_with_another_division(tmp_path: Path) -> None:
    checkpoint, before = trained_on(tmp_path, Letters()), (tmp_path / "splits.json").read_bytes()  # type: ignore[abstract]
    cfg = {"data": {}, "trusted": [], "trainer": {"outer_steps": 1}}
    with pytest.raises(
        DataError,
        match=r"who is train, val and test is not what it was for this run .*; divide the data as then, or "
        r"start",
    ):
        require_same(cfg, parts_of(Letters(first=2), tmp_path), checkpoint, None)  # type: ignore[arg-type, abstract]
    assert digest(Splits.of(Letters()).to_json()) == checkpoint.metadata["splits_sha256"]  # type: ignore[abstract]
    assert (tmp_path / "splits.json").read_bytes() == before
