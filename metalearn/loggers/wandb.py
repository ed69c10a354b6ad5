"""Curves in Weights & Biases; offline, they are sent later with `wandb sync RUN_DIR/wandb/offline-run-*`."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metalearn.loggers import Line, Logger
from metalearn.loggers.extras import not_installed
from metalearn.loggers.run_folder import configuration, exit_code, name_of, sweep_of

# Whatever W&B would keep in the home folder. Its settings there are left where they are: they hold the key.
PLACES = {"WANDB_CACHE_DIR": "cache", "WANDB_DATA_DIR": "data", "WANDB_ARTIFACT_DIR": "artifacts"}
PATIENCE = 30.0  # seconds for a server to answer


class WeightsAndBiases(Logger):
    """A run in RUN_DIR/wandb: a row of `split/metric` and `step` for every line. ConfigError without the
    package.

    Its id stands in RUN_DIR/wandb_id, and each opening sends all lines under it once more: what is sent under
    an id takes the place of what was known of it. W&B's own resuming asks its server where to go on, which an
    offline run cannot, and appends, whatever was taken back.

    mode: offline, online or disabled. project, entity: where the run is shown. name: None for that of its
    folder. group: None for the sweep's name. tags: words to find it by.
    """

    def __init__(
        self,
        *,
        mode: str,
        project: str,
        entity: str | None,
        name: str | None,
        group: str | None,
        tags: list[str],
    ) -> None:
        self.mode, self.project, self.entity = mode, project, entity
        self.name, self.group, self.tags = name, group, tags
        self.run: Any = None
        try:
            with quietly():
                import wandb
        except ImportError as error:
            raise not_installed("wandb") from error
        self.wandb = wandb
        with quietly():
            unknown = mode == "online" and not has_key(wandb)
        if unknown:
            raise ValueError(
                "logger.mode=online needs a key of W&B; call wandb login once, set WANDB_API_KEY, or take "
                "logger.mode=offline"
            )

    def open(self, run_dir: Path, lines: list[Line]) -> None:
        if self.mode == "disabled":
            return
        self.run_dir = run_dir
        folder, older = run_dir / "wandb", run_dir / "wandb_older"
        if folder.exists():
            shutil.rmtree(older, ignore_errors=True)
            folder.rename(older)
        folder.mkdir()
        with quietly(), inside(folder), own_exits():
            self.run = self._begin(run_dir)
        remove_links(folder)
        self.run.define_metric("step", hidden=True)
        self.run.define_metric("*", step_metric="step")
        for line in lines:
            self.write(line)
        shutil.rmtree(older, ignore_errors=True)

    def write(self, line: Line) -> None:
        if self.run is None:
            return
        # W&B drops a row with a smaller step than the last one, as that of the test split is: `step` is a
        # number like any other here, and only the axis.
        values = {f"{line.split}/{name}": value for name, value in line.values.items() if value is not None}
        self.run.log({"step": line.step, **values})

    def close(self) -> None:
        if self.run is None:
            return
        run, self.run = self.run, None
        run.finish(exit_code=exit_code(self.run_dir) or 0)
        remove_links(self.run_dir / "wandb")
        self.wandb.teardown()  # its process, which a sweep would otherwise take along to its other jobs

    def _begin(self, run_dir: Path) -> Any:
        wandb = self.wandb
        return wandb.init(
            mode=self.mode,
            project=self.project,
            entity=self.entity,
            id=known_id(run_dir / "wandb_id"),
            name=self.name or name_of(run_dir),
            group=self.group or sweep_of(run_dir),
            tags=self.tags,
            config=configuration(run_dir),
            dir=str(run_dir),
            reinit="create_new",
            settings=wandb.Settings(
                console="off",
                silent=True,
                symlink=False,  # a run folder holds no links
                init_timeout=PATIENCE,
                # env.json knows the machine and the code; W&B's own figures could not be sent once more
                disable_git=True,
                disable_code=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )


def known_id(path: Path) -> str:
    """The id of a run, which is made when it is first asked for."""
    if not path.exists():
        path.write_text(f"{uuid.uuid4().hex[:16]}\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def remove_links(folder: Path) -> None:
    """A run folder holds none; W&B links to the log of its process whatever it is told."""
    for path in folder.rglob("*"):
        if path.is_symlink():
            path.unlink()


def has_key(wandb: Any) -> bool:
    """Whether W&B knows who asks; it would wait for an answer on the terminal otherwise."""
    return bool(os.environ.get("WANDB_API_KEY") or wandb.api.api_key)


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """W&B's process, which is started within, keeps its files in a folder, unless the environment says
    where.
    """
    new = {name: str(folder / place) for name, place in PLACES.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


@contextlib.contextmanager
def own_exits() -> Iterator[None]:
    """How Python ends, and what it says of an error, stays as it was before."""
    before = sys.exit, sys.excepthook
    try:
        yield
    finally:
        sys.exit, sys.excepthook = before


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Warnings of packages that others wrote are nothing that a person who trains could mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
