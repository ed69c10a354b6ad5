from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def omniglot_root() -> Path:
    """The folder of real data, or a skip that says what is missing."""
    root = os.environ.get("METALEARN_DATA")
    if not root or not (Path(root) / "omniglot" / "images_background.zip").exists():
        pytest.skip(
            "needs real Omniglot: set METALEARN_DATA to a folder that holds omniglot/images_background.zip"
        )
    return Path(root)


@pytest.fixture(scope="session")
def omniglot_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("omniglot_cache")


@pytest.fixture(scope="session")
def glyph_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("glyph_cache")


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """A folder of class folders with small random images; sizes: images per class."""

    def make(sizes: dict[str, int], *, under: str = "images", suffix: str = ".png") -> Path:
        rng = np.random.default_rng(0)
        root = tmp_path / under
        for name, size in sizes.items():
            (root / name).mkdir(parents=True)
            for number in range(size):
                pixels = rng.integers(0, 256, (10, 14, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / name / f"{number:03}{suffix}")
        return root

    return make
