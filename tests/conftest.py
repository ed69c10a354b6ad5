from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and caches that all sources of tests.plugins share."""
    return tmp_path_factory.mktemp("sources")
