"""A new run. Configuration comes in as plain dicts; no command line is parsed.

A run writes config.yaml first, rehearses on copies, saves step-000000, trains with validations that choose
the best checkpoint, reads the test split once, and writes results.json. Killed at any moment, `resume` brings
the same end.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from metalearn.build.checks import Prebuilt
from metalearn.distributed.launch import pinned
from metalearn.errors import ConfigError, DataError
from metalearn.fault_injection import fault
from metalearn.run import slurm
from metalearn.run.session import Session
from metalearn.run.signals import StopSignals
from metalearn.rundir.checkpoints import CheckpointStore
from metalearn.rundir.log import RunLog
from metalearn.rundir.reader import refuse_existing_run

log = logging.getLogger(__name__)


def train(
    cfg: dict[str, Any],
    overrides: list[str],
    run_dir: Path,
    *,
    prebuilt: Prebuilt | None = None,
    requeue: slurm.Requeue = slurm.requeue,
) -> int:
    """A new run; its exit code. ConfigError if the folder already holds one.

    prebuilt: what a check has built; what was said meanwhile goes into train.log, too.
    requeue: called when SLURM's warning has stopped the run.
    """
    refuse_existing_run(dict(cfg, run_dir=run_dir))
    cfg = pinned(cfg)
    with StopSignals(*slurm.warnings()) as signals, RunLog(run_dir) as runlog:
        # again: another process may have been faster to the lock
        refuse_existing_run(dict(cfg, run_dir=run_dir))
        try:
            runlog.write_request(cfg, overrides)
            fault("start:config")
            code = Session(cfg, runlog, signals, requeue=requeue, prebuilt=prebuilt).run()
        except (ConfigError, DataError):
            if not CheckpointStore(run_dir).steps():
                runlog.discard()  # it never began: leave the folder to the corrected command
            raise
        if cfg["trainer"]["dry_run"]:
            runlog.discard()
        return code
