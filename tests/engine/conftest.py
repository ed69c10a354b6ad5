from __future__ import annotations

import pytest

from metalearn.core import Algorithm, Source
from tests import plugins


@pytest.fixture(params=plugins.PAIRS, ids="-".join)
def pair(request: pytest.FixtureRequest) -> tuple[Algorithm, Source]:
    """Every method on tasks in memory of every kind that it declares."""
    return plugins.in_memory(*request.param)
