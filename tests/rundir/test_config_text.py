from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from metalearn.rundir.config_text import value_of

CONFIG = {
    "choices": {"algo": "maml", "optimizer/schedule": None},
    "algo": {
        "about": {"title": "MAML", "paper": "way: 7, a text & more", "published": {"way": 5}},
        "inner_lr": 0.4,
        "adapts": ["model", "head"],
    },
    "data": {"way": 20, "train": {"way": None}, "notes": "a long text " * 20, "empty": {}},
    "list": [{"way": 3, "deep": {"seed": 9}}, "x"],
    "seed": 0,
}
SCANNED = yaml.safe_dump(CONFIG, sort_keys=False)
OTHERS = {
    "in braces": yaml.safe_dump(CONFIG, default_flow_style=True),
    "indented by four": yaml.safe_dump(CONFIG, sort_keys=False, indent=4),
    "with quoted keys": SCANNED.replace("  way: 20", "  'way': 20"),
    "with an anchor": SCANNED.replace("  way: 20", "  way: &size 20").replace("way: null", "way: *size"),
    "with comments": SCANNED.replace("data:\n", "# the data\ndata: # of it\n\n  # its way\n"),
}


def leaves(tree: Any, stem: str = "") -> list[str]:
    return [f"{stem}{key}" for key in tree] + [
        name
        for key, value in tree.items()
        if isinstance(value, dict)
        for name in leaves(value, f"{stem}{key}.")
    ]


@pytest.mark.parametrize("text", [SCANNED, *OTHERS.values()], ids=["as a run writes it", *OTHERS])
def test_every_key_is_what_the_whole_file_says(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    whole = yaml.safe_load(text)
    for key in leaves(whole):
        value = whole
        for part in key.split("."):
            value = value[part]
        assert value_of(tmp_path / "config.yaml", key) == (True, value), key


@pytest.mark.parametrize("text", [SCANNED, *OTHERS.values()], ids=["as a run writes it", *OTHERS])
@pytest.mark.parametrize(
    "key", ["way", "algo.way", "data.wa", "seed.way", "list.way", "algo.about.way", "title"]
)
def test_a_key_that_lies_elsewhere_is_absent(text: str, key: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    assert value_of(tmp_path / "config.yaml", key) == (False, None)


@pytest.mark.parametrize("text", ["a: [", "&a [*a, *a]", "{a: 1"])
def test_a_damaged_file_is_said(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError):
        value_of(tmp_path / "config.yaml", "a")
