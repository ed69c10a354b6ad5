"""Where a new run goes, whether a folder holds the run that is asked for, and its configuration as an
evaluation takes it.
"""

from __future__ import annotations

import copy
import secrets
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from metalearn.build.places import places_of
from metalearn.config.compatibility import refuse_new_science, science
from metalearn.config.compose import reopen
from metalearn.config.saved import read_saved
from metalearn.engine.results import protocol_name
from metalearn.errors import ConfigError
from metalearn.run import slurm
from metalearn.rundir.choices import as_file_name, chosen


def new_run_dir(cfg: dict[str, Any], overrides: Sequence[str] = ()) -> Path:
    """run_dir, or outputs/<algo>_<data>/<date>_<time>_<4 hex digits>.

    overrides: the words that made the configuration. In a job of SLURM they and the job's number may name the
    folder in place of the time, see `metalearn.run.slurm.own_folder`.
    """
    if cfg.get("run_dir"):
        return Path(cfg["run_dir"])
    names = chosen(cfg)
    parent = Path("outputs") / "_".join(as_file_name(names[group]) for group in ("algo", "data"))
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    return slurm.own_folder(parent, overrides) or parent / f"{stamp}_{secrets.token_hex(2)}"


def holds_run(run_dir: Path, cfg: dict[str, Any]) -> bool:
    """Whether a job of SLURM that is run again goes on in this folder. ConfigError if the run in it is
    another than cfg asks for.
    """
    if not (run_dir / "config.yaml").exists():
        return False
    try:
        refuse_new_science(science(read_saved(run_dir)), science(cfg), places_of(cfg))
    except ConfigError as error:
        where = (
            f"{run_dir} holds another run, which restart {slurm.restarts()} of SLURM job {slurm.job()} "
            "may not go on with"
        )
        raise ConfigError(f"{where}; choose another run_dir: {error}") from error
    return True


def evaluation_folder(run_dir: Path, overrides: list[str], config_dir: str | None = None) -> Path:
    """Where `metalearn eval RUN_DIR OVERRIDES` writes, if none of these says that the data lie elsewhere."""
    saved = read_saved(run_dir)
    split = reopen(saved, overrides, config_dir, sizes=saved["data"])["eval"]["split"]
    return run_dir / "evals" / protocol_name(split, overrides)


def pin_training(cfg: dict[str, Any]) -> dict[str, Any]:
    """The configuration with the sizes of training tasks written out, so that another data.way is one of
    evaluation only.
    """
    cfg = copy.deepcopy(cfg)
    train = cfg["data"].get("train") or {}
    train.update({name: cfg["data"].get(name) for name, value in train.items() if value is None})
    return cfg
