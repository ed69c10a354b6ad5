"""The jobs of a sweep that commit 61490f1 began are known again by the same commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from metalearn.config.compose import compose
from metalearn.sweep.jobs import identity

EXPERIMENTS = Path(__file__).parents[2] / "conf" / "experiment"
# What that commit's own `identity` returned for these words, or for their forerunners: eval.batch_size for
# eval.chunk, optimizer.schedule.name for optimizer/schedule.
RECORDED = {
    "experiment=omniglot_baseline": "829ab95d",
    "experiment=omniglot_maml": "11c1088c",
    "experiment=omniglot_pixel_nn": "1425190c",
    "experiment=omniglot_protonet": "a23d054b",
    "experiment=omniglot_reptile": "00498466",
    "experiment=ratings_maml": "cb9af02b",
    "experiment=sinusoid_maml": "f09d21b2",
    "experiment=sinusoid_maml device.chunk=5": "46dc0a64",
    "experiment=omniglot_maml seed=3": "43eb1cee",
    "algo=baseline": "44a13f9f",
    "algo=maml": "5ef3c4ab",
    "algo=pixel_nn": "1ecc9bbc",
    "algo=protonet": "8d0f5f8d",
    "algo=reptile": "343e511e",
    "data=image_folder": "23ac6494",
    "data=omniglot": "633fc0cf",
    "data=sinusoid": "a82942f9",
    "data=synthetic_ratings": "995febed",
    "seed=1 data.way=3": "8b8c24a9",
    "eval.chunk=8": "4219f527",
    "eval.chunk=null": "5ef3c4ab",
    "eval.seed=2": "2ab9b10f",
    "eval.monitor=loss": "27d69241",
    "device.chunk=4": "754ac12c",
    "device.plan=loop": "b66b9dd5",
    "device=cpu device.precision=float64": "67663016",
    "optimizer=sgd": "c2fe240d",
    "optimizer=adamw": "16c68085",
    "optimizer/schedule=cosine": "68122dce",
    "optimizer/schedule=step optimizer.schedule.gamma=0.5": "622bea46",
    "optimizer.clip.norm=1": "f77ebb59",
    "model.norm_statistics=support": "93902af7",
    "trainer.keep_last=3": "baed89d1",
}
# recipes that there were not then
YOUNGER = {
    *(f"glyphs_{name}" for name in ("baseline", "maml", "pixel_nn", "proto_maml", "protonet", "reptile")),
    *(f"glyphs_{name}" for name in ("anil", "boil", "t_net", "maml_pp", "imaml", "foml")),
    *(f"omniglot_{name}" for name in ("fomaml", "anil", "boil", "proto_maml", "meta_sgd", "meta_curvature")),
    *(f"omniglot_{name}" for name in ("t_net", "maml_pp", "cavia", "imaml", "foml")),
    *(f"sinusoid_{name}" for name in ("fomaml", "cavia", "joint", "meta_sgd", "meta_curvature")),
}


@pytest.mark.parametrize("words", RECORDED)
def test_a_command_names_the_job_that_it_named_before(words: str) -> None:
    assert identity(compose(words.split())) == RECORDED[words]


def test_every_recipe_of_then_is_among_them() -> None:
    recipes = {path.stem for path in EXPERIMENTS.glob("[!_]*.yaml")}
    recorded = {words.removeprefix("experiment=") for words in RECORDED if words.startswith("experiment=")}
    assert recipes - YOUNGER <= recorded


def test_the_recipe_of_the_sinusoids_says_what_its_tasks_suit() -> None:
    assert compose(["experiment=sinusoid_maml"])["device"]["chunk"] == 25
