"""A trained run used from Python, on images of one's own and under another protocol."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import metalearn
from metalearn.build.objects import build_algorithm, build_source
from metalearn.cli import main as cli
from metalearn.config.compose import compose
from metalearn.data.preprocessing import Preprocessing
from metalearn.errors import ConfigError, DataError
from metalearn.inference.learner import Loaded
from metalearn.run.evaluate import evaluate_run
from metalearn.run.train import train
from metalearn.rundir.checkpoints import CheckpointStore
from tests.reliability.harness import QUICK, TINY


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("loaded")
    words = [*TINY, *QUICK, f"data.cache_dir={place / 'cache'}"]
    threads = torch.get_num_threads()
    assert train(compose(words), words, place / "run") == 0
    torch.set_num_threads(threads)
    return place / "run"


@pytest.fixture(scope="module")
def learner(run_dir: Path) -> Loaded:
    return metalearn.load(run_dir)


def untrained(*words: str) -> Loaded:
    cfg = compose(["device=cpu", *words])
    device = torch.device("cpu")
    source = build_source(cfg, device)
    algorithm = build_algorithm(cfg, source, device)
    return Loaded(
        algorithm, Preprocessing.of(source.spec("train").input_spec, source.preprocessing()), device
    )


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


def test_floats_are_model_inputs_whether_array_or_tensor(learner: Loaded) -> None:
    x = learner.prepare(drawings(2))
    for floats in (x.numpy(), x.double(), x.numpy().astype("float64"), list(x), list(x.numpy())):
        assert torch.equal(learner.prepare(floats), x)


def test_tensors_of_bytes_are_read_as_the_images_they_hold(learner: Loaded) -> None:
    images = drawings(2)
    pixels = torch.stack([torch.from_numpy(np.asarray(image).copy()) for image in images])
    for given in (pixels, pixels[:, None], pixels[..., None], pixels[:, None].expand(2, 3, 50, 50)):
        assert torch.equal(learner.prepare(given), learner.prepare(images))


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ([], "no inputs; give at least one"),
        (5, "inputs are a list or an array of images, not int"),
        ({"user": [1]}, "inputs are a list or an array of images, not dict"),
        (["picture.png", 5], "DataError: picture.png is not a readable image"),
        ([5], "an image is a path, a PIL image or an array, not int"),
        (
            np.full((1, 14, 14), 900, np.uint16),
            r"an image of uint16 with values 900 to 900; expected uint8 .* floats in \[0, 1\]",
        ),
        (np.full((1, 14, 14), 255, np.int64), "an image of int64 with values 255 to 255; expected uint8"),
        (torch.full((1, 14, 14), 255), "an image of int64 with values 255 to 255; expected uint8"),
        (
            np.zeros((2, 9), np.uint8),
            r"an image of shape \(9,\); expected \(h, w\), \(h, w, 3\) or \(3, h, w\)",
        ),
        (np.zeros((2, 9, 9, 7), np.uint8), r"an image of shape \(9, 9, 7\); expected"),
        (np.zeros((2, 0, 9), np.uint8), r"an image of shape \(0, 9\); expected"),
        (
            torch.rand(3, 14, 14),
            r"inputs of shape \(3, 14, 14\); expected \(n, 1, 14, 14\).*Floats .* taken as they are",
        ),
        (torch.rand(3, 1, 32, 32), r"inputs of shape \(3, 1, 32, 32\); expected \(n, 1, 14, 14\)"),
        (np.zeros((0, 1, 14, 14), np.float32), "no inputs; give at least one"),
        ([np.zeros((14, 14), np.float32)], r"inputs of shape \(1, 14, 14\); expected \(n, 1, 14, 14\)"),
        (np.full((2, 1, 14, 14), 255.0), r"float64 images with values 255 to 255; expected \[0, 1\]"),
        (np.full((2, 1, 14, 14), np.nan), r"float64 images with values nan to nan; expected \[0, 1\]"),
    ],
)
def test_what_cannot_be_a_batch_of_images_is_named(learner: Loaded, inputs: object, sentence: str) -> None:
    with pytest.raises((ConfigError, DataError)) as caught:
        learner.prepare(inputs)
    assert re.search(sentence, f"{caught.typename}: {caught.value}")


def test_labels_may_be_a_tensor_or_an_array(learner: Loaded) -> None:
    images = drawings(6)
    for labels in (
        torch.tensor([4, 9, 7] * 2),
        np.array([4, 9, 7] * 2),
        list(torch.tensor([4, 9, 7] * 2)),
        [4, 9, 7] * 2,
    ):
        adapted = learner.adapt(images, labels)
        assert adapted.classes == [4, 9, 7]
        assert set(adapted.predict(images)) <= {4, 9, 7}
        assert adapted.predict_proba(images).shape == (6, 3)


def test_labels_and_steps_that_cannot_be_are_named(learner: Loaded) -> None:
    for labels, sentence in (
        ([[0], [1]], r"labels\[0\]=\[0\] .*list"),
        (7, "labels are a list, not int"),
        ([], "2 inputs and 0 labels"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            learner.adapt(drawings(2), labels)  # type: ignore[arg-type]
    for steps in (-1, 1.5, True):
        with pytest.raises(ConfigError, match=rf"steps={steps}; expected a whole number from 0"):
            learner.adapt(drawings(2), ["a", "b"], steps=steps)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no inputs; give at least one"):
        learner.adapt([], [])
    with pytest.raises(ConfigError, match="no inputs; give at least one"):
        learner.adapt(drawings(2), ["a", "b"]).predict([])


def test_more_steps_than_a_method_has_random_numbers_for_are_refused() -> None:
    reptile = untrained(
        "algo=reptile", "data.image_size=14", "model.channels=4", "algo.eval_adaptation_steps=3"
    )
    images = drawings(5)
    assert len(reptile.adapt(images, list("abcde"), steps=3).predict(images)) == 5
    with pytest.raises(ConfigError, match=r"steps=4; expected a whole number from 0 to 3"):
        reptile.adapt(images, list("abcde"), steps=4)


def test_inputs_and_targets_of_regression_are_checked() -> None:
    learner = untrained("data=sinusoid", "algo=maml")
    x, y = [[0.1], [0.2]], torch.tensor([0.5, 0.6])
    assert learner.adapt(x, y).predict(np.array(x)).shape == (2, 1)
    for inputs, labels, sentence in (
        ([0.1, 0.2], y, r"inputs of shape \(2,\); expected \(n, 1\)"),
        ([[0.1], [0.2, 0.3]], y, r"inputs are no array of numbers; expected shape \(n, 1\)"),
        (x, ["a", "b"], r"labels are no numbers of shape \(2,\) or \(2, 1\)"),
        (x, [[1.0, 2.0]] * 2, r"labels are no numbers of shape \(2,\) or \(2, 1\)"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            learner.adapt(inputs, labels)  # type: ignore[arg-type]


def test_mappings_of_inputs_are_checked() -> None:
    learner = untrained("data=synthetic_ratings", "algo=maml")
    spec = learner.algorithm.spec.input_spec
    assert isinstance(spec, dict)
    good = {name: torch.zeros(2, *part.shape, dtype=torch.int64) for name, part in spec.items()}
    assert learner.adapt(good, [1.0, 5.0]).predict(good).shape == (2, 1)
    codes = spec["user"].num_categories
    for inputs, sentence in (
        ([1, 2], "inputs are a mapping of item, user, not list"),
        ({"user": good["user"]}, "inputs have the keys user; expected item, user"),
        (good | {"item": good["item"][:1]}, "inputs have item: 1, user: 2 rows; expected as many of each"),
        (good | {"user": good["user"][:, :1]}, r"inputs\['user'\] of shape \(2, 1\); expected \(n, "),
        (
            good | {"user": good["user"].float()},
            rf"inputs\['user'\] of float32 .* expected whole numbers from 0 to {codes - 1}",
        ),
        (
            good | {"user": good["user"] + codes},
            rf"inputs\['user'\] of int64 with values {codes} to {codes}; expected whole",
        ),
        (good | {"user": "me"}, r"inputs\['user'\] are no array of numbers"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            learner.prepare(inputs)


def test_a_checkpoint_of_no_known_name_is_refused(run_dir: Path) -> None:
    for name in ("bset", "step-", 4, "step-4.5"):
        with pytest.raises(ConfigError, match=rf"checkpoint={name}; expected best, last or step-NUMBER"):
            metalearn.load(run_dir, checkpoint=name)  # type: ignore[arg-type]


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
    store = CheckpointStore(run_dir)
    best = store.pointed("best")
    assert best is not None
    weights = store.load(best).tensors
    assert all(
        torch.equal(weights[f"weights.{name}"], value)
        for name, value in learner.algorithm.state_dict().items()
    )


def test_a_checkpoint_s_own_path_is_loaded(run_dir: Path, learner: Loaded) -> None:
    store = CheckpointStore(run_dir)
    weights = learner.algorithm.state_dict()
    best, last = (store.pointed(name) for name in ("best", "last"))
    assert best is not None and last is not None and best != last
    for name in ("best", store.path(best).name):
        loaded = metalearn.load(run_dir / "checkpoints" / name).algorithm.state_dict()
        assert all(torch.equal(weights[key], loaded[key]) for key in weights)
    by_path = metalearn.load(f"{run_dir}/checkpoints/last/").algorithm.state_dict()
    by_word = metalearn.load(run_dir, checkpoint="last").algorithm.state_dict()
    assert all(torch.equal(by_word[key], by_path[key]) for key in weights)
    assert not all(torch.equal(weights[key], by_path[key]) for key in weights)
    with pytest.raises(ConfigError, match="is one checkpoint and checkpoint=last another; give only one"):
        metalearn.load(run_dir / "checkpoints" / "best", checkpoint="last")
    with pytest.raises(ConfigError, match="step-000099 is not there; this run kept step-"):
        metalearn.load(run_dir / "checkpoints" / "step-000099")


def test_loading_needs_the_weights_and_what_describes_them_only(run_dir: Path, tmp_path: Path) -> None:
    store = CheckpointStore(run_dir)
    best = store.pointed("best")
    assert best is not None
    for name in (
        *("config.yaml", "spec.json", "checkpoints/best"),
        *(f"checkpoints/{store.path(best).name}/{file}" for file in ("weights.safetensors", "metadata.json")),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(run_dir / name, tmp_path / name)
    images = drawings(2)
    assert metalearn.load(tmp_path).adapt(images, ["a", "b"]).predict(images) == ["a", "b"]
    weights = load_file(tmp_path / "checkpoints" / store.path(best).name / "weights.safetensors")
    assert weights.keys() == metalearn.load(run_dir).algorithm.state_dict().keys()


def test_a_run_and_its_checkpoints_are_shown(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = CheckpointStore(run_dir)
    best = store.pointed("best")
    assert best is not None
    assert cli.main(["show", str(run_dir)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"# run {run_dir}: finished\n# result: accuracy ")
    assert f"{store.path(best).name} (best)" in shown.splitlines()[2]
    assert "_target_: metalearn.algorithms.protonet.ProtoNet" in shown
    assert cli.main(["show", str(run_dir / "checkpoints" / "best")]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"# {store.path(best)} (best): step {best}, validated at ")
    [line] = [line for line in shown.splitlines() if line.startswith("outer_step")]
    assert line.split() == ["outer_step", "I64", "[]", "weights.safetensors"]
    assert "random.cpu" in shown
    assert cli.main(["show", str(run_dir / "checkpoints" / "step-000099")]) == 4
    assert "step-000099 names no checkpoint; this run has step-" in capsys.readouterr().err


def test_mistakes_get_a_sentence(learner: Loaded, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 inputs and 1 labels"):
        learner.adapt(drawings(2), ["a"])
    with pytest.raises(ConfigError, match="put it in brackets"):
        learner.adapt(drawings(1)[0], ["a"])
    with pytest.raises(DataError, match="not a readable image"):
        learner.prepare([tmp_path / "absent.png"])
    with pytest.raises(ConfigError, match="is no run"):
        metalearn.load(tmp_path)


def test_evaluation_under_another_protocol_leaves_the_run_alone(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="metalearn")

    def content() -> dict[str, bytes]:
        return {
            str(path): path.read_bytes()
            for path in run_dir.rglob("*")
            if path.is_file() and "evals" not in path.parts
        }

    before = content()
    for _ in range(2):
        assert evaluate_run(run_dir, ["data.way=4", "eval.episodes=5"]) == 0
    folder = run_dir / "evals" / "test_data.way=4_eval.episodes=5"
    assert content() == before
    assert {path.name for path in folder.iterdir()} >= {"results.json", "eval_test.csv"}
    results = (folder / "results.json").read_text()
    assert '"way": 4' in results
    assert '"episodes": 5' in results
    assert "4-way" in caplog.text


def test_same_protocol_gives_the_runs_own_numbers(run_dir: Path) -> None:
    assert evaluate_run(run_dir, []) == 0
    assert (run_dir / "evals" / "test" / "results.json").read_bytes() == (
        run_dir / "results.json"
    ).read_bytes()
    assert (run_dir / "evals" / "test" / "eval_test.csv").read_bytes() == (
        run_dir / "eval_test.csv"
    ).read_bytes()


def test_checkpoint_that_was_not_kept_is_refused_by_name(run_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"eval.checkpoint=step-000001 is not there; this run kept step-"):
        evaluate_run(run_dir, ["eval.checkpoint=step-000001"])


def test_head_bound_to_its_way_refuses_another(tmp_path: Path, run_dir: Path) -> None:
    words = [
        *TINY,
        f"data.cache_dir={run_dir.parent / 'cache'}",
        "trainer.outer_steps=1",
        "algo.eval_adaptation_steps=1",
    ]
    threads = torch.get_num_threads()
    assert train(compose(words), words, tmp_path / "run") == 0
    with pytest.raises(ConfigError, match="bound to the way it was trained with"):
        evaluate_run(tmp_path / "run", ["data.way=4"])
    with pytest.raises(ConfigError, match=r"the support holds 2 different labels: .*bound to the way"):
        metalearn.load(tmp_path / "run").adapt(drawings(2), ["a", "b"])
    torch.set_num_threads(threads)
