"""The contract that every algorithm keeps on every data source; new YAML files are taken in by themselves."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metalearn.algorithms.baseline import Baseline
from metalearn.algorithms.maml import MAML
from metalearn.algorithms.pixel_nn import PixelNN
from metalearn.algorithms.protonet import ProtoNet
from metalearn.algorithms.reptile import Reptile
from metalearn.build.instantiate import resolve
from metalearn.build.objects import build_algorithm, build_source
from metalearn.config.compose import compose
from metalearn.core import Algorithm, Source, TaskSpec
from metalearn.errors import ConfigError
from metalearn.testing.algorithms import (
    ALGORITHM_CHECKS,
    Trial,
    a_compiled_gradient_is_that_of_the_loop,
    refused_as_declared,
)
from metalearn.testing.checking import Check, ContractError, NotApplicable, name_of, run

CONF = Path(__file__).parents[1] / "conf"
ALGOS = sorted(path.stem for path in (CONF / "algo").glob("[!_]*.yaml"))
DATA = sorted(path.stem for path in (CONF / "data").glob("[!_]*.yaml"))
CPU = torch.device("cpu")
SAME_FORM = ("omniglot", "image_folder")
DECLARATIONS = ("trains_on=", "order_matters=", "ragged=", "plans=", "kind=", "norm_statistics ")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return filled(tmp_path_factory.getbasetemp() / "contract")


# tests/engine takes the fixture over, for another one as pytest sees it: what the pairs read and draw is made
# once all the same
@cache
def filled(root: Path) -> Path:
    """An image folder of 16 classes with 8 drawings each, and a cache that all pairs share."""
    rng = np.random.default_rng(0)
    for number in range(16):
        (root / "images" / f"class_{number:02}").mkdir(parents=True)
        template = rng.integers(0, 256, (20, 20))
        for drawing in range(8):
            noisy = np.clip(template + rng.normal(0, 20, (20, 20)), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(root / "images" / f"class_{number:02}" / f"{drawing}.png")
    return root


def overrides(algo: str, data: str, folder: Path) -> list[str]:
    words = [f"algo={algo}", f"data={data}", "device=cpu"]
    cache = f"data.cache_dir={folder / 'cache'}"
    small = {
        "glyphs": [cache, "data.way=3", "data.query_shot=2"],
        "omniglot": [cache, "data.way=3", "data.query_shot=2"],
        "image_folder": [cache, f"data.root={folder / 'images'}", "data.way=3", "data.query_shot=2"],
    }
    words += small.get(data, [])
    words += ["model.channels=8"] if data in small else []
    words += ["model.norm_statistics=support"] if data in small and algo in ("maml", "reptile") else []
    words += ["algo.eval_adaptation_steps=3"] if algo in ("maml", "reptile", "baseline") else []
    words += ["algo.inner_lr=0.01"] if algo == "maml" else []  # a rate that every kind of task can stand
    return words


@cache
def built(algo: str, data: str, folder: Path) -> tuple[Algorithm, Source] | str:
    """What the pair is, or the refusal that the method declares; ContractError for one that it does not."""
    cfg = compose(overrides(algo, data, folder))
    source = build_source(cfg, CPU)
    try:
        return build_algorithm(cfg, source, CPU), source
    except ConfigError as refusal:
        return refused_as_declared(
            resolve("algo._target_", cfg["algo"]["_target_"], Algorithm, []), source, str(refusal)
        )


@pytest.fixture(params=[(a, d) for d in DATA for a in ALGOS], ids=lambda pair: f"{pair[0]}-{pair[1]}")
def pair(request: pytest.FixtureRequest, folder: Path) -> tuple[Algorithm, Source]:
    algo, data = request.param
    if data == "omniglot" and not os.environ.get("METALEARN_DATA"):
        pytest.skip("real Omniglot: set METALEARN_DATA to a folder that holds it")
    result = built(algo, data, folder)
    if isinstance(result, str):
        pytest.skip(result)
    return result


@pytest.mark.parametrize("check", ALGORITHM_CHECKS, ids=name_of)
def test_contract(check: Check, pair: tuple[Algorithm, Source]) -> None:
    algorithm, source = pair
    if check is a_compiled_gradient_is_that_of_the_loop and source.name in SAME_FORM:
        pytest.skip("tasks of the same form as those of glyphs, which were compiled")
    try:
        assert run(check, Trial(algorithm, source))
    except NotApplicable as reason:
        assert str(reason).startswith(DECLARATIONS), f"{reason}: no declaration of the method or of its tasks"
        pytest.skip(str(reason))


def test_our_methods_declare_what_they_have_always_taken() -> None:
    """What they declare decides which pairs the contract leaves out."""
    every = ("classification", "regression", "rating")
    declared = {
        cls: (cls.kinds, cls.handles_ragged, cls.order_matters, cls.plans)
        for cls in (MAML, Reptile, ProtoNet, Baseline, PixelNN)
    }
    assert declared == {
        MAML: (every, True, False, ("loop", "vmap")),
        Reptile: (every, False, True, ("loop", "vmap")),
        ProtoNet: (("classification",), False, False, ("loop", "vmap")),
        Baseline: (("classification",), False, True, ("loop", "vmap")),
        PixelNN: (("classification",), True, False, ("loop", "vmap")),
    }


def test_a_refusal_that_no_declaration_promises_is_no_pass(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: MAML, spec: TaskSpec) -> None:
        raise ValueError("not for curves")

    monkeypatch.setattr(MAML, "check", refuse)
    with pytest.raises(
        ContractError,
        match="MAML refuses tasks of regression that it declares to take .*not for curves.*`kinds`",
    ):
        built.__wrapped__("maml", "sinusoid", folder)
