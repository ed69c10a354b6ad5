"""`metalearn reproduce`: a tiny recipe is trained, judged, recorded and held against its record."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from metalearn.cli import main as cli
from metalearn.config import records
from metalearn.engine.trainer import Trainer
from metalearn.rundir.checkpoints import CheckpointStore
from metalearn.sweep.smoke import as_it_was

COMMIT, LATER = "0123456789", "abcdef0123"
TINY = """# @package _global_
# A few steps on sinusoids.
about:
  title: Tiny
  paper: none
  figures: # mean squared error
    - {name: adapted, headline: true, published: 0.001, unit: mse, published_protocol: {outer_steps: 3}}
    - {name: before, metric: mse_step_0, published: 100, unit: mse, published_protocol: {outer_steps: 3}}
    - name: on 12 tasks
      published: 9
      unit: mse
      published_protocol: {outer_steps: 70000}
      eval: [eval.episodes=12]
  tiers:
    paper: [trainer.outer_steps=4]
defaults: # after the block
  - override /algo: maml
  - override /data: sinusoid
  - override /device: cpu
algo: {inner_lr: 0.01, eval_adaptation_steps: 2}
model: {hidden: [6]}
device: {plan: loop, threads: 1}
trainer: {outer_steps: 3, meta_batch_size: 2, eval_every: 3, checkpoint_every: 1, log_every: 1}
eval: {episodes: 8, val_episodes: 2}
"""


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    with as_it_was():
        yield


@pytest.fixture(autouse=True, scope="module")
def checkout() -> Iterator[dict[str, str]]:
    """What git says of this checkout, whatever it is: a commit, of which no file differs."""
    answers = {"rev-parse": COMMIT + 30 * "0", "status": ""}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("metalearn.rundir.environment._git", lambda *words: answers[words[0]])
        yield answers


@pytest.fixture
def later(checkout: dict[str, str]) -> Iterator[str]:
    """Another commit was made since."""
    before = dict(checkout)
    checkout["rev-parse"] = LATER + 30 * "0"
    yield LATER
    checkout.update(before)


@pytest.fixture
def dirty(checkout: dict[str, str]) -> Iterator[None]:
    """A file was changed since."""
    before = dict(checkout)
    checkout["status"] = " M metalearn/algorithms/maml.py"
    yield
    checkout.update(before)


@pytest.fixture(scope="module")
def reproduced(checkout: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder in which the recipe was reproduced and recorded once."""
    place = tmp_path_factory.mktemp("reproduced")
    write(place, TINY)
    with pytest.MonkeyPatch.context() as patch, as_it_was():
        patch.chdir(place)
        assert cli.main(["reproduce", "tiny", "--record", "--config-dir", "conf"]) == 0
    return place


@pytest.fixture
def place(reproduced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it."""
    copy = Path(shutil.copytree(reproduced, tmp_path / "place"))
    monkeypatch.chdir(copy)
    return copy


def write(place: Path, text: str, name: str = "tiny") -> Path:
    path = place / "conf" / "experiment" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def measured(place: Path, name: str = "tiny") -> dict[str, Any]:
    found = yaml.safe_load((place / "conf" / "experiment" / f"{name}.yaml").read_text())
    return dict(found["about"]["measured"])


def reproduce(*words: str) -> int:
    return cli.main(["reproduce", *words, "--config-dir", "conf"])


def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(trainer: Trainer) -> None:
        raise AssertionError("nothing was left to train")

    monkeypatch.setattr(Trainer, "train", refuse)


def test_the_record_says_what_was_measured_and_how(place: Path) -> None:
    record = measured(place)["cpu"]
    assert list(record["figures"]) == ["adapted", "before", "on 12 tasks"]
    assert {name: figure["episodes"] for name, figure in record["figures"].items()} == {
        "adapted": 8,
        "before": 8,
        "on 12 tasks": 12,
    }
    assert record["figures"]["before"]["mean"] != record["figures"]["adapted"]["mean"]
    assert (record["seeds"], record["steps"]) == ([0], 3)
    assert (record["commit"], record["runs"]) == (COMMIT, ["seed-0"])
    assert "torch" in record["machine"]
    assert "plan=loop" in record["plan"]
    assert "threads=1" in record["plan"]
    text = (place / "conf" / "experiment" / "tiny.yaml").read_text()
    before, after = text.split("  measured:")
    assert TINY == before + after[after.index("defaults:") :]


def test_a_finished_reproduction_is_judged_without_training(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_training(monkeypatch)
    assert reproduce("tiny") == 0
    out = capsys.readouterr().out
    assert "outputs/reproduce/tiny/cpu/seed-0 is finished, of 20" in out
    assert out.count("ours INCONCLUSIVE: recorded ") == 3
    assert (
        out.count("this is the recorded run, which says nothing new; move or remove outputs/reproduce") == 3
    )
    assert out.count(f"; run of commit {COMMIT}, today's is {COMMIT}\n") == 3
    assert "published BELOW: 0.001 mse; " in out  # less is better
    assert "published REACHED: 100 mse; or better" in out
    assert "published NOT COMPARABLE: 9 mse; outer_steps 3 instead of 70000" in out


def test_json_has_both_verdicts_with_their_numbers(
    place: Path, later: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduce("tiny", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    [found] = told["recipes"]
    assert told["not_done"] == []
    assert (found["recipe"], found["tier"], found["verdict"], found["seeds"]) == ("tiny", "cpu", "PASS", [0])
    assert (found["commit"], found["commit_now"]) == (later, later)
    figure = found["figures"][0]
    assert figure["ours"]["verdict"] == "PASS"
    assert abs(figure["ours"]["difference"]) < figure["ours"]["allowed"] < figure["ours"]["detectable"]
    assert figure["published"]["verdict"] == "BELOW"


def test_another_figure_than_recorded_fails_and_may_become_the_record(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_training(monkeypatch)
    path = place / "conf" / "experiment" / "tiny.yaml"
    right = measured(place)["cpu"]["figures"]["adapted"]["mean"]
    path.write_text(path.read_text().replace(f"adapted: {{mean: {right}", "adapted: {mean: 77.0"))
    assert reproduce("tiny") == 1
    assert "ours FAIL: recorded 77.0 ± " in capsys.readouterr().out
    assert reproduce("tiny", "--record") == 0
    assert measured(place)["cpu"]["figures"]["adapted"]["mean"] == right
    assert reproduce("tiny") == 0


class TestAnotherCommit:
    def test_it_is_trained_anew_beside_the_run_of_before(
        self, place: Path, later: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Broken code is found out by its figures, and not hidden by the run that was recorded."""
        step = Trainer.train_step

        def broken(trainer: Trainer) -> None:
            step(trainer)
            with torch.no_grad():
                for parameter in trainer.algorithm.parameters():
                    parameter.add_(3.0)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "train_step", broken)
            assert reproduce("tiny") == 1
        out = capsys.readouterr().out
        assert "ours FAIL: recorded " in out
        assert out.count(f"; run of commit {later}, today's is {later}\n") == 3
        assert runs() == ["seed-0", f"seed-0-{later}"]

    def test_its_own_run_is_judged_again_without_training(
        self, place: Path, later: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert reproduce("tiny") == 0
        assert capsys.readouterr().out.count("ours PASS: recorded ") == 3
        no_training(monkeypatch)
        assert reproduce("tiny") == 0
        out = capsys.readouterr().out
        assert f"outputs/reproduce/tiny/cpu/seed-0-{later} is finished, of 20" in out
        assert out.count("ours PASS: recorded ") == 3

    def test_reuse_judges_the_run_of_before_and_names_both_commits(
        self, place: Path, later: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        no_training(monkeypatch)
        assert reproduce("tiny", "--reuse") == 0
        out = capsys.readouterr().out
        assert out.count("ours INCONCLUSIVE: ") == 3
        assert out.count(f"; run of commit {COMMIT}, today's is {later}\n") == 3
        assert runs() == ["seed-0"]

    @pytest.mark.usefixtures("dirty")
    def test_of_changed_files_no_run_is_the_same_code(
        self, place: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for _ in range(2):
            assert reproduce("tiny") == 0
            assert capsys.readouterr().out.count("ours PASS: recorded ") == 3
        assert runs() == ["seed-0", f"seed-0-{COMMIT}-dirty", f"seed-0-{COMMIT}-dirty-2"]

    @pytest.mark.usefixtures("dirty")
    def test_a_record_of_changed_files_is_warned_of(
        self, place: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert reproduce("tiny", "--record") == 0
        assert (
            "warning: files of this checkout differ from its commit; the record will say "
            f"{COMMIT}-dirty, which nobody can have again: commit first, then record"
            in capsys.readouterr().err
        )
        assert measured(place)["cpu"]["commit"] == f"{COMMIT}-dirty"


class TestSeveralRecords:
    @pytest.fixture
    def two(self, place: Path, checkout: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        """A second recipe; a record that is written makes the checkout a dirty one, as in a clone."""
        write(place, TINY.replace("outer_steps: 3,", "outer_steps: 2,"), "tiny2")
        shutil.rmtree("outputs")
        right = records.write

        def dirtying(*words: Any) -> bool:
            checkout["status"] = " M conf/experiment/tiny.yaml"
            return right(*words)

        monkeypatch.setattr(records, "write", dirtying)
        yield place
        checkout["status"] = ""

    @pytest.mark.usefixtures("two")
    def test_all_are_of_the_commit_at_the_start(
        self, place: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert reproduce("tiny", "tiny2", "--record") == 0
        assert [measured(place, name)["cpu"]["commit"] for name in ("tiny", "tiny2")] == [COMMIT, COMMIT]
        assert "warning" not in capsys.readouterr().err

    @pytest.mark.usefixtures("two")
    def test_what_was_done_before_a_stop_is_recorded_and_told(
        self, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = measured(place)["cpu"]["date"]
        write(place, TINY)
        step = Trainer.train_step

        def stopped(trainer: Trainer) -> None:
            step(trainer)
            if trainer.settings.outer_steps == 2:
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(Trainer, "train_step", stopped)
        assert reproduce("tiny", "tiny2", "--record", "--json") == 143
        assert measured(place)["cpu"]["date"] >= before
        told = json.loads(capsys.readouterr().out)
        assert [found["recipe"] for found in told["recipes"]] == ["tiny"]
        assert told["not_done"] == ["tiny2"]
        assert "measured" not in (place / "conf" / "experiment" / "tiny2.yaml").read_text()


def runs() -> list[str]:
    return sorted(path.name for path in Path("outputs/reproduce/tiny/cpu").iterdir())


def test_other_seeds_than_recorded_are_inconclusive_and_three_have_a_spread(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduce("tiny", "--seeds", "2", "--record") == 0
    out = capsys.readouterr().out
    assert out.count("ours INCONCLUSIVE: ") == 3
    assert "one seed does not say how much seeds differ: seeds 0, 1 against 0 of the record" in out
    assert sorted(path.name for path in Path("outputs/reproduce/tiny/cpu").iterdir()) == [
        "seed-0",
        "seed-1",
    ]
    assert measured(place)["cpu"]["seeds"] == [0, 1]
    assert measured(place)["cpu"]["figures"]["adapted"]["std"] > 0
    assert reproduce("tiny") == 0  # with as many seeds as are recorded
    assert "2 seeds" in capsys.readouterr().out


def test_a_stopped_reproduction_goes_on_and_comes_to_the_same_figures(
    reproduced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (reproduced / "conf" / "experiment" / "tiny.yaml").read_text()
    write(tmp_path, text)
    step = Trainer.train_step

    def stopped(trainer: Trainer) -> None:
        step(trainer)
        if trainer.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", stopped)
        assert reproduce("tiny") == 143
    assert "the same command goes on from there" in capsys.readouterr().err
    run_dir = Path("outputs/reproduce/tiny/cpu/seed-0")
    assert CheckpointStore(run_dir).steps()[-1] == 2
    steps: list[int] = []

    def counted(trainer: Trainer) -> None:
        steps.append(trainer.step)
        step(trainer)

    monkeypatch.setattr(Trainer, "train_step", counted)
    assert reproduce("tiny") == 0
    assert steps == [2]
    for name in ("results.json", "eval_test.csv"):
        assert (run_dir / name).read_bytes() == (reproduced / run_dir / name).read_bytes()


def test_a_figure_that_is_trained_otherwise_has_a_run_of_its_own(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = place / "conf" / "experiment" / "tiny.yaml"
    slower = "    - {name: slower, published: null, unit: mse, train: [optimizer.lr=0.0001]}\n"
    path.write_text(path.read_text().replace("  tiers:\n", f"{slower}  tiers:\n"))
    assert reproduce("tiny", "--record") == 0
    out = capsys.readouterr().out
    assert out.count("ours PASS") == 3  # a run was trained, and not all of them are recorded
    assert out.count("ours NO RECORD") == out.count("published NO PUBLISHED FIGURE\n") == 1
    assert sorted(path.name for path in Path("outputs/reproduce/tiny/cpu").iterdir()) == [
        "seed-0",
        "seed-0_lr-0.0001",
    ]
    assert list(measured(place)["cpu"]["figures"]) == ["adapted", "before", "on 12 tasks", "slower"]


def test_a_tier_without_a_record_says_so_and_how_to_record_it(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cpu = measured(place)["cpu"]
    assert reproduce("tiny", "--tier", "paper") == 0
    out = capsys.readouterr().out
    assert "ours NO RECORD: nothing is recorded for this tier; record it with --record" in out
    assert "outer_steps 4 instead of 3" in out
    assert reproduce("tiny", "--tier", "paper", "--record") == 0
    assert measured(place)["paper"]["steps"] == 4
    assert measured(place)["cpu"] == cpu


def test_a_folder_of_another_configuration_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = place / "conf" / "experiment" / "tiny.yaml"
    path.write_text(path.read_text().replace("inner_lr: 0.01", "inner_lr: 0.02"))
    assert reproduce("tiny") == 2
    assert (
        "outputs/reproduce/tiny/cpu/seed-0 holds a run of another configuration than the recipe has now "
        "(algo.inner_lr=0.01); move or remove that folder" in capsys.readouterr().err
    )


def test_the_first_steps_are_recorded_and_compared_and_leave_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(place.rglob("*"))
    assert reproduce("tiny", "--tier", "smoke") == 0
    assert "tiny: NO RECORD for as it stands; " in capsys.readouterr().out
    assert reproduce("tiny", "--tier", "smoke", "--record") == 0
    assert len(measured(place)["smoke"]["losses"]["as it stands"]) == 5
    path = place / "conf" / "experiment" / "tiny.yaml"
    written = path.read_bytes()
    assert reproduce("tiny", "--tier", "smoke", "--record") == 0
    assert "tiny: no number changed" in capsys.readouterr().out
    assert path.read_bytes() == written
    path.write_text(path.read_text().replace("inner_lr: 0.01", "inner_lr: 0.011"))
    assert reproduce("tiny", "--tier", "smoke") == 1
    assert "tiny: FAIL, as it stands, step " in capsys.readouterr().out
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["tinny"], "experiment=tinny does not exist; did you mean tiny?"),
        ([], "name a recipe, or take --all of them; recipes: glyphs_anil, "),
        (["tiny", "--all"], "tiny and --all: name recipes, or take all of them"),
        (["tiny", "--seeds", "0"], "--seeds 0 must be at least 1"),
        (["tiny", "--tier", "smoke", "--reuse"], "--reuse is not for --tier smoke, which keeps no run"),
        (["tiny", "--tier", "smoke", "--seeds", "2"], "--seeds is not for --tier smoke"),
        (
            ["glyphs_maml", "--tier", "paper"],
            "experiment=glyphs_maml has no tier paper; its tiers are smoke, cpu",
        ),
        (["tiny", "data.shot=5"], "data.shot=5 would make it another experiment"),
    ],
)
def test_mistakes_are_answered_before_anything_runs(
    words: list[str], sentence: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduce(*words) == 2
    assert sentence in capsys.readouterr().err


def test_a_read_only_recipe_is_refused_before_training(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree("outputs")
    no_training(monkeypatch)
    (place / "conf" / "experiment" / "tiny.yaml").chmod(0o444)
    assert reproduce("tiny", "--record") == 2
    assert "tiny.yaml cannot be written, and --record keeps its figures there" in capsys.readouterr().err
    assert not Path("outputs").exists()


def test_missing_data_is_exit_3_for_one_recipe_and_a_named_skip_among_all(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("METALEARN_DATA", str(place / "conf"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    assert reproduce("omniglot_maml", "--tier", "smoke") == 3
    assert "error: omniglot_maml: data=omniglot is not here (looked in " in capsys.readouterr().err
    # of all recipes, only those of Omniglot and the tiny one
    kept = ["omniglot_maml", "tiny"]
    monkeypatch.setattr(
        "metalearn.config.loader.Library.options", lambda self, group: options(self, group, kept)
    )
    assert reproduce("--all", "--tier", "smoke") == 0
    assert "omniglot_maml: skipped, data=omniglot is not here (looked in " in capsys.readouterr().out
    del kept[1]
    assert reproduce("--all", "--tier", "smoke") == 3
    assert "none of 1 recipes was run: omniglot_maml: data=omniglot is not here" in capsys.readouterr().err


def options(library: Any, group: str, kept: list[str]) -> list[str]:
    found = sorted(library.loader.get_group_options(group))
    return [name for name in found if group != "experiment" or name in kept]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("published: 0.001", "published: many", "figure adapted has published=many, which is no number"),
        ("seeds: [0]", "seeds: 0", "about.measured.cpu is not what `metalearn reproduce NAME --tier cpu"),
        ("[trainer.outer_steps=4]", "fast", "about.tiers.paper=fast is not a list of overrides"),
        ("name: before, ", "name: before, headline: true, ", "has 2 headlines, adapted, before; mark one"),
    ],
)
def test_a_recipe_of_the_wrong_shape_is_answered(
    old: str, new: str, sentence: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = place / "conf" / "experiment" / "tiny.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert reproduce("tiny") == 2
    assert sentence in capsys.readouterr().err


def test_a_metric_that_a_result_lacks_is_answered_with_the_closest(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = place / "conf" / "experiment" / "tiny.yaml"
    path.write_text(path.read_text().replace("metric: mse_step_0", "metric: mse_step_00"))
    assert reproduce("tiny") == 2
    assert "did you mean mse_step_0?" in capsys.readouterr().err
