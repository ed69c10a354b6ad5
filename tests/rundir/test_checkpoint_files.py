"""Which run a path means, and which files of a checkpoint are read, without torch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metalearn.errors import ConfigError
from metalearn.rundir.checkpoint_files import (
    METADATA,
    OLD_MANIFEST,
    OLD_METADATA,
    encoded,
    first_line,
    located,
    read_metadata,
)
from metalearn.rundir.reader import existing_run


def a_run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()
    return folder


def test_a_checkpoint_means_its_run(tmp_path: Path) -> None:
    run_dir = a_run(tmp_path / "run")
    assert located(run_dir) == (run_dir, None)
    for name in ("best", "last", "step-000003"):
        assert located(run_dir / "checkpoints" / name) == (run_dir, name)


def test_a_run_in_a_folder_called_checkpoints_is_a_run(tmp_path: Path) -> None:
    run_dir = a_run(tmp_path / "checkpoints" / "best")
    assert located(run_dir) == (run_dir, None)
    assert located(run_dir / "checkpoints" / "best") == (run_dir, "best")
    assert existing_run(run_dir) == run_dir


@pytest.mark.parametrize("name", ["best", "step-000003"])
def test_a_checkpoint_in_place_of_its_run_is_refused_with_the_run(tmp_path: Path, name: str) -> None:
    run_dir = a_run(tmp_path / "run")
    (run_dir / "checkpoints" / "step-000003").mkdir(parents=True)
    (run_dir / "checkpoints" / "best").write_text("step-000003\n")
    with pytest.raises(ConfigError) as told:
        existing_run(run_dir / "checkpoints" / name)
    assert str(told.value) == (
        f"{run_dir / 'checkpoints' / name} is a checkpoint, not a run; give its run: {run_dir}, and to "
        f"evaluate this checkpoint add eval.checkpoint={name}"
    )
    with pytest.raises(ConfigError, match="is not a run: it does not exist"):
        existing_run(tmp_path / "other" / "checkpoints" / name)


def test_metadata_of_another_format_is_not_read(tmp_path: Path) -> None:
    (tmp_path / METADATA).write_bytes(encoded({}, {"step": 3}))
    assert read_metadata(tmp_path, 3) == {"step": 3}
    _, _, rest = encoded({}, {"step": 3}).partition(b"\n")
    rest = rest.replace(b'"format_version": 2', b'"format_version": 3')
    (tmp_path / METADATA).write_bytes(first_line(rest) + rest)
    with pytest.raises(ValueError, match="format_version is 3, this metalearn reads 2 and 1"):
        read_metadata(tmp_path, 3)


def test_old_metadata_of_another_format_is_not_read(tmp_path: Path) -> None:
    (tmp_path / OLD_METADATA).write_text('{"step": 3}')
    (tmp_path / OLD_MANIFEST).write_text(json.dumps({"format_version": 1}))
    assert read_metadata(tmp_path, 3) == {"step": 3}
    (tmp_path / OLD_MANIFEST).write_text(json.dumps({"format_version": 0}))
    with pytest.raises(ValueError, match="format_version is 0"):
        read_metadata(tmp_path, 3)
