"""A trained run used from Python, on images of one's own and under another protocol."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import metalearn
from metalearn import run
from metalearn.config import compose
from metalearn.errors import ConfigError, DataError
from metalearn.run.loaded import Loaded
from tests.reliability.harness import QUICK, TINY


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("loaded")
    words = [*TINY, *QUICK, f"data.cache_dir={place / 'cache'}"]
    threads = torch.get_num_threads()
    assert run.train(compose(words), words, place / "run") == 0
    torch.set_num_threads(threads)
    return place / "run"


@pytest.fixture(scope="module")
def learner(run_dir: Path) -> Loaded:
    return metalearn.load(run_dir)


def drawings(count: int, size: int = 50) -> list[Image.Image]:
    rng = np.random.default_rng(1)
    return [Image.fromarray(rng.integers(0, 256, (size, size)).astype(np.uint8)) for _ in range(count)]


def test_every_support_image_gets_its_own_label_back(learner: Loaded) -> None:
    images, labels = drawings(4), ["alpha", "beta", 7, None]
    adapted = learner.adapt(images, labels)
    assert adapted.predict(images) == labels
    assert torch.allclose(adapted.predict_proba(images).sum(-1), torch.ones(4))
    assert adapted.classes == labels


def test_paths_arrays_and_images_are_the_same_to_it(learner: Loaded, tmp_path: Path) -> None:
    images = drawings(2)
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    x = learner.prepare(images)
    assert torch.equal(x, learner.prepare([tmp_path / "0.png", str(tmp_path / "1.png")]))
    assert torch.equal(x, learner.prepare([np.asarray(image) for image in images]))
    assert x.shape == (2, 1, 14, 14)


def test_ink_is_one_on_paper_zero_as_in_the_runs_data(learner: Loaded) -> None:
    white = learner.prepare([Image.new("L", (30, 30), 255), Image.new("RGBA", (30, 30), (0, 0, 0, 0))])
    assert torch.equal(white, torch.zeros(2, 1, 14, 14))
    assert torch.equal(learner.prepare([Image.new("1", (9, 9), 0)]), torch.ones(1, 1, 14, 14))


def test_no_query_influences_another(learner: Loaded) -> None:
    images = drawings(6)
    adapted = learner.adapt(images[:2], ["a", "b"])
    together = adapted.predict_proba(images)
    alone = torch.cat([adapted.predict_proba([image]) for image in images])
    assert torch.allclose(together, alone, atol=1e-6)


def test_weights_are_those_of_the_best_checkpoint(run_dir: Path, learner: Loaded) -> None:
    from metalearn.engine.checkpoint import CheckpointStore

    store = CheckpointStore(run_dir)
    best = store.pointed("best")
    assert best is not None
    weights = store.load(best).tensors
    assert all(torch.equal(weights[f"weights.{name}"], value) for name, value in learner.algorithm.state_dict().items())


def test_mistakes_get_a_sentence(learner: Loaded, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 inputs and 1 labels"):
        learner.adapt(drawings(2), ["a"])
    with pytest.raises(ConfigError, match="put it in brackets"):
        learner.adapt(drawings(1)[0], ["a"])
    with pytest.raises(DataError, match="not a readable image"):
        learner.prepare([tmp_path / "absent.png"])
    with pytest.raises(ConfigError, match="is no run"):
        metalearn.load(tmp_path)


def test_evaluation_under_another_protocol_leaves_the_run_alone(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def content() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in run_dir.rglob("*") if path.is_file() and "evals" not in path.parts}

    before = content()
    for _ in range(2):
        assert run.evaluate_run(run_dir, ["data.way=4", "eval.episodes=5"]) == 0
    folder = run_dir / "evals" / "test_data.way=4_eval.episodes=5"
    assert content() == before
    assert {path.name for path in folder.iterdir()} >= {"results.json", "eval_test.csv"}
    results = (folder / "results.json").read_text()
    assert '"way": 4' in results
    assert '"episodes": 5' in results
    assert "4-way" in capsys.readouterr().out


def test_same_protocol_gives_the_runs_own_numbers(run_dir: Path) -> None:
    assert run.evaluate_run(run_dir, []) == 0
    assert (run_dir / "evals" / "test" / "results.json").read_bytes() == (run_dir / "results.json").read_bytes()
    assert (run_dir / "evals" / "test" / "eval_test.csv").read_bytes() == (run_dir / "eval_test.csv").read_bytes()


def test_checkpoint_that_was_not_kept_is_refused_by_name(run_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"eval.checkpoint=step-000001 is not there; this run kept step-"):
        run.evaluate_run(run_dir, ["eval.checkpoint=step-000001"])


def test_head_bound_to_its_way_refuses_another(tmp_path: Path, run_dir: Path) -> None:
    words = [*TINY, f"data.cache_dir={run_dir.parent / 'cache'}", "trainer.outer_steps=1", "algo.eval_adaptation_steps=1"]
    threads = torch.get_num_threads()
    assert run.train(compose(words), words, tmp_path / "run") == 0
    with pytest.raises(ConfigError, match="bound to the way it was trained with"):
        run.evaluate_run(tmp_path / "run", ["data.way=4"])
    with pytest.raises(ConfigError, match=r"the support holds 2 different labels: .*bound to the way"):
        metalearn.load(tmp_path / "run").adapt(drawings(2), ["a", "b"])
    torch.set_num_threads(threads)
