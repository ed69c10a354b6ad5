"""metalearn doctor over run folders that somebody damaged: a line for each check, and no check that
breaks.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metalearn.doctor.examine import examine_run
from metalearn.errors import CheckpointError
from tests.fuzz.cases import cases, in_time, mutations
from tests.fuzz.test_command_line import template

__all__ = ["template"]


@cases(25)
@given(data=st.data())
def test_damaged_run_folders_are_examined_to_the_end(
    data: st.DataObject, template: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run_dir = tmp_path_factory.getbasetemp() / "examined"
    shutil.rmtree(run_dir, ignore_errors=True)
    shutil.copytree(template, run_dir)
    files = sorted(path for path in run_dir.rglob("*") if path.is_file() and "plots" not in path.parts)
    for path in data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=3, unique=True)):
        path.write_bytes(data.draw(mutations(path.read_bytes()))) if data.draw(
            st.integers(0, 5)
        ) else path.unlink()
    with in_time(), contextlib.redirect_stdout(io.StringIO()) as printed:
        code = examine_run(run_dir, [])
    lines = printed.getvalue().splitlines()
    assert [line for line in lines if "mistake of metalearn" in line] == []
    assert lines[-1].partition(":")[0].split()[1] == "results.json"
    failed = any(line.startswith("FAILED") for line in lines)
    assert code in ((1, CheckpointError.exit_code) if failed else (0,))
