"""Runs that are judged, resumed or loaded from elsewhere: another working folder, data that moved, a run
folder that moved.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import metalearn
from metalearn.build.specification import signed
from metalearn.cli import main as cli
from metalearn.data.image_folder import ImageFolder
from metalearn.errors import CheckpointError, ConfigError, DataError
from metalearn.rundir.checkpoint_files import METADATA
from metalearn.rundir.checkpoints import CheckpointStore
from tests.reliability import harness
from tests.security.run_folders import sign
from tests.shipped import built

WORDS = [
    *("device=cpu", "device.threads=1", "data=image_folder", "algo=protonet", "model.channels=4"),
    *(
        "data.image_size=14",
        "data.channels=1",
        "data.way=2",
        "data.query_shot=2",
        "data.invert=true",
        "data.resize=nearest",
    ),
    *(
        "trainer.outer_steps=4",
        "trainer.meta_batch_size=2",
        "trainer.log_every=2",
        "trainer.eval_every=2",
        "trainer.checkpoint_every=2",
    ),
    *("eval.val_episodes=2", "eval.episodes=4", "eval.chunk=2"),
]
LONGER = "trainer.outer_steps=6"


def draw_images(root: Path, seed: int = 0) -> None:
    """Nine classes of four pictures."""
    rng = np.random.default_rng(seed)
    for number in range(9):
        (root / f"class{number}").mkdir(parents=True)
        for picture in range(4):
            Image.fromarray(rng.integers(0, 256, (10, 14), dtype=np.uint8)).save(
                root / f"class{number}" / f"{picture}.png"
            )


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def assert_answer(capsys: pytest.CaptureFixture[str], code: int, sentence: str, *words: str) -> None:
    capsys.readouterr()
    assert cli.main(list(words)) == code
    error = capsys.readouterr().err
    assert sentence in error, error
    assert "Traceback" not in error


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with images/, cache/ and a finished run in run/, all of which the run knows by relative
    paths.
    """
    place, home = tmp_path_factory.mktemp("moved") / "here", Path.cwd()
    draw_images(place / "images")
    splits = {
        "train": ["class0", "class1", "class2"],
        "val": ["class3", "class4"],
        "test": ["class5", "class6", "class8"],
    }
    (place / "splits.json").write_text(json.dumps(splits))
    os.chdir(place)
    try:
        places = ["data.root=images", "data.cache_dir=cache", "data.partition=splits.json"]
        assert cli.main(["train", *WORDS, *places, "run_dir=run"]) == 0
    finally:
        os.chdir(home)
    return place


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, from which the run was made as it were; the working folder is another one."""
    copy = Path(shutil.copytree(trained, tmp_path / "here"))
    facts = json.loads((copy / "run" / "env.json").read_text().replace(str(trained), str(copy)))
    (copy / "run" / "env.json").write_text(json.dumps(facts))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.delenv("METALEARN_DATA", raising=False)
    monkeypatch.setattr("metalearn.run.session.draw_plots", lambda *parts: None)
    return copy


@pytest.fixture(scope="module")
def unmoved(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, made longer where it began."""
    place, home = Path(shutil.copytree(trained, tmp_path_factory.mktemp("unmoved") / "here")), Path.cwd()
    os.chdir(place)
    try:
        assert cli.main(["resume", "run", LONGER]) == 0
    finally:
        os.chdir(home)
    return place / "run"


def test_config_says_what_was_typed_and_env_where_it_was(trained: Path) -> None:
    data = yaml.safe_load((trained / "run" / "config.yaml").read_text())["data"]
    assert (data["root"], data["cache_dir"], data["partition"]) == ("images", "cache", "splits.json")
    facts = json.loads((trained / "run" / "env.json").read_text())
    assert facts["working_folder"] == str(trained)
    found = {"data.root": "images", "data.cache_dir": "cache", "data.partition": "splits.json"}
    assert facts["locations"] == {key: str(trained / name) for key, name in found.items()}


def test_no_result_holds_a_path(trained: Path) -> None:
    for name in ("results.json", "metrics.jsonl", "spec.json"):
        assert str(trained) not in (trained / "run" / name).read_text()


def test_a_run_is_judged_and_resumed_from_another_working_folder(place: Path, unmoved: Path) -> None:
    assert cli.main(["eval", str(place / "run")]) == 0
    assert (place / "run" / "evals" / "test" / "results.json").read_bytes() == (
        place / "run" / "results.json"
    ).read_bytes()
    assert cli.main(["resume", str(place / "run"), LONGER]) == 0
    harness.assert_same_end(place / "run", unmoved)
    assert list(Path.cwd().iterdir()) == []  # no second cache
    assert yaml.safe_load((place / "run" / "config.yaml").read_text())["data"]["root"] == "images"


def test_a_folder_of_the_same_name_is_not_the_run_s_data(place: Path, unmoved: Path) -> None:
    draw_images(Path("images"), seed=1)
    assert cli.main(["eval", str(place / "run")]) == 0
    assert (place / "run" / "evals" / "test" / "results.json").read_bytes() == (
        place / "run" / "results.json"
    ).read_bytes()
    assert cli.main(["resume", str(place / "run"), LONGER]) == 0
    harness.assert_same_end(place / "run", unmoved)


@pytest.mark.parametrize("way", ["relative", "absolute"])
def test_a_run_goes_on_where_its_data_was_moved(
    place: Path, unmoved: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    there = place.parent / "there"
    there.mkdir()
    for name in ("images", "splits.json"):
        (place / name).rename(there / name)
    shutil.rmtree(place / "cache")
    monkeypatch.chdir(there)
    before = there if way == "absolute" else Path()
    words = [
        f"data.root={before / 'images'}",
        f"data.cache_dir={before / 'cache'}",
        f"data.partition={before / 'splits.json'}",
    ]
    assert cli.main(["eval", str(place / "run"), *words]) == 0
    assert (place / "run" / "evals" / "test" / "results.json").read_bytes() == (
        place / "run" / "results.json"
    ).read_bytes()
    assert cli.main(["resume", str(place / "run"), LONGER, *words]) == 0
    harness.assert_same_end(place / "run", unmoved)
    monkeypatch.chdir("/")
    assert cli.main(["eval", str(place / "run"), "eval.episodes=2"]) == 0  # env.json has the new places


def test_other_content_is_refused_and_nothing_is_changed(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_images(place / "others", seed=1)
    splits = json.loads((place / "splits.json").read_text())
    splits["train"], splits["test"] = splits["test"], splits["train"]
    (place / "divided.json").write_text(json.dumps(splits))
    before = contents(place / "run")
    others, divided = f"data.root={place / 'others'}", f"data.partition={place / 'divided.json'}"
    for word in (others, divided):
        assert_answer(
            capsys,
            3,
            "the data is not what this run was trained on (sha256 ",
            "resume",
            str(place / "run"),
            LONGER,
            word,
        )
    assert_answer(
        capsys,
        2,
        "that this run was trained on, by content or by name: ",
        "eval",
        str(place / "run"),
        divided,
    )
    assert contents(place / "run") == before
    assert cli.main(["eval", str(place / "run"), others]) == 0
    assert "warning: the data is not as this run was trained on it (sha256 " in capsys.readouterr().out
    assert not (
        place / "run" / "evals" / "test"
    ).exists()  # the name of the folder says which data was judged


def test_a_division_that_is_no_file_is_the_run_s_science(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_answer(
        capsys,
        2,
        "data.partition: splits.json -> random",
        "resume",
        str(place / "run"),
        LONGER,
        "data.partition=random",
    )


@pytest.mark.parametrize("name", ["images", "splits.json"])
def test_data_that_is_gone_is_named_with_both_places_and_the_way_out(
    place: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (place / name).rename(place / "gone")
    key = {"images": "data.root", "splits.json": "data.partition"}[name]
    sentence = (
        f"{key}={name} is neither at {Path.cwd() / name} nor at {place / name}, where this run found "
        f"it; say where it is with {key}="
    )
    before = contents(place / "run")
    assert_answer(capsys, 3, sentence, "eval", str(place / "run"))
    assert_answer(capsys, 3, sentence, "resume", str(place / "run"), LONGER)
    assert contents(place / "run") == before


def test_an_absolute_place_that_is_gone_is_named_too(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        f"data.root={place / 'images'}",
        f"data.partition={place / 'splits.json'}",
        f"data.cache_dir={place / 'cache'}",
    ]
    assert cli.main(["resume", str(place / "run"), LONGER, *words]) == 0
    (place / "images").rename(place / "gone")
    assert_answer(
        capsys,
        3,
        f"data.root={place / 'images'} is not there any more; say where it is with data.root=",
        "eval",
        str(place / "run"),
    )
    shutil.rmtree(place / "cache")  # is made anew
    assert cli.main(["eval", str(place / "run"), f"data.root={place / 'gone'}"]) == 0


def test_a_place_that_was_just_named_is_never_taken_from_the_folder(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_answer(
        capsys, 3, "data.root=imagse does not exist", "eval", str(place / "run"), "data.root=imagse"
    )


def test_a_finished_run_says_that_it_takes_no_new_place(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(place / "run")
    assert cli.main(["resume", str(place / "run"), "data.root=anywhere"]) == 0
    assert "is finished; nothing to do" in (said := capsys.readouterr().out)
    assert "its data is read again only by an evaluation" in said
    assert contents(place / "run") == before


def test_a_run_older_than_these_files_goes_on(
    place: Path, unmoved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_older(place / "run")
    there = Path(shutil.copytree(place / "images", place.parent / "there" / "images"))
    words = [
        f"data.root={there}",
        f"data.partition={place / 'splits.json'}",
        f"data.cache_dir={place / 'cache'}",
    ]
    assert cli.main(["resume", str(place / "run"), LONGER, *words]) == 0
    assert harness.metrics(place / "run") == harness.metrics(unmoved)
    assert (place / "run" / "results.json").read_bytes() == (unmoved / "results.json").read_bytes()
    assert cli.main(["doctor", str(place / "run")]) == 0
    monkeypatch.chdir("/")
    assert json.loads((place / "run" / "env.json").read_text())["locations"]["data.root"] == str(there)
    shutil.rmtree(there)
    assert metalearn.load(place / "run").prepare.invert is True  # the resumed run has a spec.json


def test_a_run_that_has_no_checkpoint_yet_keeps_its_data(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(place / "run" / "checkpoints")
    (place / "run" / "status.json").unlink()
    draw_images(place / "others", seed=1)
    sentence = "the data is not what this run was trained on (sha256 "
    assert_answer(capsys, 3, sentence, "resume", str(place / "run"), f"data.root={place / 'others'}")


def make_older(run_dir: Path) -> None:
    """What a metalearn without env.json's places and without spec.json left behind."""
    (run_dir / "spec.json").unlink()
    facts = json.loads((run_dir / "env.json").read_text())
    del facts["locations"], facts["working_folder"]
    (run_dir / "env.json").write_text(json.dumps(facts))
    store = CheckpointStore(run_dir)
    data = yaml.safe_load((run_dir / "config.yaml").read_text())["data"]
    for folder in map(store.path, store.steps()):
        facts = json.loads((folder / METADATA).read_text())
        facts["config"] |= {f"data.{key}": data[key] for key in ("root", "cache_dir", "partition")}
        (folder / METADATA).write_text(json.dumps(facts))
        sign(folder)


OWN = """
import hashlib, pathlib, torch
from metalearn.core import Examples, InputSpec, Location, Source, Task, TaskSpec
from metalearn.data.sampling import task_keys
from metalearn.hashing import uniform
from metalearn.objectives import Regression

class Mine(Regression):
    def __init__(self, weight):
        self.weight = weight

class Shifted(Source):
    name = "shifted"
    locations = (Location("file"),)
    def __init__(self, *, device, file, weight=2.0):
        self.device, self.content, self.weight = device, pathlib.Path(file).read_text(), weight
    def spec(self, split):
        return TaskSpec("regression", Mine(self.weight), 1, InputSpec((1,)), support_size=3, query_size=4)
    def tasks(self, split, *, seed, first, count):
        key = task_keys(seed, split, first=first, count=count, device=self.device)
        x = uniform(key, (7,))[..., None]
        rows = Examples(x, x + float(self.content), torch.ones(count, 7, dtype=torch.bool))
        sides = slice(3), slice(3, None)
        return Task(*(Examples(*(part[:, side] for part in rows)) for side in sides), key)
    def protocol(self, split):
        facts = {"data": "shifted", "split": split, "way": None, "shot": 3, "query_shot": 4}
        return {**facts, "partition": "none", "augmentation": "none"}
    def fingerprint(self):
        return hashlib.sha256(self.content.encode()).hexdigest()
"""


def test_a_source_of_one_s_own_says_what_may_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = tmp_path / "here"
    (here / "conf" / "data").mkdir(parents=True)
    (here / "conf" / "data" / "shifted.yaml").write_text(
        "defaults:\n  - override /model@_global_.model: mlp\n  - _self_\n_target_: mover.Shifted\nfile: "
        "shift.txt\nweight: 2.0\n"
    )
    (here / "mover.py").write_text(OWN)
    (here / "shift.txt").write_text("0.5")
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(str(here))
    tiny = [word for word in WORDS if word.startswith(("device", "trainer", "eval"))]
    words = [
        "--config-dir",
        "conf",
        "data=shifted",
        "trusted=[mover]",
        "algo=maml",
        "algo.adaptation_steps=1",
        "algo.eval_adaptation_steps=1",
    ]
    monkeypatch.setattr("metalearn.run.session.draw_plots", lambda *parts: None)
    assert cli.main(["train", *words, *tiny, "run_dir=run"]) == 0
    (here / "shift.txt").rename(tmp_path / "shift.txt")
    run_dir = str(here / "run")
    assert_answer(
        capsys,
        3,
        f"data.file=shift.txt is not at {here}/shift.txt; say where",
        "eval",
        run_dir,
        "trusted=[mover]",
    )
    assert cli.main(["resume", run_dir, LONGER, "trusted=[mover]", f"data.file={tmp_path}/shift.txt"]) == 0
    (tmp_path / "shift.txt").unlink()
    learner = metalearn.load(run_dir, trusted=["mover"])
    assert learner.algorithm.spec.objective.weight == 2.0  # type: ignore[attr-defined]
    with pytest.raises(
        ConfigError, match=r"spec.json: objective._target_=mover.Mine is outside the trusted packages"
    ):
        metalearn.load(run_dir)


class TestLoad:
    @pytest.fixture
    def pictures(self) -> list[np.ndarray]:
        rng = np.random.default_rng(5)
        return [rng.integers(0, 256, (20, 20), dtype=np.uint8) for _ in range(6)]

    def test_needs_nothing_but_the_run_folder(
        self, place: Path, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(place)
        before = predictions(metalearn.load("run"), pictures)
        monkeypatch.chdir("/")
        (place / "run").rename(place / "moved")
        for name in ("images", "cache"):
            shutil.rmtree(place / name)
        (place / "splits.json").unlink()
        (place / "moved" / "env.json").unlink()
        learner = metalearn.load(place / "moved")
        assert torch.equal(predictions(learner, pictures), before)
        assert learner.prepare.resize == "nearest"
        assert learner.prepare.invert is True
        assert not (place / "cache").exists()

    def test_inputs_are_prepared_as_the_source_did(self, place: Path) -> None:
        dials = {
            "way": 2,
            "query_shot": 2,
            "invert": True,
            "resize": "nearest",
            "image_size": 14,
            "channels": 1,
        }
        partition = str(place / "splits.json")
        source = built(
            ImageFolder, device=torch.device("cpu"), root=str(place / "images"), partition=partition, **dials
        )  # type: ignore[arg-type]
        prepared = metalearn.load(place / "run").prepare([place / "images" / "class0" / "0.png"])
        assert torch.equal(prepared, source._images("train", torch.tensor([0])))

    def test_makes_no_source(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        saved = yaml.safe_load((place / "run" / "config.yaml").read_text())
        saved["data"]["_target_"] = "of_my_own.Pictures"  # a package that is neither here nor trusted
        (place / "run" / "config.yaml").write_text(yaml.safe_dump(saved))
        assert metalearn.load(place / "run").algorithm.spec.kind == "classification"

    def test_an_older_run_is_built_from_its_data_if_they_are_the_same(
        self, place: Path, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = predictions(metalearn.load(place / "run"), pictures)
        make_older(place / "run")
        with pytest.raises(
            DataError, match=rf"data.root=images is not at {Path.cwd() / 'images'}; put it back there"
        ):
            metalearn.load(place / "run")
        monkeypatch.chdir(place)
        assert torch.equal(predictions(metalearn.load("run"), pictures), before)
        shutil.rmtree(place / "images")
        draw_images(place / "images", seed=1)
        with pytest.raises(
            DataError, match=r"run has no spec.json.* the data is not what this run was trained on"
        ):
            metalearn.load("run")


def predictions(learner: Any, pictures: list[np.ndarray]) -> torch.Tensor:
    found: torch.Tensor = learner.adapt(pictures[:4], list("aabb")).predict_proba(pictures[4:])
    return found


class TestSpecification:
    """spec.json as somebody else may have written it."""

    @staticmethod
    def refused(run_dir: Path, sentence: str) -> None:
        with pytest.raises((CheckpointError, ConfigError), match=sentence) as caught:
            metalearn.load(run_dir)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "text",
        ["", "[]", "null", "{", "[" * 99_999, '{"format_version": 1}', '{"format_version": 99}', "\udc80"],
    )
    def test_one_that_is_none_ends_in_a_sentence(self, place: Path, text: str) -> None:
        (place / "run" / "spec.json").write_text(text, errors="surrogateescape")
        self.refused(place / "run", "spec.json is not valid: .*; restore it from a backup")

    def test_any_changed_byte_is_found(self, place: Path) -> None:
        path = place / "run" / "spec.json"
        path.write_text(path.read_text().replace('"invert": true', '"invert": false'))
        self.refused(
            place / "run", "spec.json is not valid: it does not have the sha256 that was written into it"
        )
        path.unlink()
        path.mkdir()
        self.refused(place / "run", "spec.json is not valid: it is not a file")

    @pytest.mark.parametrize(
        ("part", "key", "value"),
        [
            *[("task", "kind", value) for value in ("", 3, None, "clasification")],
            *[("task", "num_outputs", value) for value in (-1, 0, 2**40, "5", 2.0, True, None)],
            *[("task", "ragged", value) for value in (1, "no")],
            *[
                ("task", "input_spec", value)
                for value in ({}, [], None, {"shape": "no"}, {"shape": [1, -1]}, {"shape": [2**20] * 3})
            ],
            *[
                ("task", "input_spec", value)
                for value in ({"inputs": {}}, {"shape": [1], "num_categories": 2**60}, {"inputs": {"a": 1}})
            ],
            *[("task", "objective", value) for value in (None, "os.system", {"_target_": "torch.nn.Linear"})],
            ("task", "objective", {"_target_": "metalearn.objectives.Classification", "command": "x"}),
            ("task", "surprise", 1),
            *[("preprocessing", "resize", value) for value in ("cubic", 3, None, ["area"])],
            *[("preprocessing", "invert", value) for value in ("yes", 1, None)],
            ("preprocessing", "mean", [0.5]),
        ],
    )
    def test_a_value_that_cannot_be_is_named(self, place: Path, part: str, key: str, value: Any) -> None:
        path = place / "run" / "spec.json"
        content = json.loads(path.read_text())
        content[part][key] = value
        path.write_text(json.dumps(signed(content)))
        self.refused(place / "run", f"spec.json is not valid: .*{'surprise' if key == 'surprise' else ''}")

    @pytest.mark.parametrize(
        ("name", "sentence"),
        [
            (
                "os.system",
                r"objective._target_=os.system is outside the trusted packages; .*'trusted=\[os\]'",
            ),
            (
                "metalearn.objectives.masked_mean",
                "objective._target_=metalearn.objectives.masked_mean is not a class",
            ),
        ],
    )
    def test_an_objective_is_named_by_the_rules_of_any_target(
        self, place: Path, name: str, sentence: str
    ) -> None:
        path = place / "run" / "spec.json"
        content = json.loads(path.read_text())
        content["task"]["objective"]["_target_"] = name
        path.write_text(json.dumps(signed(content)))
        self.refused(place / "run", f"spec.json: {sentence}")

    def test_weights_of_another_shape_are_refused(self, place: Path) -> None:
        path = place / "run" / "spec.json"
        content = json.loads(path.read_text())
        content["task"]["input_spec"]["shape"][0] = 3
        path.write_text(json.dumps(signed(content)))
        self.refused(place / "run", "weights")
