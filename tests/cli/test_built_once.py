"""What a check has built is what the run then uses: data are read once per command, and weights are those of
a run without a check.
"""

from __future__ import annotations

import collections
import copy
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from metalearn.algorithms.maml import MAML
from metalearn.build import objects
from metalearn.build.checks import Prebuilt
from metalearn.build.objects import bytes_of
from metalearn.cli import main as cli
from metalearn.config.compose import compose
from metalearn.data.sinusoid import Sinusoid
from metalearn.loggers import Logger
from metalearn.run.train import train

SMALL = [
    "data=sinusoid",
    "model.hidden=[4]",
    "trainer.outer_steps=1",
    "trainer.meta_batch_size=2",
    "eval.episodes=2",
]
SMALL += ["eval.val_episodes=2", "device=cpu", "device.threads=1", "device.precision=float64"]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[collections.Counter[str]]:
    """How many of each kind were constructed."""
    count: collections.Counter[str] = collections.Counter()
    for kind in (Sinusoid, MAML):
        usual = kind.__init__

        def counted(self, *args, usual=usual, kind=kind, **more):
            count[kind.__name__] += 1
            usual(self, *args, **more)

        monkeypatch.setattr(kind, "__init__", counted)
    monkeypatch.setattr(Logger, "__init__", lambda self: count.update(["Logger"]))
    monkeypatch.setattr("metalearn.run.session.draw_plots", lambda *parts: None)
    return count


@pytest.fixture(autouse=True)
def ordinary_precision() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)


def test_a_run_is_built_once_and_has_the_weights_of_one_without_a_check(
    tmp_path: Path, made: collections.Counter[str]
) -> None:
    assert cli.main(["train", *SMALL, f"run_dir={tmp_path}/checked"]) == 0
    assert made == {"Sinusoid": 1, "MAML": 1, "Logger": 1}
    assert train(compose(SMALL), [], tmp_path / "unchecked") == 0
    first = "checkpoints/step-000000/training.safetensors"  # the random state is among them
    assert (tmp_path / "checked" / first).read_bytes() == (tmp_path / "unchecked" / first).read_bytes()
    assert (tmp_path / "checked" / "results.json").read_bytes() == (
        tmp_path / "unchecked" / "results.json"
    ).read_bytes()


def test_a_sweep_reads_its_data_once(tmp_path: Path, made: collections.Counter[str]) -> None:
    assert cli.main(["train", "-m", *SMALL, "seed=0,1,2", f"run_dir={tmp_path}/sweep"]) == 0
    assert made["Sinusoid"] == 1
    assert cli.main(["train", *SMALL, "seed=1", f"run_dir={tmp_path}/alone"]) == 0
    [job] = (tmp_path / "sweep").glob("seed-1_*")
    assert (job / "results.json").read_bytes() == (tmp_path / "alone" / "results.json").read_bytes()


def test_a_sweep_whose_data_alternate_builds_everything_once(
    tmp_path: Path, made: collections.Counter[str]
) -> None:
    assert cli.main(["train", "-m", *SMALL, "seed=0,1", "data.shot=3,4", f"run_dir={tmp_path}/sweep"]) == 0
    assert made == {"Sinusoid": 2, "MAML": 4, "Logger": 4}
    assert cli.main(["train", *SMALL, "seed=0", "data.shot=4", f"run_dir={tmp_path}/alone"]) == 0
    [job] = (tmp_path / "sweep").glob("seed-0_shot-4_*")
    for name in ("results.json", "checkpoints/step-000000/weights.safetensors"):
        assert (job / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_what_takes_much_memory_is_not_kept_beside_the_next(
    tmp_path: Path, made: collections.Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "KEPT_BYTES", 100)
    for kind in (Sinusoid, MAML):
        grow = lambda self, asked: setattr(self, "read", torch.zeros(101, dtype=torch.uint8))  # noqa: E731
        monkeypatch.setattr(kind, "check", grow)
    assert cli.main(["train", "-m", *SMALL, "seed=0,1", "data.shot=3,4", f"run_dir={tmp_path}/sweep"]) == 0
    assert made["Sinusoid"] == 2 + 4
    assert made["MAML"] == 7, "that of the last job is still there"


def test_the_bytes_of_a_part_are_those_of_its_tensors_and_arrays_each_once() -> None:
    class Part:
        def __init__(self) -> None:
            self.images = torch.zeros(10, 10, dtype=torch.uint8)
            self.view, self.by_name = (
                self.images[2:],
                {"again": [self.images], "numbers": (np.zeros(3), self)},
            )

    assert bytes_of(Part()) == 100 + 3 * 8
    assert bytes_of(torch.nn.Linear(2, 3)) == (6 + 3) * 4


def test_what_is_said_while_parts_are_built_stands_in_the_log_of_each_job(
    tmp_path: Path,
    made: collections.Counter[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = logging.getLogger("metalearn.data.sinusoid")
    for kind, name in ((Sinusoid, "__init__"), (Sinusoid, "prepare"), (MAML, "__init__")):
        usual = getattr(kind, name)

        def telling(self, *args, usual=usual, word=f"{kind.__name__}.{name}", **more):
            log.info(f"{word} at work")
            usual(self, *args, **more)

        monkeypatch.setattr(kind, name, telling)
    assert cli.main(["train", "-m", *SMALL, "seed=0,1", f"run_dir={tmp_path}/sweep"]) == 0
    assert capsys.readouterr().out.count("Sinusoid.prepare at work") == 1
    assert cli.main(["train", *SMALL, f"run_dir={tmp_path}/alone"]) == 0
    logs = [*(tmp_path / "sweep").glob("*/train.log"), tmp_path / "alone" / "train.log"]
    assert len(logs) == 3
    for path in logs:
        said = [line.split(" ", 2)[2] for line in path.read_text().splitlines() if line.endswith(" at work")]
        assert said == [
            f"{part} at work" for part in ("Sinusoid.__init__", "Sinusoid.prepare", "MAML.__init__")
        ]


def test_sources_of_other_data_are_not_mixed_up(tmp_path: Path, made: collections.Counter[str]) -> None:
    assert cli.main(["train", "-m", *SMALL, "data.shot=3,4", f"run_dir={tmp_path}/sweep"]) == 0
    for shot in (3, 4):
        [path] = (tmp_path / "sweep").glob(f"shot-{shot}_*/results.json")
        assert json.loads(path.read_text())["protocol"]["shot"] == shot


def test_what_was_built_stays_in_its_process() -> None:
    prebuilt = Prebuilt()
    prebuilt.source(compose(SMALL), torch.device("cpu"))
    assert copy.copy(prebuilt) == Prebuilt(), "as pickle does it"
