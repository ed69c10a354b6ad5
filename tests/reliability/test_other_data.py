"""An evaluation on data that a run was not trained on: what it may be, and that nobody in it was trained on,
whatever the words.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metalearn.build.parts import Parts
from metalearn.cli import main as cli
from metalearn.config.compose import compose
from metalearn.run.splits import reopen_to_evaluate

SMALL = [
    *(
        "device=cpu",
        "device.threads=1",
        "algo=protonet",
        "model.norm_statistics=running",
        "model.channels=4",
        "data.image_size=14",
    ),
    *(
        "data.way=2",
        "data.query_shot=2",
        "trainer.outer_steps=2",
        "trainer.meta_batch_size=2",
        "trainer.log_every=2",
    ),
    *("trainer.eval_every=2", "trainer.checkpoint_every=2", "eval.val_episodes=2", "eval.episodes=4"),
]


def draw(root: Path, classes: dict[str, int], count: int = 4) -> Path:
    """A folder of class folders of noise: {name: seed of its pictures}."""
    for name, seed in classes.items():
        rng = np.random.default_rng(seed)
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(rng.integers(0, 256, (12, 12), dtype=np.uint8)).save(
                root / name / f"{number}.png"
            )
    return root


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pictures/, whose classes train/0 … test/9 are of seeds 0 … 9; run_folder and run_glyphs, two runs."""
    place, threads = tmp_path_factory.mktemp("other_data"), torch.get_num_threads()
    splits = ["train"] * 4 + ["val"] * 3 + ["test"] * 3
    draw(place / "pictures", {f"{split}/{number}": number for number, split in enumerate(splits)})
    words = [*SMALL, f"data.cache_dir={place / 'cache'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("metalearn.run.session.draw_plots", lambda *parts: None)
        folder = ["data=image_folder", f"data.root={place / 'pictures'}", "data.channels=1"]
        assert cli.main(["train", *words, *folder, f"run_dir={place / 'run_folder'}"]) == 0
        glyphs = ["data=glyphs", "data.num_classes=48", "data.num_drawings=6"]
        assert cli.main(["train", *words, *glyphs, f"run_dir={place / 'run_glyphs'}"]) == 0
    torch.set_num_threads(threads)
    return place


def evaluated(run_dir: Path, words: Iterable[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and what was said."""
    capsys.readouterr()
    code = cli.main(["eval", str(run_dir), *words])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def shuffled_splits(root: Path, names: str = "{}") -> Path:
    """Pictures like those of the run, whose training classes stand in the test split."""
    splits = ["test"] * 4 + ["train"] * 3 + ["val"] * 3
    return draw(root, {f"{split}/{names.format(number)}": number for number, split in enumerate(splits)})


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], "other{}"),
        (["data.resize=lanczos"], "{}"),
        (["data.invert=true"], "other{}"),
        (["data.rotations=[test]"], "other{}"),
        (["data.min_images=2"], "other{}"),
        (["data=image_folder"], "other{}"),
    ],
)
def test_no_key_makes_training_classes_pass_for_new_ones(
    place: Path, tmp_path: Path, words: list[str], names: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shuffled_splits(tmp_path / "moved", names)
    code, said = evaluated(place / "run_folder", [f"data.root={root}", *words], capsys)
    assert code == 2, said
    assert (
        f"holds 4 that this run was trained on, by content or by name: {names.format(0)}, {names.format(1)}"
        in said
    )
    assert not (place / "run_folder" / "evals").exists()


def test_data_of_another_group_is_judged_with_the_sizes_of_the_run(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = draw(tmp_path / "all", {name: number for number, name in enumerate("abcd", 20)})
    words = [
        "data=image_folder",
        f"data.root={root}",
        "data.fractions=[0,0,1]",
        f"data.cache_dir={tmp_path / 'cache'}",
    ]
    code, said = evaluated(place / "run_glyphs", words, capsys)
    assert code == 0, said
    assert (
        "this protocol: protonet on image_folder · test tasks, trained on glyphs · 2-way 1-shot, 2 queries "
        "per class" in said
    )
    [folder] = (place / "run_glyphs" / "evals").iterdir()
    results = json.loads((folder / "results.json").read_text())
    shutil.rmtree(folder.parent)
    assert results["data"] == "image_folder"
    protocol = results["protocol"]
    expected = {
        "data": "image_folder",
        "trained_on": "glyphs",
        "cross_domain": True,
        "seen_in": "none",
        "num_classes": 4,
        "way": 2,
    }
    expected |= {
        "query_shot": 2,
        "train_way": 2,
        "channels": 1,
        "image_size": 14,
        "invert": False,
        "fractions": [0.0, 0.0, 1.0],
    }
    assert {name: protocol[name] for name in expected} == expected


def test_too_few_classes_of_other_data_name_the_way_to_take_all_of_them(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = draw(tmp_path / "all", {name: number for number, name in enumerate("abcd", 20)})
    code, said = evaluated(place / "run_glyphs", ["data=image_folder", f"data.root={root}"], capsys)
    assert code == 2
    assert (
        "data.way=2 but split 'test' of image_folder has 1 classes; lower data.way or give the split more "
        "classes; " in said
    )
    assert (
        "a run that was trained on other data can be judged on all 4 classes with data.fractions=[0,0,1]"
        in said
    )
    assert "'train'" not in said and "'val'" not in said


def test_an_evaluation_asks_only_for_the_split_that_is_judged(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = draw(tmp_path / "few", {"train/a": 20, "val/b": 21, "test/c": 22, "test/d": 23}, count=3)
    draw(root, {"train/e": 24}, count=1)
    words = [f"data.root={root}", f"data.cache_dir={tmp_path / 'cache'}"]
    assert evaluated(place / "run_folder", words, capsys)[0] == 0
    code, said = evaluated(place / "run_folder", [*words, "eval.split=train"], capsys)
    shutil.rmtree(place / "run_folder" / "evals")
    assert code == 2
    assert "1 of 2 classes have fewer images than the 3 of shot + query_shot: e (1)" in said


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (
            ["data=sinusoid"],
            "data=sinusoid gives tasks of regression of inputs (1,) with 1 outputs, but this run was trained "
            "on ",
        ),
        (
            ["data=synthetic_ratings"],
            "this run was trained on classification of inputs (1, 14, 14); choose data of the same kind",
        ),
        (
            ["data=glyphs", "data.image_size=20"],
            "of inputs (1, 20, 20), but this run was trained on classification of inputs (1, 14, 14)",
        ),
        (["data=glyfs"], "data=glyfs does not exist; did you mean data=glyphs?"),
        (["data=glyphs", "data.resize=area"], "data.resize is not a key"),
        (["algo=maml"], "algo=maml: algo was fixed when the run began"),
    ],
)
def test_what_the_run_cannot_be_judged_on_is_refused(
    place: Path, words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = evaluated(place / "run_folder", words, capsys)
    assert (code, reason in said) == (2, True), said
    assert not (place / "run_folder" / "evals").exists()


def test_a_run_never_goes_on_with_other_data(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["resume", str(place / "run_glyphs"), "data=image_folder"]) == 2
    assert "data=image_folder: data was fixed when the run began" in capsys.readouterr().err


@pytest.mark.parametrize(("split", "seen_in"), [("train", "train"), ("val", "val"), ("test", "none")])
@pytest.mark.parametrize("words", [[], ["data.invert=true"]])
def test_the_run_s_own_splits_may_be_judged_and_are_called_what_they_are(
    place: Path, split: str, seen_in: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = evaluated(place / "run_folder", [f"eval.split={split}", *words], capsys)
    assert code == 0, said
    [results] = (place / "run_folder" / "evals").glob("*/results.json")
    protocol = json.loads(results.read_text())["protocol"]
    shutil.rmtree(results.parents[1])
    assert protocol["seen_in"] == seen_in
    assert "cross_domain" not in protocol


def test_classes_that_chose_the_checkpoint_are_not_judged_as_new(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = draw(
        tmp_path / "moved", {"train/x": 90, "val/y": 91, "test/a": 4, "test/b": 5, "test/c": 6, "test/d": 92}
    )
    code, said = evaluated(place / "run_folder", [f"data.root={root}"], capsys)
    assert code == 2
    assert (
        "holds 3 that chose this run's checkpoint (its split 'val'), by content or by name: a, b, c; " in said
    )


@pytest.fixture
def copied(place: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(place / "run_folder", tmp_path / "run"))


class TestSplitsFile:
    def test_it_says_who_was_in_each_split(self, copied: Path) -> None:
        tree = json.loads((copied / "splits.json").read_text())
        names = {split: list(tree[split]["image_folder"]) for split in ("train", "val", "test")}
        assert names == {"train": ["0", "1", "2", "3"], "val": ["4", "5", "6"], "test": ["7", "8", "9"]}
        assert tree["data"] == "image_folder"
        assert {len(sha256) for split in names for sha256 in tree[split]["image_folder"].values()} == {16}

    @pytest.mark.parametrize("text", [None, "{", "shortened"])
    def test_without_it_the_run_s_data_tells_or_other_data_is_refused(
        self, place: Path, copied: Path, tmp_path: Path, text: str | None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tree = json.loads((copied / "splits.json").read_text())
        (copied / "splits.json").unlink()
        if text is not None:
            tree["train"]["image_folder"].popitem()
            (copied / "splits.json").write_text(json.dumps(tree) if text == "shortened" else text)
        words = [f"data.root={shuffled_splits(tmp_path / 'moved')}", "data.invert=true"]
        code, said = evaluated(copied, words, capsys)
        assert (code, "holds 4 that this run was trained on" in said) == (2, True), said
        assert cli.main(["doctor", str(copied)]) == 1
        assert "FAILED  splits.json: it is" in capsys.readouterr().out.replace("it cannot be", "it is")
        cfg = (copied / "config.yaml").read_text()
        (copied / "config.yaml").write_text(cfg.replace(str(place / "pictures"), str(tmp_path / "gone")))
        code, said = evaluated(copied, words, capsys)
        assert (code, "the data that the run was trained on is not here to tell who was in it" in said) == (
            2,
            True,
        ), said
        assert evaluated(copied, [f"data.root={place / 'pictures'}"], capsys)[0] == 0

    def test_it_is_enough_where_the_run_s_data_is_gone(
        self, place: Path, copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        cfg = (copied / "config.yaml").read_text()
        (copied / "config.yaml").write_text(cfg.replace(str(place / "pictures"), str(tmp_path / "gone")))
        code, said = evaluated(copied, [f"data.root={shuffled_splits(tmp_path / 'moved')}"], capsys)
        assert (code, "holds 4 that this run was trained on" in said) == (2, True), said

    def test_a_run_that_goes_on_writes_it_anew(
        self, copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("metalearn.run.session.draw_plots", lambda *parts: None)
        before = (copied / "splits.json").read_bytes()
        (copied / "splits.json").unlink()
        assert cli.main(["resume", str(copied), "trainer.outer_steps=4"]) == 0
        assert (copied / "splits.json").read_bytes() == before
        assert cli.main(["doctor", str(copied)]) == 0
        assert "ok      splits.json: image_folder: train 4, val 3, test 3" in capsys.readouterr().out


def test_a_head_over_training_classes_keeps_their_number_and_every_rank_builds_it(
    place: Path, tmp_path: Path
) -> None:
    root = draw(tmp_path / "all", {name: number for number, name in enumerate("abcd", 20)})
    trained = compose(
        [
            *SMALL,
            "algo=baseline",
            "data=glyphs",
            "data.num_classes=48",
            "data.num_drawings=6",
            "data.rotations=[train]",
        ]
    )
    words = [
        "data=image_folder",
        f"data.root={root}",
        "data.fractions=[0,0,1]",
        f"data.cache_dir={tmp_path / 'cache'}",
    ]
    cfg = reopen_to_evaluate(tmp_path, trained, words, None)
    parts = Parts.build(cfg, 1, {"data": trained["data"], "trusted": [], "run_dir": str(tmp_path)})
    assert parts.algorithm.spec.num_train_classes == 128
    assert parts.source.spec("test").max_way == 2
