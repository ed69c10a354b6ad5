"""Make the run folders that are stored here, and what becomes of them, with the metalearn of commit 61490f1.

    git worktree add ../before 61490f1 && cd ../before && python ../metalearn/tests/older_run/make.py OUT

`OUT/run` is a run on sinusoids that a signal stopped within a row of steps between two log lines, so that a
resumed run needs everything that its checkpoint holds. `OUT/expected` has what that commit itself made of
copies of it: `evaluation` and `resumed` with their results, scores and measurements, and `machine.json`, from
which `test_older_run.py` sees whether every bit should be equal. `OUT/images` has both of a run on images,
with running averages and keys that have other names or further keys beside them now. Neither the words nor
that commit may change.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, os.getcwd())  # of that commit's metalearn and tests

from metalearn import run as runs
from metalearn.config import compose
from metalearn.engine.trainer import Trainer
from tests.golden.runs import machine

STOPPED_AT = 5
SINUSOIDS = [
    *("algo=maml", "data=sinusoid", "model.hidden=[6,6]", "algo.inner_lr=0.01"),
    *("device=cpu", "device.precision=float64", "device.threads=1", "device.plan=vmap", "device.chunk=2"),
    *("trainer.outer_steps=8", "trainer.meta_batch_size=4", "trainer.log_every=3", "trainer.eval_every=2"),
    *("trainer.checkpoint_every=4", "trainer.keep_last=1"),
    *("optimizer.schedule.name=cosine", "optimizer.clip.norm=1"),
    *("eval.val_episodes=4", "eval.episodes=12"),
]
IMAGES = [
    *("algo=protonet", "data=glyphs", "data.num_classes=48", "data.num_drawings=6", "data.image_size=14"),
    *("data.way=3", "data.query_shot=2", "data.rotations=[train]"),
    *("model.channels=3", "model.norm_statistics=running"),
    *("optimizer=sgd", "optimizer.lr=0.01"),
    *("device=cpu", "device.precision=float64", "device.threads=1", "device.plan=vmap", "device.chunk=2"),
    *("trainer.outer_steps=8", "trainer.meta_batch_size=4", "trainer.log_every=3", "trainer.eval_every=4"),
    *("trainer.checkpoint_every=4", "trainer.keep_last=1"),
    *("eval.val_episodes=4", "eval.episodes=12", "eval.batch_size=4"),
]


def main(out: Path, words: list[str]) -> None:
    out.mkdir(parents=True)
    os.chdir(out)  # paths are saved as they are given, and so are the words
    os.environ["XDG_CACHE_HOME"] = str(out / "cache")
    sys.argv = ["metalearn", "train", *words, "run_dir=run"]
    step = Trainer.train_step

    def stopped(trainer: Trainer) -> None:
        step(trainer)
        if trainer.step == STOPPED_AT:
            os.kill(os.getpid(), signal.SIGTERM)

    Trainer.train_step = stopped  # type: ignore[method-assign]
    assert runs.train(compose([*words, "run_dir=run"]), words, Path("run")) == 143
    Trainer.train_step = step  # type: ignore[method-assign]
    Path("run/.lock").unlink()

    shutil.copytree("run", "evaluated")
    assert runs.evaluate_run(Path("evaluated"), ["data.shot=5" if words is SINUSOIDS else "data.shot=2"]) == 0
    [folder] = Path("evaluated/evals").iterdir()
    keep(folder, Path("expected/evaluation"))

    shutil.copytree("run", "resumed")
    assert runs.resume(Path("resumed"), []) == 0
    keep(Path("resumed"), Path("expected/resumed"))
    Path("expected/machine.json").write_text(json.dumps(machine(), indent=1) + "\n")
    for name in ("evaluated", "resumed"):
        shutil.rmtree(name)
    shutil.rmtree("cache", ignore_errors=True)


def keep(folder: Path, place: Path) -> None:
    place.mkdir(parents=True)
    for name in ("results.json", "eval_test.csv"):
        shutil.copy(folder / name, place / name)
    if (folder / "metrics.jsonl").exists():
        (place / "metrics.jsonl").write_text("".join(map(without_times, lines(folder / "metrics.jsonl"))))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_times(line: dict[str, Any]) -> str:
    return json.dumps({key: value for key, value in line.items() if not key.startswith("time_")}) + "\n"


if __name__ == "__main__":
    place = Path(sys.argv[1]).absolute()
    main(place, SINUSOIDS)
    main(place / "images", IMAGES)
