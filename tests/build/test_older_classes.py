"""Classes of one's own in runs that are older than a key of the class of ours that they derive from, or
hold.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from metalearn.build.instantiate import construct
from metalearn.build.objects import build_source
from metalearn.config import compose as config
from metalearn.config.compatibility import science
from metalearn.config.saved import read_saved
from metalearn.errors import ConfigError

CPU = torch.device("cpu")
MINE = """
from metalearn.data.glyphs import Glyphs
from metalearn.data.omniglot import Omniglot
from metalearn.models.conv4 import Conv4


class Birds(Glyphs):
    def __init__(self, *, shot=3, **dials):
        super().__init__(shot=shot, **dials)


class Letters(Omniglot):
    def __init__(self, **dials):
        super().__init__(**dials)


class Mixed(Glyphs):
    def __init__(self, *, parts, inner, **dials):
        super().__init__(**dials)
        self.parts, self.inner = parts, inner


class Wide(Conv4):
    def __init__(self, input_spec, **dials):
        super().__init__(input_spec, **dials)
"""
GLYPHS = "metalearn.data.glyphs.Glyphs"


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "older_mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "older_mine", raising=False)


def saved_run(folder: Path, **groups: dict[str, Any]) -> dict[str, Any]:
    """The configuration of an older run with these groups, reopened."""
    (folder / "config.yaml").write_text(yaml.safe_dump({**config.compose([]), **groups}))
    return config.reopen(read_saved(folder), ["trusted=[older_mine]"])


def test_a_subclass_has_what_its_base_did_before(tmp_path: Path) -> None:
    cfg = saved_run(tmp_path, data={"_target_": "older_mine.Birds", "num_classes": 60, "query_shot": 5})
    birds: Any = build_source(cfg, CPU)
    shape = birds.shapes["test"]
    assert (birds.num_classes, birds.rotations_as) == (60, "classes")
    assert (shape.way, shape.shot, shape.query_shot) == (5, 3, 5)  # a default of one's own stays
    letters = saved_run(tmp_path, data={"_target_": "older_mine.Letters"})
    assert build_source(letters, CPU).rotations == ("train", "val", "test")  # type: ignore[attr-defined]


def test_sources_within_a_source_have_it_too(tmp_path: Path) -> None:
    part = {"_target_": GLYPHS, "num_classes": 60}
    data = {
        "_target_": "older_mine.Mixed",
        "parts": [part, {**part, "query_shot": 4}],
        "inner": {"_target_": "older_mine.Birds", "way": 7},
        "way": 3,
    }
    source: Any = build_source(saved_run(tmp_path, data=data), CPU)
    every = [source, *source.parts, source.inner]
    assert [each.shapes["test"].query_shot for each in every] == [15, 15, 4, 15]
    assert [each.shapes["test"].way for each in every] == [3, 5, 5, 7]
    assert [each.num_classes for each in every] == [1200, 60, 60, 1200]


def test_a_model_of_one_s_own_has_it_too(tmp_path: Path) -> None:
    cfg = saved_run(tmp_path, model={"_target_": "older_mine.Wide", "channels": 8})
    spec = build_source(config.compose([]), CPU).spec("train").input_spec
    assert construct(cfg, "model", input_spec=spec).norm_statistics == "transductive"


def test_it_goes_on_as_the_run_that_it_was(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="metalearn")
    data = {"_target_": "older_mine.Birds", "num_classes": 60, "inner": None}
    cfg = saved_run(tmp_path, data=data)
    assert {key for key in science(cfg) if key.startswith("data.")} == {f"data.{key}" for key in data}
    del data["inner"]
    build_source(saved_run(tmp_path, data=data), CPU)
    [note] = caplog.messages
    assert note.startswith("data: older_mine.Birds is of a run that is older than ")
    assert "going on with what was done before: " in note
    assert "rotations_as=classes" in note


def test_a_new_run_says_all_of_it(tmp_path: Path) -> None:
    cfg = {**config.compose([]), "trusted": ["older_mine"]}
    with pytest.raises(
        ConfigError, match="data: older_mine.Birds .* missing a required argument: 'cache_dir'"
    ):
        build_source({**cfg, "data": {"_target_": "older_mine.Birds", "num_classes": 60}}, CPU)
    cfg["data"] = {**config.compose([])["data"], "_target_": "older_mine.Mixed", "parts": [], "inner": None}
    cfg["data"]["inner"] = {"_target_": GLYPHS, "num_classes": 60}
    with pytest.raises(ConfigError, match="older_mine.Mixed .* call to target 'metalearn.data.glyphs"):
        build_source(cfg, CPU)


def test_other_data_in_an_evaluation_says_all_of_it(tmp_path: Path) -> None:
    cfg = saved_run(tmp_path, data={"_target_": "older_mine.Birds", "num_classes": 60})
    other = config.reopen(cfg, ["data=sinusoid", "trusted=[older_mine]"], sizes=cfg["data"])
    del other["data"]["phase"]
    with pytest.raises(ConfigError, match="missing a required.* argument: 'phase'"):
        build_source(other, CPU)
