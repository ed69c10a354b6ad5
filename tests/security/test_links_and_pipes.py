"""Links in a run folder that lead elsewhere, and pipes that would keep a reader waiting."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import metalearn
from metalearn.cli import main as cli
from metalearn.errors import MetalearnError
from metalearn.rundir.checkpoint_files import METADATA, WEIGHTS_FILE

pytestmark = pytest.mark.usefixtures("never_unexpected")


class TestNothingIsWrittenOutside:
    """Links in a run folder that lead elsewhere, and pipes that would keep a reader waiting."""

    @pytest.fixture
    def outside(self, tmp_path: Path) -> Iterator[Path]:
        folder = tmp_path / "outside"
        (folder / "step-000002.tmp").mkdir(parents=True)
        (folder / "file").write_text("mine\n")
        yield folder
        assert sorted(path.name for path in folder.iterdir()) == ["file", "step-000002.tmp"]
        assert (folder / "file").read_text() == "mine\n"

    @pytest.mark.parametrize(
        "name",
        [
            *(
                ".lock",
                "train.log",
                "metrics.jsonl",
                "status.json",
                "status.json.tmp",
                "config.yaml.tmp",
                "overrides.yaml.tmp",
                "env.json",
            ),
            *("spec.json", "spec.json.tmp"),
            *(
                "results.json.tmp",
                "eval_test.csv.tmp",
                "checkpoints/last.tmp",
                "checkpoints/last",
                "plots/learning_curve.png",
                "new",
            ),
        ],
    )
    def test_a_link_to_a_file_is_refused(
        self, run_dir: Path, outside: Path, name: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (run_dir / name).unlink(missing_ok=True)
        (run_dir / name).parent.mkdir(exist_ok=True)  # plots/, which most tests do without
        (run_dir / name).symlink_to(outside / "file")
        assert cli.main(["resume", str(run_dir), "trainer.outer_steps=6"]) == 2
        assert (
            f"{run_dir}/{name} is a symbolic link; a run writes into its own folder only"
            in capsys.readouterr().err
        )
        assert cli.main(["eval", str(run_dir), "eval.episodes=2"]) == 2

    @pytest.mark.parametrize(
        "name", ["checkpoints", "plots", "evals", "evals/test_eval.episodes=2", "checkpoints/step-000004.tmp"]
    )
    def test_a_link_to_a_folder_is_refused(self, run_dir: Path, outside: Path, name: str) -> None:
        shutil.rmtree(run_dir / name, ignore_errors=True)
        (run_dir / name).parent.mkdir(exist_ok=True)
        (run_dir / name).symlink_to(outside)
        assert cli.main(["resume", str(run_dir), "trainer.outer_steps=6"]) == 2
        assert cli.main(["eval", str(run_dir), "eval.episodes=2"]) == 2

    @pytest.mark.parametrize(
        "name",
        [
            *(
                ".lock",
                "train.log",
                "metrics.jsonl",
                "status.json",
                "config.yaml",
                "overrides.yaml",
                "env.json",
                "results.json",
            ),
            "spec.json",
            *(
                "checkpoints/last",
                "checkpoints/best",
                f"checkpoints/step-000004/{METADATA}",
                f"checkpoints/step-000004/{WEIGHTS_FILE}",
            ),
        ],
    )
    def test_a_pipe_keeps_nobody_waiting(self, run_dir: Path, name: str) -> None:
        (run_dir / name).unlink()
        os.mkfifo(run_dir / name)
        found: list[dict[str, int]] = []
        thread = threading.Thread(target=lambda: found.append(reading_codes(run_dir)), daemon=True)
        thread.start()
        thread.join(60)
        assert found, "still waiting"
        assert found[0]["resume"] == found[0]["eval"] == 2
        assert found[0]["ls"] == 0

    def test_the_folder_itself_may_be_a_link(self, run_dir: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(run_dir)
        assert cli.main(["eval", str(tmp_path / "link"), "eval.episodes=2"]) == 0


def reading_codes(run_dir: Path) -> dict[str, int]:
    found = {"ls": cli.main(["ls", "runs", str(run_dir.parent)])}
    found["resume"] = cli.main(["resume", str(run_dir)])
    found["eval"] = cli.main(["eval", str(run_dir), "eval.episodes=2"])
    try:
        metalearn.load(run_dir)
    except MetalearnError as error:
        found["load"] = error.exit_code
    return found
