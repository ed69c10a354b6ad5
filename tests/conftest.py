from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and caches that all sources of tests.plugins share."""
    return tmp_path_factory.mktemp("sources")


@pytest.fixture(scope="session", autouse=True)
def no_plots() -> Iterator[None]:
    """Half the time of a tiny run. They are drawn by tests/report, by runs in processes of their own, and by
    those of tests/reliability that ask for them.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("metalearn.run.session.draw_plots", lambda *parts: None)
        patch.setattr("metalearn.run.evaluate.draw_worst", lambda *parts: None)
        yield
