"""metalearn doctor RUN_DIR: what it says of a sound run, and that it notices planted faults."""

from __future__ import annotations

import fcntl
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from metalearn.cli import completion, verbs
from metalearn.cli import main as cli
from metalearn.rundir.checkpoint_files import WEIGHTS_FILE
from metalearn.rundir.checkpoints import CheckpointStore

TINY = [
    *(
        "device=cpu",
        "device.threads=1",
        "data=sinusoid",
        "algo=maml",
        "trainer.outer_steps=4",
        "trainer.meta_batch_size=2",
    ),
    *(
        "trainer.checkpoint_every=2",
        "trainer.eval_every=2",
        "trainer.log_every=2",
        "eval.val_episodes=2",
        "eval.episodes=3",
    ),
]
pytestmark = pytest.mark.usefixtures("as_it_was")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run that has finished."""
    run_dir = tmp_path_factory.mktemp("template") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("metalearn.run.session.draw_plots", lambda *parts: None)
        assert cli.main(["train", *TINY, f"run_dir={run_dir}"]) == 0
    return run_dir


@pytest.fixture
def run_dir(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "run"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def answer(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str]:
    """The exit code of doctor and what it said."""
    capsys.readouterr()
    code = cli.main(["doctor", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


class TestRunFolder:
    def test_a_sound_run_passes_and_is_only_read(
        self, run_dir: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = {
            path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes())
            for path in run_dir.rglob("*")
        }
        code, said = answer(capsys, run_dir)
        assert code == 0
        for line in (
            "config.yaml",
            "step-000004",
            "step-000002",
            "checkpoints/last",
            "checkpoints/best",
            "method",
            "metrics.jsonl",
        ):
            assert f"ok      {line}: " in said
        assert "ok      results.json: test mse " in said
        assert before == {
            path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes())
            for path in run_dir.rglob("*")
        }

    def test_one_bad_checkpoint_is_exit_1_and_named(
        self, run_dir: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        flip(run_dir / "checkpoints" / "step-000004" / WEIGHTS_FILE)
        code, said = answer(capsys, run_dir)
        assert code == 1
        assert "FAILED  step-000004: " in said
        assert (
            "does not have the sha256 that was written; resume falls back to step-000002 if that is valid"
            in said
        )
        assert "ok      step-000002: " in said
        for name, wanted in (
            ("last", "step-000002 is the newest valid checkpoint"),
            ("best", "step-000002 recorded step-000002 as the best"),
        ):
            assert (
                f"FAILED  checkpoints/{name}: it names step-000004, which is not valid, but {wanted}; set it "
                "with: echo " in said
            )
        assert said.count("FAILED") == 3

    @pytest.mark.parametrize("fault", ["all bad", "none"])
    def test_no_valid_checkpoint_is_exit_4(
        self, run_dir: Path, capsys: pytest.CaptureFixture[str], fault: str
    ) -> None:
        store = CheckpointStore(run_dir)
        for step in store.steps():
            flip(store.path(step) / WEIGHTS_FILE) if fault == "all bad" else shutil.rmtree(store.path(step))
        code, said = answer(capsys, run_dir)
        assert code == 4
        named = (
            "FAILED  step-000002: "
            if fault == "all bad"
            else f"FAILED  checkpoints: there is none yet; metalearn resume {run_dir} begins"
        )
        assert named in said
        assert "skipped method: no valid checkpoint says" in said

    def test_a_configuration_that_may_not_run_is_named(
        self, run_dir: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        change(run_dir, "algo", "_target_", "os.system")
        code, said = answer(capsys, run_dir)
        assert code == 1
        assert "FAILED  config.yaml: algo._target_=os.system" in said

    def test_a_configuration_changed_by_hand_is_named(
        self, run_dir: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        change(run_dir, "algo", "inner_lr", 0.125)
        code, said = answer(capsys, run_dir)
        assert code == 1
        assert "FAILED  method: a resumed run must keep its method and data, but: algo.inner_lr: " in said

    def test_a_run_that_is_older_than_a_key_is_sound(
        self, run_dir: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        cfg = yaml.safe_load((run_dir / "config.yaml").read_text())
        del cfg["device"]["deterministic"]
        (run_dir / "config.yaml").write_text(yaml.safe_dump(cfg))
        code, said = answer(capsys, run_dir)
        assert code == 0
        assert "is older than device.deterministic" in said

    @pytest.mark.parametrize(
        ("name", "content", "sentence"),
        [
            ("metrics.jsonl", "", "FAILED  metrics.jsonl: .* has 0 bytes, the checkpoint knows"),
            ("metrics.jsonl", "rubbish\n", r"FAILED  metrics.jsonl: .*, line 1 is no measurement"),
            ("results.json", "[]", "FAILED  results.json: .* is not the result of a run"),
            (
                "results.json",
                None,
                "FAILED  results.json: absent, though the run is finished; judge it again with: metalearn "
                "eval",
            ),
            (
                "checkpoints/best",
                "step-000003\n",
                "FAILED  checkpoints/best: it names step-000003, which is gone, but",
            ),
            (
                "checkpoints/last",
                "rubbish",
                "FAILED  checkpoints/last: it names no checkpoint, but step-000004 is the newest valid",
            ),
        ],
    )
    def test_a_damaged_file_is_named(
        self, run_dir: Path, capsys: pytest.CaptureFixture[str], name: str, content: str | None, sentence: str
    ) -> None:
        (run_dir / name).unlink() if content is None else (run_dir / name).write_text(content)
        code, said = answer(capsys, run_dir)
        assert code == 1
        assert re.search(sentence, said), said

    @pytest.mark.parametrize("finished", [True, False])
    @pytest.mark.parametrize("fault", ["gone", "wrong"])
    @pytest.mark.parametrize("name", ["last", "best"])
    def test_a_pointer_that_is_gone_or_wrong_is_named(
        self, run_dir: Path, capsys: pytest.CaptureFixture[str], name: str, fault: str, finished: bool
    ) -> None:
        store = CheckpointStore(run_dir)
        newest, path = store.path(store.newest().step).name, store.folder / name
        right = path.read_text().strip()
        wrong = next(store.path(step).name for step in store.steps() if store.path(step).name != right)
        path.unlink() if fault == "gone" else path.write_text(f"{wrong}\n")
        (run_dir / "status.json").write_text(json.dumps({"status": "finished" if finished else "preempted"}))
        code, said = answer(capsys, run_dir)
        found = "it is gone" if fault == "gone" else f"it names {wrong}"
        wanted = (
            f"{newest} is the newest valid checkpoint"
            if name == "last"
            else f"{newest} recorded {right} as the best"
        )
        remedy = (
            f"set it with: echo {right} > {path}" if finished else f"metalearn resume {run_dir} sets it anew"
        )
        assert code == 1
        assert f"FAILED  checkpoints/{name}: {found}, but {wanted}; {remedy}\n" in said

    def test_the_pointers_of_a_run_that_goes_on_may_move(
        self, run_dir: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (run_dir / "checkpoints" / "last").write_text("step-000002\n")
        (run_dir / "status.json").write_text(json.dumps({"status": "running"}))
        with (run_dir / ".lock").open("w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            code, said = answer(capsys, run_dir)
        assert code == 0
        assert "skipped checkpoints/last: the run goes on" in said

    def test_a_best_checkpoint_that_is_lost_may_have_another_in_its_place(
        self, run_dir: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        store = CheckpointStore(run_dir)
        newest = store.load(4)
        store.save(4, newest.tensors, newest.metadata, ranked=[2])
        shutil.rmtree(store.path(2))
        code, said = answer(capsys, run_dir)
        assert code == 1
        assert (
            "FAILED  checkpoints/best: it names step-000002, which is gone, but step-000004 recorded "
            "step-000002 as the best; " in said
        )
        assert (
            f"restore step-000002 from a backup, or choose another with: metalearn eval {run_dir} "
            "eval.checkpoint=last" in said
        )
        store.point("best", 4)  # as a resume does
        code, said = answer(capsys, run_dir)
        assert code == 0
        assert "ok      checkpoints/best: step-000004, in place of step-000002, which is lost" in said

    def test_another_machine_is_named_but_is_no_failure(
        self, run_dir: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        facts = json.loads((run_dir / "env.json").read_text())
        facts["versions"]["torch"] = "1.0"
        (run_dir / "env.json").write_text(json.dumps(facts))
        code, said = answer(capsys, run_dir)
        assert code == 0
        assert "ok      env.json: bits may differ when it is resumed here: torch was 1.0, is " in said

    def test_classes_of_ones_own_need_the_word_again(
        self, run_dir: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        change(run_dir, "data", "_target_", "mine.Source")
        code, said = answer(capsys, run_dir)
        assert code == 1
        assert "'trusted=[mine]'" in said
        assert "ok      config.yaml: " in answer(capsys, run_dir, "trusted=[mine]")[1]

    def test_a_folder_that_is_no_run_is_exit_2(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code, said = answer(capsys, tmp_path)
        assert code == 2
        assert said.startswith(f"error: {tmp_path} is not a run: it holds no config.yaml")
        assert answer(capsys, "trusted=[mine]") == (
            2,
            "error: trusted=[mine] chooses nothing to examine; name a choice, as algo=mine, or a RUN_DIR "
            "before it\n",
        )

    def test_runs_are_completed(self, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "outputs").mkdir()
        shutil.move(run_dir, tmp_path / "outputs" / "one")
        monkeypatch.chdir(tmp_path)
        line = "metalearn doctor out"
        assert completion.complete(line, len(line), tuple(verbs.VERBS)) == ["outputs/one"]


def change(run_dir: Path, group: str, key: str, value: Any) -> None:
    cfg = yaml.safe_load((run_dir / "config.yaml").read_text())
    cfg[group][key] = value
    (run_dir / "config.yaml").write_text(yaml.safe_dump(cfg))
