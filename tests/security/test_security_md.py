"""SECURITY.md promises nothing that no test keeps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TABLE = [
    line for line in (ROOT / "SECURITY.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")
][2:]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.split("|")[1].strip())
def test_every_row_names_a_test_that_exists(row: str) -> None:
    kept_by = row.rstrip(" |").rpartition("|")[2]
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", kept_by)
    assert named, row
    for path, name in named:
        assert re.search(rf"^ *def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), (
            f"{path} has no {name}"
        )


def test_there_is_a_row_for_everything_that_a_stranger_may_write() -> None:
    sources = " ".join(row.split("|")[1] for row in TABLE)
    for word in ("YAMLs", "Run folder", "checkpoints", "Archives", "Pictures", "Downloads", "Cache"):
        assert word in sources
