"""The command line as a user meets it: exit codes, one clean line per mistake, no torch before it is needed."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from metalearn import cli, config
from metalearn.errors import DataError

TINY = ["data.num_classes=60", "data.query_shot=1", "model.channels=4", "trainer.outer_steps=2", "trainer.meta_batch_size=2", "device=cpu"]
TINY += ["eval.episodes=4", "eval.val_episodes=2", "device.threads=1"]


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(list(words))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def tiny(tmp_path: Path) -> list[str]:
    return [*TINY, f"data.cache_dir={tmp_path / 'cache'}"]


class TestVerbs:
    def test_no_word_at_all_shows_the_verbs(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, shown, _ = answer(capsys)
        assert code == 0
        assert all(f"  {verb}" in shown for verb in cli.VERBS)

    @pytest.mark.parametrize("verb", list(cli.VERBS))
    def test_every_verb_has_help(self, capsys: pytest.CaptureFixture[str], verb: str) -> None:
        code, shown, complaint = answer(capsys, verb, "--help")
        assert (code, complaint) == (0, "")
        assert shown.startswith(f"usage: metalearn {verb}")

    @pytest.mark.parametrize(
        ("words", "sentence"),
        [
            (["trian"], "error: metalearn trian does not exist; did you mean metalearn train?\n"),
            (["evaluate"], "error: metalearn evaluate does not exist; did you mean metalearn eval?\n"),
            (["resume"], "error: the following arguments are required: RUN_DIR; see: metalearn resume --help\n"),
            (["train", "--foo"], "error: unrecognized arguments: --foo; see: metalearn train --help\n"),
            (
                ["ls", "alg"],
                "error: metalearn ls alg: alg is none of algo, data, model, optimizer, device, logger, experiment, runs; "
                "did you mean algo?\n",
            ),
            (["show", "mamll"], "error: there is no config mamll; did you mean algo/maml?\n"),
            (["data", "prepair", "glyphs"], "error: metalearn data prepair does not exist; did you mean prepare?\n"),
            (["completion", "tcsh"], "error: there is no completion for tcsh; choose from bash, zsh\n"),
        ],
    )
    def test_a_mistake_is_one_line_and_exit_2(self, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str) -> None:
        assert answer(capsys, *words) == (2, "", sentence)

    def test_a_verb_that_is_nothing_like_ours_gets_the_list(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert answer(capsys, "xyzzy")[2] == f"error: metalearn xyzzy does not exist; choose from {', '.join(cli.VERBS)}\n"


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
        code, _, complaint = answer(capsys, "train", f"run_dir={tmp_path}/file/run", "device=cuda", "data.way=500")
        lines = complaint.splitlines()
        assert code == 2
        assert lines[0] == "error: device=cuda, but PyTorch finds no CUDA device on this machine; use device=cpu or device=auto"
        assert lines[1] == f"error: run_dir={tmp_path}/file/run cannot be written: {tmp_path}/file is not a folder; choose another run_dir"
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

    def test_missing_data_alone_is_exit_3_and_makes_no_folder(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        words = ["data=image_folder", f"data.root={tmp_path}/nowhere", f"run_dir={tmp_path}/run"]
        code, shown, complaint = answer(capsys, "train", *words)
        assert (code, shown, complaint.count("\n")) == (3, "", 1)
        assert not (tmp_path / "run").exists()

    def test_what_the_method_refuses_is_in_the_same_list(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        code, shown, complaint = answer(capsys, "train", "data=sinusoid", "algo=protonet", "device=cuda", f"run_dir={tmp_path}/run")
        lines = complaint.splitlines()
        assert (code, shown, len(lines)) == (2, "", 2)
        assert "no CUDA device" in lines[0]
        assert "algo=protonet needs classes" in lines[1]
        assert not (tmp_path / "run").exists()

    def test_a_folder_that_holds_a_run_names_resume(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        (tmp_path / "config.yaml").touch()
        code, _, complaint = answer(capsys, "train", f"run_dir={tmp_path}")
        assert code == 2
        assert f"continue it with: metalearn resume {tmp_path}" in complaint

    def test_cfg_prints_what_would_run(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, shown, _ = answer(capsys, "train", "algo=protonet", "--cfg", "job")
        assert code == 0
        assert yaml.safe_load(shown) == config.compose(["algo=protonet"])

    def test_train_then_resume_then_eval(self, capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny: list[str]) -> None:
        run_dir = tmp_path / "run"
        assert answer(capsys, "train", f"run_dir={run_dir}", "algo=protonet", *tiny)[0] == 0
        assert json.loads((run_dir / "results.json").read_text())["episodes"] == 4
        before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
        assert answer(capsys, "resume", str(run_dir))[0] == 0
        assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before
        assert answer(capsys, "eval", str(run_dir), "data.way=3", "eval.episodes=3")[0] == 0
        assert all(path.read_bytes() == content for path, content in before.items())
        assert str(run_dir) in answer(capsys, "ls", "runs", str(tmp_path))[1]


def saved_run(folder: Path, **changes: object) -> Path:
    """A folder with the configuration of a run; a change of None leaves the key out."""
    cfg = {**config.compose(["algo=protonet"]), **changes}
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({key: value for key, value in cfg.items() if changes.get(key, "") is not None}))
    return folder


class TestDamage:
    def test_a_configuration_names_all_that_it_lacks(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        trainer = {**config.compose([])["trainer"], "outer_steps": "many"}
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
    def test_one_bad_result_does_not_hide_the_other_runs(self, capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str) -> None:
        for name in ("bad", "good"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "status.json").write_text('{"status": "finished"}')
        (tmp_path / "bad" / "results.json").write_text(text)
        code, shown, _ = answer(capsys, "ls", "runs", str(tmp_path))
        assert code == 0
        assert [" ".join(line.split()[1:]) for line in shown.splitlines()[-2:]] == ["finished unreadable", "finished"]

    def test_an_evaluation_leaves_the_log_of_the_run_alone(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run_dir = saved_run(tmp_path / "run")
        monkeypatch.setattr("metalearn.run.evaluate_run", lambda *_: 1 / 0)
        assert answer(capsys, "eval", str(run_dir))[0] == 1
        assert not (run_dir / "train.log").exists()

    def test_a_killed_run_is_not_running(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        (tmp_path / "status.json").write_text('{"status": "running"}')
        with (tmp_path / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert "running" in answer(capsys, "ls", "runs", str(tmp_path))[1]
        assert "killed; resume it" in answer(capsys, "ls", "runs", str(tmp_path))[1]


class TestRunFolders:
    def test_training_judges_no_checkpoint_that_may_be_gone(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        sentence = (
            "error: eval.checkpoint=step-1: training keeps its best and its newest checkpoints only, and judges one of them; "
            "choose best or last, and judge another one that was kept with: metalearn eval RUN_DIR eval.checkpoint=step-1\n"
        )
        assert answer(capsys, "train", "eval.checkpoint=step-1") == (2, "", sentence)
        assert answer(capsys, "resume", str(saved_run(tmp_path / "run")), "eval.checkpoint=step-1") == (2, "", sentence)

    @pytest.mark.parametrize("verb", ["resume", "eval"])
    def test_a_folder_that_is_no_run_is_named(self, capsys: pytest.CaptureFixture[str], tmp_path: Path, verb: str) -> None:
        (tmp_path / "file").touch()
        ways_out = "; list the runs with: metalearn ls runs\n"
        assert answer(capsys, verb, str(tmp_path)) == (2, "", f"error: {tmp_path} is not a run: it holds no config.yaml{ways_out}")
        assert answer(capsys, verb, f"{tmp_path}/no") == (2, "", f"error: {tmp_path}/no is not a run: it does not exist{ways_out}")
        assert answer(capsys, verb, f"{tmp_path}/file") == (2, "", f"error: {tmp_path}/file is not a run: it is not a folder{ways_out}")

    def test_an_override_in_place_of_the_folder_is_understood(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, _, complaint = answer(capsys, "resume", "trainer.outer_steps=5")
        assert code == 2
        assert "the folder of a run comes first" in complaint

    @pytest.mark.parametrize("text", ["", "a: [", "a: 1", "algo: 3\ndata: {}\ntrainer: {}", "\x00"])
    def test_a_damaged_config_is_no_traceback(self, capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str) -> None:
        (tmp_path / "config.yaml").write_text(text)
        code, _, complaint = answer(capsys, "resume", str(tmp_path))
        assert code == 2
        assert all(line.startswith(f"error: {tmp_path}/config.yaml ") for line in complaint.splitlines())

    def test_a_misspelt_key_is_found_against_the_saved_configuration(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.compose(["algo=protonet"])))
        code, _, complaint = answer(capsys, "eval", str(tmp_path), "eval.episode=5")
        assert (code, complaint) == (2, "error: eval.episode=5: eval.episode is not a key; did you mean eval.episodes?\n")


class TestListings:
    def test_ls_names_every_choice_with_paper_and_figure(self, capsys: pytest.CaptureFixture[str]) -> None:
        _, shown, _ = answer(capsys, "ls", "algo")
        [line] = [line for line in shown.splitlines() if line.startswith("maml ")]
        assert "arXiv:1703.03400" in line
        assert "98.7" in line

    def test_show_keeps_comments_and_resolves_references(self, capsys: pytest.CaptureFixture[str]) -> None:
        _, shown, _ = answer(capsys, "show", "device/cpu")
        assert "plan: vmap # loop: one task at a time; vmap: chunk tasks at once" in shown
        assert "${" not in shown

    def test_show_of_a_recipe_gives_the_whole_configuration(self, capsys: pytest.CaptureFixture[str]) -> None:
        _, shown, _ = answer(capsys, "show", "omniglot_maml")
        assert "arXiv:1703.03400" in shown
        assert "partition_seed:" in shown

    def test_show_of_an_ambiguous_name_lists_them(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "maml.yaml").write_text("x: 1\n")
        code, _, complaint = answer(capsys, "show", "maml", "--config-dir", str(tmp_path))
        assert (code, complaint) == (2, "error: maml is the name of several configs; choose one: algo/maml, model/maml\n")

    def test_no_runs_yet_says_how_to_start_one(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        assert answer(capsys, "ls", "runs", str(tmp_path)) == (0, f"no runs under {tmp_path}; start one with: metalearn train\n", "")


class TestData:
    def test_preview_draws_and_prepare_names_the_content(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        png = tmp_path / "new" / "a.png"
        assert answer(capsys, "data", "preview", "sinusoid", "--png", str(png)) == (0, f"{png}\n", "")
        assert png.read_bytes()[1:4] == b"PNG"
        code, shown, _ = answer(capsys, "data", "prepare", "sinusoid", "data.shot=3")
        assert code == 0
        assert "shot 3" in shown
        assert "data=sinusoid is ready (sha256 " in shown

    def test_a_png_that_cannot_be_written(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        code, _, complaint = answer(capsys, "data", "preview", "sinusoid", "--png", f"{tmp_path}/file/a.png")
        assert code == 2
        assert complaint.startswith(f"error: --png {tmp_path}/file/a.png cannot be written: ")


class TestTheLastLineOfDefence:
    def test_an_exit_code_follows_the_kind_of_error(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(_: object) -> int:
            raise DataError("no data")

        monkeypatch.setitem(cli.VERBS, "ls", fail)
        assert answer(capsys, "ls") == (3, "", "error: no data\n")

    def test_a_mistake_of_ours_is_one_line_and_its_traceback_goes_into_the_log(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        def fail(args: object) -> int:
            args.run_dir = tmp_path  # type: ignore[attr-defined]
            raise KeyError("boom")

        monkeypatch.setitem(cli.VERBS, "ls", fail)
        code, _, complaint = answer(capsys, "ls")
        assert (code, complaint) == (1, f"error: KeyError: 'boom' (details in {tmp_path}/train.log)\n")
        assert "Traceback" in (tmp_path / "train.log").read_text()

    def test_ctrl_c_is_130(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        def stop(_: object) -> int:
            raise KeyboardInterrupt

        monkeypatch.setitem(cli.VERBS, "ls", stop)
        assert answer(capsys, "ls") == (130, "", "interrupted\n")


def test_quick_answers_do_not_import_torch() -> None:
    lines = [["--help"], ["train", "--help"], ["ls"], ["show", "maml"], ["train", "algo.iner_lr=1"], ["train", "-m", "seed=0,-1"]]
    lines += [["completion", "bash"], ["resume", "/"], ["train", "--cfg", "job"], ["ls", "runs", "/nowhere"]]
    code = f"import sys; from metalearn.cli import main\nfor words in {lines!r}:\n    main(words); assert 'torch' not in sys.modules, words"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("word", "reason"), [(".", "is a folder"), ("x.txt", "does not end in .png")])
def test_a_picture_is_a_png(capsys: pytest.CaptureFixture[str], word: str, reason: str) -> None:
    sentence = f"error: --png {word} {reason}; name a file, as in --png episodes.png\n"
    assert answer(capsys, "data", "preview", "glyphs", "--png", word) == (2, "", sentence)


def test_a_reader_that_leaves_makes_no_noise() -> None:
    command = f"{sys.executable} -m metalearn show omniglot_maml | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["# experiment=omniglot_maml", "0"]
    assert done.stderr == ""


def test_the_module_equals_the_command_and_a_stray_file_does_not_shadow_a_library(tmp_path: Path) -> None:
    (tmp_path / "yaml.py").write_text("raise SystemExit('shadowed')\n")
    done = subprocess.run([sys.executable, "-m", "metalearn", "ls", "model"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "conv4" in done.stdout
