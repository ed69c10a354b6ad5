"""train, resume and eval as a user meets them: every mistake has its line, and the folder of a run is what it
should be.
"""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest
import yaml

from metalearn.config.compose import compose
from tests.cli.conftest import answer

TINY = [
    "data.num_classes=60",
    "data.query_shot=1",
    "model.channels=4",
    "trainer.outer_steps=2",
    "trainer.meta_batch_size=2",
    "device=cpu",
]
TINY += ["eval.episodes=4", "eval.val_episodes=2", "device.threads=1"]


@pytest.fixture
def tiny(tmp_path: Path) -> list[str]:
    return [*TINY, f"data.cache_dir={tmp_path / 'cache'}"]


class TestTrain:
    def test_every_mistake_has_a_line_of_its_own(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, shown, complaint = answer(capsys, "train", "data.ways=-3", "data.shots=0")
        assert (code, shown) == (2, "")
        assert complaint == (
            "error: data.ways=-3: data.ways is not a key; did you mean data.way?\n"
            "error: data.shots=0: data.shots is not a key; did you mean data.shot?\n"
        )

    def test_what_the_machine_and_the_data_say_comes_in_one_list(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        (tmp_path / "file").touch()
        code, _, complaint = answer(
            capsys, "train", f"run_dir={tmp_path}/file/run", "device=cuda", "data.way=500"
        )
        lines = complaint.splitlines()
        assert code == 2
        assert (
            lines[0]
            == "error: device=cuda, but PyTorch finds no CUDA device on this machine; use device=cpu or "
            "device=auto"
        )
        assert (
            lines[1]
            == f"error: run_dir={tmp_path}/file/run cannot be written: {tmp_path}/file is not a folder; "
            "choose another run_dir"
        )
        assert "data.way=500" in lines[2]
        assert not list(tmp_path.glob("file/*"))

    def test_missing_data_hides_no_other_problem(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        (tmp_path / "file").touch()
        words = ["data=image_folder", f"data.root={tmp_path}/nowhere", f"run_dir={tmp_path}/file/run"]
        code, _, complaint = answer(capsys, "train", *words, "device=cuda")
        lines = complaint.splitlines()
        assert (code, len(lines)) == (2, 3)
        assert "no CUDA device" in lines[0]
        assert "run_dir=" in lines[1]
        assert f"{tmp_path}/nowhere" in lines[2]

    def test_missing_data_alone_is_exit_3_and_makes_no_folder(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        words = ["data=image_folder", f"data.root={tmp_path}/nowhere", f"run_dir={tmp_path}/run"]
        code, shown, complaint = answer(capsys, "train", *words)
        assert (code, shown, complaint.count("\n")) == (3, "", 1)
        assert not (tmp_path / "run").exists()

    def test_what_the_method_refuses_is_in_the_same_list(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        code, shown, complaint = answer(
            capsys, "train", "data=sinusoid", "algo=protonet", "device=cuda", f"run_dir={tmp_path}/run"
        )
        lines = complaint.splitlines()
        assert (code, shown, len(lines)) == (2, "", 2)
        assert "no CUDA device" in lines[0]
        assert (
            "algo=protonet takes tasks of classification (its `kinds`), but these are tasks of regression; "
            in lines[1]
        )
        assert not (tmp_path / "run").exists()

    def test_a_folder_that_holds_a_run_names_resume(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        (tmp_path / "config.yaml").touch()
        code, _, complaint = answer(capsys, "train", f"run_dir={tmp_path}")
        assert code == 2
        assert f"continue it with: metalearn resume {tmp_path}" in complaint

    def test_cfg_prints_what_would_run(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, shown, _ = answer(capsys, "train", "algo=protonet", "--cfg", "job")
        assert code == 0
        assert yaml.safe_load(shown) == compose(["algo=protonet"])

    def test_a_metric_to_monitor_that_is_not_measured_is_refused_before_training(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny: list[str]
    ) -> None:
        code, _, complaint = answer(
            capsys,
            "train",
            f"run_dir={tmp_path}/run",
            *tiny,
            "algo=protonet",
            "eval.monitor=accuracy_inductiv",
        )
        sentence = (
            "eval.monitor=accuracy_inductiv is no metric of validation; did you mean "
            "accuracy_inductive? metrics: loss, accuracy"
        )
        assert code == 2
        assert complaint.startswith(f"error: {sentence}, accuracy_inductive, ece, nll, brier\n")
        assert not (tmp_path / "run").exists()

    def test_train_then_resume_then_eval(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny: list[str]
    ) -> None:
        run_dir = tmp_path / "run"
        assert answer(capsys, "train", f"run_dir={run_dir}", "algo=protonet", *tiny)[0] == 0
        assert json.loads((run_dir / "results.json").read_text())["episodes"] == 4
        before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
        assert answer(capsys, "resume", str(run_dir))[0] == 0
        assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before
        assert answer(capsys, "eval", str(run_dir), "data.way=3", "eval.episodes=3")[0] == 0
        code, _, complaint = answer(capsys, "eval", str(run_dir), "eval.monitor=loss")
        assert code == 2
        assert complaint.startswith(
            "error: eval.monitor=loss: the best checkpoint was chosen while the run trained; leave it out"
        )
        assert all(path.read_bytes() == content for path, content in before.items())
        assert str(run_dir) in answer(capsys, "ls", "runs", str(tmp_path))[1]


def saved_run(folder: Path, **changes: object) -> Path:
    """A folder with the configuration of a run; a change of None leaves the key out."""
    cfg = {**compose(["algo=protonet"]), **changes}
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(
        yaml.safe_dump({key: value for key, value in cfg.items() if changes.get(key, "") is not None})
    )
    return folder


class TestDamage:
    def test_a_configuration_names_all_that_it_lacks(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        trainer = {**compose([])["trainer"], "outer_steps": "many"}
        run_dir = saved_run(tmp_path / "run", model=5, eval=None, trainer=trainer)
        code, _, complaint = answer(capsys, "eval", str(run_dir))
        lines = complaint.splitlines()
        start, end = f"error: {run_dir}/config.yaml is damaged: ", "; restore it from a backup"
        assert code == 2
        assert lines[0] == f"{start}model names no class (_target_){end}"
        assert f"{start}trainer.outer_steps=many is not a whole number (default: 400){end}" in lines
        assert f"{start}eval is missing{end}" in lines
        assert len(lines) == 3

    @pytest.mark.parametrize("text", ["[1]", '{"primary": "accuracy"}', "{"])
    def test_one_bad_result_does_not_hide_the_other_runs(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str
    ) -> None:
        for name in ("bad", "good"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "status.json").write_text('{"status": "finished"}')
        (tmp_path / "bad" / "results.json").write_text(text)
        code, shown, _ = answer(capsys, "ls", "runs", str(tmp_path))
        assert code == 0
        assert [" ".join(line.split()[1:]) for line in shown.splitlines()[-2:]] == [
            "finished unreadable",
            "finished",
        ]

    def test_an_evaluation_leaves_the_log_of_the_run_alone(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run_dir = saved_run(tmp_path / "run")
        monkeypatch.setattr("metalearn.run.evaluate.evaluate_run", lambda *_: 1 / 0)
        assert answer(capsys, "eval", str(run_dir))[0] == 1
        assert not (run_dir / "train.log").exists()

    def test_a_killed_run_is_not_running(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        (tmp_path / "status.json").write_text('{"status": "running"}')
        with (tmp_path / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert "running" in answer(capsys, "ls", "runs", str(tmp_path))[1]
        assert "killed; resume it" in answer(capsys, "ls", "runs", str(tmp_path))[1]


class TestRunFolders:
    def test_training_judges_no_checkpoint_that_may_be_gone(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        sentence = (
            "error: eval.checkpoint=step-1: training keeps its best and its newest checkpoints only, and "
            "judges one of them; "
            "choose best or last, and judge another one that was kept with: metalearn eval RUN_DIR "
            "eval.checkpoint=step-1\n"
        )
        assert answer(capsys, "train", "eval.checkpoint=step-1") == (2, "", sentence)
        assert answer(capsys, "resume", str(saved_run(tmp_path / "run")), "eval.checkpoint=step-1") == (
            2,
            "",
            sentence,
        )

    @pytest.mark.parametrize("verb", ["resume", "eval"])
    def test_a_folder_that_is_no_run_is_named(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, verb: str
    ) -> None:
        (tmp_path / "file").touch()
        ways_out = "; list the runs with: metalearn ls runs\n"
        assert answer(capsys, verb, str(tmp_path)) == (
            2,
            "",
            f"error: {tmp_path} is not a run: it holds no config.yaml{ways_out}",
        )
        assert answer(capsys, verb, f"{tmp_path}/no") == (
            2,
            "",
            f"error: {tmp_path}/no is not a run: it does not exist{ways_out}",
        )
        assert answer(capsys, verb, f"{tmp_path}/file") == (
            2,
            "",
            f"error: {tmp_path}/file is not a run: it is not a folder{ways_out}",
        )

    def test_an_override_in_place_of_the_folder_is_understood(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code, _, complaint = answer(capsys, "resume", "trainer.outer_steps=5")
        assert code == 2
        assert "the folder of a run comes first" in complaint

    @pytest.mark.parametrize("text", ["", "a: [", "a: 1", "algo: 3\ndata: {}\ntrainer: {}", "\x00"])
    def test_a_damaged_config_is_no_traceback(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str
    ) -> None:
        (tmp_path / "config.yaml").write_text(text)
        code, _, complaint = answer(capsys, "resume", str(tmp_path))
        assert code == 2
        assert all(line.startswith(f"error: {tmp_path}/config.yaml ") for line in complaint.splitlines())

    def test_a_misspelt_key_is_found_against_the_saved_configuration(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(compose(["algo=protonet"])))
        code, _, complaint = answer(capsys, "eval", str(tmp_path), "eval.episode=5")
        assert (code, complaint) == (
            2,
            "error: eval.episode=5: eval.episode is not a key; did you mean eval.episodes?\n",
        )
