"""A run folder of a stranger: a configuration, tensors, facts and files that somebody else may have written.

Fault 16: a pickle in place of anything is refused with exit 4 (2 where no checkpoint is read), and its canary never appears.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import metalearn
from metalearn import cli
from metalearn.engine.checkpoint import FACTS, MANIFEST, TENSORS, CheckpointStore
from metalearn.engine.state import RANDOM
from metalearn.errors import MetalearnError

TINY = [
    *("device=cpu", "device.threads=1", "data=sinusoid", "algo=maml", "trainer.outer_steps=4", "trainer.meta_batch_size=2"),
    *("trainer.checkpoint_every=2", "trainer.eval_every=2", "trainer.log_every=2", "eval.val_episodes=2", "eval.episodes=3"),
]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run that has finished."""
    run_dir = tmp_path_factory.mktemp("template") / "run"
    assert cli.main(["train", *TINY, f"run_dir={run_dir}"]) == 0
    return run_dir


@pytest.fixture
def run_dir(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "run"))


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture(autouse=True)
def never_unexpected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the last line of defence would catch is a mistake of ours here."""

    def again(error: Exception, run_dir: Path | None) -> int:
        raise error

    monkeypatch.setattr(cli, "complain_unexpected", again)
    monkeypatch.setattr("metalearn.run.life.draw_plots", lambda *parts: None)  # most of the time of a tiny run


class Bomb:
    """Unpickled, it makes the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


def pickles(canary: Path) -> dict[str, bytes]:
    """The same bomb in every wrapping that some reader would open."""
    path = canary.with_name("bomb.pt")
    torch.save({"weights": Bomb(canary)}, path)
    zipped = path.read_bytes()
    torch.save({"weights": Bomb(canary)}, path, _use_new_zipfile_serialization=False)
    legacy = path.read_bytes()
    path.unlink()
    return {"plain": pickle.dumps(Bomb(canary)), "torch": zipped, "legacy torch": legacy}


def sign(folder: Path) -> None:
    """Make the manifest say that the files are as they should be."""
    contents = {name: (folder / name).read_bytes() for name in (TENSORS, FACTS)}
    listed = {name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in contents.items()}
    (folder / MANIFEST).write_text(json.dumps({"format_version": 1, "files": listed}))


def checkpoints(run_dir: Path) -> list[Path]:
    store = CheckpointStore(run_dir)
    return [store.path(step) for step in store.steps()]


def codes(run_dir: Path) -> dict[str, int]:
    """Exit codes of every verb that opens a run folder."""
    found = {
        "resume": cli.main(["resume", str(run_dir), "trainer.outer_steps=6"]),
        "eval": cli.main(["eval", str(run_dir), "eval.episodes=2"]),
        "ls": cli.main(["ls", "runs", str(run_dir.parent)]),
    }
    try:
        metalearn.load(run_dir)
        found["load"] = 0
    except MetalearnError as error:
        found["load"] = error.exit_code
    return found


@pytest.mark.parametrize("name", ["plain", "torch", "legacy torch"])
@pytest.mark.parametrize("place", [TENSORS, FACTS])
def test_fault_16_a_pickle_bomb_as_checkpoint_is_refused(run_dir: Path, canary: Path, name: str, place: str) -> None:
    for folder in checkpoints(run_dir):
        (folder / place).write_bytes(pickles(canary)[name])
        sign(folder)
    assert codes(run_dir) == {"resume": 4, "eval": 4, "ls": 0, "load": 4}
    assert not canary.exists()


@pytest.mark.parametrize("name", ["plain", "torch"])
def test_fault_16_a_pickle_bomb_in_every_file_of_a_run_is_refused(run_dir: Path, canary: Path, name: str) -> None:
    for path in [path for path in run_dir.rglob("*") if path.is_file()]:
        path.write_bytes(pickles(canary)[name])
    assert codes(run_dir) == {"resume": 2, "eval": 2, "ls": 0, "load": 2}
    assert not canary.exists()


@pytest.mark.parametrize("name", ["plain", "legacy torch"])
def test_fault_16_a_pickle_bomb_in_files_that_no_verb_needs_is_never_opened(run_dir: Path, canary: Path, name: str) -> None:
    for place in ("overrides.yaml", "status.json", "env.json", "results.json", ".lock", "checkpoints/last", "checkpoints/best"):
        (run_dir / place).write_bytes(pickles(canary)[name])
    assert codes(run_dir) == {"resume": 0, "eval": 0, "ls": 0, "load": 0}
    assert not canary.exists()


def test_fault_17_a_target_in_a_checkpoint_s_configuration_is_refused(
    run_dir: Path, canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is never built: it must equal the run's own, which the allow-list has judged."""
    for folder in checkpoints(run_dir):
        facts = json.loads((folder / FACTS).read_text())
        facts["config"] |= {"algo._target_": "os.system", "algo.command": f"touch {canary}"}
        (folder / FACTS).write_text(json.dumps(facts))
        sign(folder)
    assert cli.main(["resume", str(run_dir), "trainer.outer_steps=6"]) == 2
    assert "algo._target_: os.system -> metalearn.algorithms.maml.MAML" in capsys.readouterr().err
    saved = yaml.safe_load((run_dir / "config.yaml").read_text())
    saved["algo"] |= {"_target_": "os.system", "command": f"touch {canary}"}
    (run_dir / "config.yaml").write_text(yaml.safe_dump(saved))
    assert codes(run_dir) == {"resume": 2, "eval": 2, "ls": 0, "load": 2}
    assert "algo._target_=os.system is outside the trusted packages" in capsys.readouterr().err
    assert not canary.exists()


class TestWhatIsNoCheckpoint:
    """Tensors and facts that somebody wrote together with a manifest which says that they are right."""

    TENSOR_CHANGES: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
        "no weights": lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("weights.")],
        "one weight more": lambda tensors: tensors.update({"weights.evil": torch.ones(3)}),
        "another shape": lambda tensors: tensors.update({name: torch.ones(7) for name in tensors if name.startswith("weights.")}),
        "no random state": lambda tensors: tensors.pop(RANDOM),
        "a short random state": lambda tensors: tensors.update({RANDOM: torch.zeros(3, dtype=torch.uint8)}),
        "a random state of floats": lambda tensors: tensors.update({RANDOM: torch.zeros(5056)}),
        "moments of another shape": lambda tensors: tensors.update({name: torch.ones(9) for name in tensors if name.endswith("exp_avg")}),
        "half of the moments": lambda tensors: [tensors.pop(name) for name in list(tensors) if name.endswith("exp_avg_sq")],
        "moments of no parameter": lambda tensors: tensors.update({"optimizer.999.exp_avg": torch.ones(1)}),
        "moments without a number": lambda tensors: tensors.update({"optimizer.x.exp_avg": torch.ones(1)}),
        "sums of many": lambda tensors: tensors.update({"window.loss": torch.ones(5)}),
        "nothing": dict.clear,
    }
    FACT_CHANGES: tuple[dict[str, Any], ...] = (
        *(
            {"config": 3},
            {"config": None},
            {"step": 3},
            {"step": "4"},
            {"step": True},
            {"record": 5},
            {"record": [5]},
            {"record": [["x", 1]]},
        ),
        *({"metrics_offset": -1}, {"metrics_offset": 1e9}, {"optimizer": {}}, {"optimizer": [[1]]}, {"plan": []}, {"plan": {"name": "x"}}),
        *({"plan": {"name": "vmap", "chunk": -5, "compile": False}}, {"window_count": -1}, {"evaluated_step": None}, {"data_sha256": 5}),
    )

    @pytest.mark.parametrize("name", TENSOR_CHANGES)
    def test_tensors_that_are_not_this_run_s(self, run_dir: Path, name: str) -> None:
        for folder in checkpoints(run_dir):
            tensors = load_file(folder / TENSORS)
            self.TENSOR_CHANGES[name](tensors)
            save_file(tensors, folder / TENSORS)
            sign(folder)
        assert cli.main(["resume", str(run_dir), "trainer.outer_steps=6"]) == 4

    @pytest.mark.parametrize("change", FACT_CHANGES, ids=str)
    def test_facts_that_are_not_this_run_s(self, run_dir: Path, change: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
        for folder in checkpoints(run_dir):
            facts = {**json.loads((folder / FACTS).read_text()), **change}
            (folder / FACTS).write_text(json.dumps(facts))
            sign(folder)
        before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file() and path.name != ".lock"}
        assert cli.main(["resume", str(run_dir), "trainer.outer_steps=6"]) == 4
        assert "no valid checkpoint" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in before} == before

    @pytest.mark.parametrize("name", ["config", "data_sha256", "metrics_offset"])
    def test_facts_that_are_missing(self, run_dir: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        for folder in checkpoints(run_dir):
            facts = json.loads((folder / FACTS).read_text())
            del facts[name]
            (folder / FACTS).write_text(json.dumps(facts))
            sign(folder)
        assert cli.main(["resume", str(run_dir), "trainer.outer_steps=6"]) == 4
        assert f"is not valid: its facts.json says nothing of {name}" in capsys.readouterr().err

    @pytest.mark.parametrize("text", ["[", "[" * 99_999, '{"files": 5}', '{"format_version": 1, "files": {"x": 1}}', "\x00", "null", "5"])
    def test_a_manifest_that_is_none(self, run_dir: Path, text: str) -> None:
        for folder in checkpoints(run_dir):
            (folder / MANIFEST).write_text(text)
        assert codes(run_dir) == {"resume": 4, "eval": 4, "ls": 0, "load": 4}

    @pytest.mark.parametrize("last", ["step-²", "step-٠٠٠٠٠٤", "step-99999999999999999999999", "step-"])
    def test_a_folder_with_an_odd_name_is_no_checkpoint(self, run_dir: Path, last: str) -> None:
        for name in (last, "step-1", "step-000001.x", "step--00001"):
            (run_dir / "checkpoints" / name).mkdir()
        (run_dir / "checkpoints" / "last").write_text(f"{last}\n")
        assert codes(run_dir) == {"resume": 0, "eval": 0, "ls": 0, "load": 0}


class TestOtherFiles:
    @pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 99_999, '{"status": []}', '{"versions": [], "hardware": 3}', "\udc80"])
    def test_files_that_a_run_can_do_without(self, run_dir: Path, text: str) -> None:
        for name in ("overrides.yaml", "status.json", "env.json"):
            (run_dir / name).write_text(text, errors="surrogateescape")
        assert codes(run_dir) == {"resume": 0, "eval": 0, "ls": 0, "load": 0}

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"primary": "loss", "metrics": {"loss": 5}}', '{"primary": [], "metrics": {}}'])
    def test_a_result_that_is_none_does_not_hide_the_new_one(self, run_dir: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
        (run_dir / "results.json").write_text(text)
        assert cli.main(["eval", str(run_dir), "eval.episodes=2"]) == 0
        assert f"the run's own: {run_dir}/results.json is not the result of a run (" in capsys.readouterr().out

    @pytest.mark.parametrize("line", ["{", "[]", '{"step": 1}', '{"step": 1, "split": "train", "loss": "high"}', "[" * 99_999])
    def test_measurements_that_are_none_are_found_before_training(
        self, run_dir: Path, line: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        lines = (run_dir / "metrics.jsonl").read_text().splitlines()
        (run_dir / "metrics.jsonl").write_text("\n".join([line, *lines]) + "\n")
        assert cli.main(["resume", str(run_dir), "trainer.outer_steps=6"]) == 3
        assert f"{run_dir}/metrics.jsonl, line 1 is no measurement" in capsys.readouterr().err

    @pytest.mark.parametrize("about", [5, {"published": 5}, {"published": {"value": 1}}, {"figures": [1]}, {"deviation": 3, "paper": "x"}])
    def test_prose_that_no_table_could_print(self, run_dir: Path, about: Any, capsys: pytest.CaptureFixture[str]) -> None:
        saved = yaml.safe_load((run_dir / "config.yaml").read_text())
        saved["algo"]["about"] = about
        (run_dir / "config.yaml").write_text(yaml.safe_dump(saved))
        assert codes(run_dir) == {"resume": 2, "eval": 2, "ls": 0, "load": 2}
        assert "algo.about" in capsys.readouterr().err


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
            *(".lock", "train.log", "metrics.jsonl", "status.json", "status.json.tmp", "config.yaml.tmp", "overrides.yaml.tmp", "env.json"),
            *("results.json.tmp", "eval_test.csv.tmp", "checkpoints/last.tmp", "checkpoints/last", "plots/learning_curve.png", "new"),
        ],
    )
    def test_a_link_to_a_file_is_refused(self, run_dir: Path, outside: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        (run_dir / name).unlink(missing_ok=True)
        (run_dir / name).symlink_to(outside / "file")
        assert cli.main(["resume", str(run_dir), "trainer.outer_steps=6"]) == 2
        assert f"{run_dir}/{name} is a symbolic link; a run writes into its own folder only" in capsys.readouterr().err
        assert cli.main(["eval", str(run_dir), "eval.episodes=2"]) == 2

    @pytest.mark.parametrize("name", ["checkpoints", "plots", "evals", "evals/test_eval.episodes=2", "checkpoints/step-000004.tmp"])
    def test_a_link_to_a_folder_is_refused(self, run_dir: Path, outside: Path, name: str) -> None:
        shutil.rmtree(run_dir / name, ignore_errors=True)
        (run_dir / name).parent.mkdir(exist_ok=True)
        (run_dir / name).symlink_to(outside)
        assert cli.main(["resume", str(run_dir), "trainer.outer_steps=6"]) == 2
        assert cli.main(["eval", str(run_dir), "eval.episodes=2"]) == 2

    @pytest.mark.parametrize(
        "name",
        [
            *(".lock", "train.log", "metrics.jsonl", "status.json", "config.yaml", "overrides.yaml", "env.json", "results.json"),
            *("checkpoints/last", "checkpoints/best", f"checkpoints/step-000004/{MANIFEST}", f"checkpoints/step-000004/{TENSORS}"),
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


def test_a_configuration_does_not_take_long_to_refuse(run_dir: Path) -> None:
    (run_dir / "config.yaml").write_text("a: &a [" + "x, " * 1000 + "]\n" + "b: [" + "*a, " * 200 + "]\n")
    start = time.monotonic()
    assert cli.main(["resume", str(run_dir)]) == 2
    assert time.monotonic() - start < 20


def test_compiled_code_is_never_taken_from_where_a_configuration_says(tmp_path: Path) -> None:
    """PyTorch unpickles what it finds in the cache of its compiler."""
    words = ["train", *TINY, "data=glyphs", "model=conv4", f"data.cache_dir={tmp_path}/theirs", "data.way=1000"]
    code = f"import os, sys; from metalearn.cli import main; main({words!r}); print(os.environ['TORCHINDUCTOR_CACHE_DIR'])"
    environment = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    environment["XDG_CACHE_HOME"] = str(tmp_path / "mine")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.stdout.splitlines()[-1] == str(tmp_path / "mine" / "metalearn" / "compiler"), done.stderr
    assert (tmp_path / "mine" / "metalearn" / "compiler").stat().st_mode & 0o777 == 0o700
