from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the characters of all tests of the benchmark are kept."""
    return tmp_path_factory.mktemp("bench_cache")
