"""What the tests of foreign run folders share: a tiny run, sums that vouch for anything, and the
answer of every verb.
"""

from __future__ import annotations

import json
from pathlib import Path

import metalearn
from metalearn.cli import main as cli
from metalearn.errors import MetalearnError
from metalearn.rundir import checkpoint_files
from metalearn.rundir.checkpoint_files import METADATA, OWN, TRAINING_FILE, WEIGHTS_FILE
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


def checkpoints(run_dir: Path) -> list[Path]:
    store = CheckpointStore(run_dir)
    return [store.path(step) for step in store.steps()]


def sign(folder: Path) -> None:
    """Make the sums say that the files are as they should be; metadata that is no mapping gets its own."""
    content = (folder / METADATA).read_bytes()
    tensors = {name: (folder / name).read_bytes() for name in (WEIGHTS_FILE, TRAINING_FILE)}
    try:
        tree = {name: value for name, value in json.loads(content).items() if name not in OWN}
        signed = checkpoint_files.encoded(tensors, tree)
    except (ValueError, AttributeError):
        signed = checkpoint_files.first_line(content) + content
    (folder / METADATA).write_bytes(signed)


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
