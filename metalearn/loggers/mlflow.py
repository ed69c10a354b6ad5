"""Curves in MLflow, to be watched with `mlflow ui --backend-store-uri sqlite:///RUN_DIR/mlflow/mlflow.db`."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import sqlite3
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metalearn.loggers import Line, Logger
from metalearn.loggers.extras import not_installed
from metalearn.loggers.run_folder import configuration, exit_code, name_of, sweep_of

LONGEST_KEY, LONGEST_VALUE = 250, 6000  # characters of a parameter; MLflow refuses more
MOST_PARAMETERS, MOST_METRICS = 100, 1000  # of one call
PATIENCE = 30.0  # seconds for another process that writes
REFUSED = re.compile(r"[^\w\-. :/]")  # in the name of a parameter or a metric
TAKEN_BACK = ("metrics", "latest_metrics", "params")  # tables of the rows that each opening writes anew
ENDINGS = {0: "FINISHED", 130: "KILLED", 143: "KILLED"}  # by exit code; any other is FAILED
# It would tell its makers of its use, and people of a service of theirs.
SILENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_DISABLE_AGENT_HINT": "true"}


class MLflow(Logger):
    """A run in MLflow: a metric `split/metric` for every finite value of a line, and config.yaml as
    parameters. ConfigError without the package.

    RUN_DIR/mlflow.json holds the run's id. MLflow cannot take a value back. In a folder, each opening empties
    the rows of the run and logs all lines again, under the same id; on a server it deletes the run as MLflow
    does, which can be undone, and begins another.

    tracking_uri: a folder as seen from the run folder, or an address such as http://host:5000. experiment:
    its name. name: None for that of the run folder.
    """

    def __init__(self, *, tracking_uri: str, experiment: str, name: str | None) -> None:
        self.tracking_uri, self.experiment, self.name = tracking_uri, experiment, name
        for variable, value in SILENT.items():
            os.environ.setdefault(variable, value)
        try:
            with quietly():
                import alembic  # noqa: F401 - mlflow-skinny comes without these two, and then keeps no runs
                import mlflow
                import sqlalchemy  # noqa: F401
        except ImportError as error:
            raise not_installed("mlflow") from error
        self.mlflow = mlflow

    def open(self, run_dir: Path, lines: list[Line]) -> None:
        self.run_dir = run_dir
        local = "://" not in self.tracking_uri
        with quietly():
            if local:
                folder = (run_dir / self.tracking_uri).resolve()
                self.client, experiment = self._folder(folder)
            else:
                self.client, experiment = self._server()
            self.run_id = self._known()
            if self.run_id is not None and local:
                empty(folder / "mlflow.db", self.run_id)
            elif self.run_id is not None:
                self.client.delete_run(self.run_id)
            if self.run_id is None or not local:
                self.run_id = self._begin(experiment)
            self.client.update_run(self.run_id, status="RUNNING", name=self.name or name_of(run_dir))
            self._describe()
            self._log(lines)

    def write(self, line: Line) -> None:
        with quietly():
            self._log([line])

    def close(self) -> None:
        code = exit_code(self.run_dir)
        if code is not None:
            with quietly():
                self.client.set_terminated(self.run_id, ENDINGS.get(code, "FAILED"))

    def _folder(self, folder: Path) -> tuple[Any, str]:
        """A client of a folder, which is made if need be, and the id of the experiment."""
        folder.mkdir(exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # jobs of a sweep may come to an empty folder at once
            client = self.mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
            return client, self._experiment(client, (folder / "artifacts").as_uri())

    def _server(self) -> tuple[Any, str]:
        client = self.mlflow.MlflowClient(self.tracking_uri)
        return client, self._experiment(client, None)

    def _experiment(self, client: Any, artifacts: str | None) -> str:
        found = client.get_experiment_by_name(self.experiment)
        made: str = (
            client.create_experiment(self.experiment, artifacts) if found is None else found.experiment_id
        )
        return made

    def _known(self) -> str | None:
        """The id of the run, if there is one that nobody deleted."""
        try:
            found = json.loads((self.run_dir / "mlflow.json").read_text(encoding="utf-8"))["run_id"]
            info = self.client.get_run(found).info
        except (OSError, ValueError, KeyError, self.mlflow.MlflowException):
            return None
        return info.run_id if info.lifecycle_stage == "active" else None

    def _begin(self, experiment: str) -> str:
        sweep = sweep_of(self.run_dir)
        tags = {"run_dir": str(self.run_dir.resolve()), **({} if sweep is None else {"sweep": sweep})}
        name = self.name or name_of(self.run_dir)
        run_id: str = self.client.create_run(experiment, tags=tags, run_name=name).info.run_id
        (self.run_dir / "mlflow.json").write_text(json.dumps({"run_id": run_id}) + "\n", encoding="utf-8")
        return run_id

    def _describe(self) -> None:
        """The configuration, cut to what MLflow takes."""
        parameters = [
            self.mlflow.entities.Param(REFUSED.sub("_", key)[:LONGEST_KEY], str(value)[:LONGEST_VALUE])
            for key, value in configuration(self.run_dir).items()
        ]
        for some in chunks(parameters, MOST_PARAMETERS):
            self.client.log_batch(self.run_id, params=some)

    def _log(self, lines: list[Line]) -> None:
        now = int(1000 * time.time())
        metrics = [
            self.mlflow.entities.Metric(REFUSED.sub("_", f"{line.split}/{name}"), value, now, line.step)
            for line in lines
            for name, value in line.values.items()
            if value is not None
        ]
        for some in chunks(metrics, MOST_METRICS):
            self.client.log_batch(self.run_id, metrics=some)


def empty(database: Path, run_id: str) -> None:
    """Take back what was logged of a run. MLflow itself has no word for it."""
    with contextlib.closing(sqlite3.connect(database, timeout=PATIENCE)) as connection, connection:
        for table in TAKEN_BACK:
            connection.execute(f"DELETE FROM {table} WHERE run_uuid = ?", (run_id,))


def chunks(entries: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(entries), size):
        yield entries[start : start + size]


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Nothing that MLflow and its database have to say could be mended by a person who trains."""
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
