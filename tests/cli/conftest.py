from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from metalearn.cli import main as cli
from metalearn.run import resume, train
from tests.sweep.sweeping import Trainings


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(list(words))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trainings]:
    def make(ends: dict[int, int | Exception] | None = None) -> Trainings:
        made = Trainings(ends)
        monkeypatch.setattr(train, "train", made.train)
        monkeypatch.setattr(resume, "resume", made.resume)
        return made

    return make


@pytest.fixture
def as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Type and threads of this process are those from before, and no data of this machine is read."""
    monkeypatch.delenv("METALEARN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    yield
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)
