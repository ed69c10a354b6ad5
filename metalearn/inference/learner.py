"""A trained run in Python: adapt to a handful of labelled examples of one's own, then predict.

    learner = metalearn.load("outputs/maml_glyphs/…")
    adapted = learner.adapt(["a1.png", "b1.png"], ["alpha", "beta"])
    adapted.predict(["x.png"])           # ["beta"]

Predictions are inductive: no input of `predict` influences another, whatever protocol the run was judged by.
Shape letters: S support rows, Q query rows, W ways, O outputs.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metalearn.build import specification
from metalearn.build.device import build_device
from metalearn.build.objects import build_source, initial_algorithm, placed
from metalearn.build.places import settled
from metalearn.config.compatibility import refuse_other_data
from metalearn.config.compose import reopen
from metalearn.config.saved import read_saved
from metalearn.core import Algorithm, Examples, Inputs, TaskSpec
from metalearn.data.preprocessing import Preprocessing
from metalearn.engine.evaluate import frozen, task_of
from metalearn.engine.results import choose
from metalearn.errors import CheckpointError, ConfigError, DataError
from metalearn.rundir.checkpoint_files import located
from metalearn.rundir.checkpoints import CheckpointStore
from metalearn.rundir.state import load_weights


def load(run_dir: str | Path, *, checkpoint: str | None = None, trusted: Sequence[str] = ()) -> Loaded:
    """The algorithm of a run with the weights that validation chose.

    run_dir: a run folder, or a checkpoint in one as RUN_DIR/checkpoints/best. checkpoint: best (the default),
    last or step-NUMBER. trusted: packages of one's own whose classes the run's method and model name.
    Of the folder config.yaml, spec.json and the checkpoint's weights.safetensors and metadata.json are read;
    a run that is older than spec.json needs its data, too.
    Raises ConfigError for a folder that is no run, CheckpointError for files that are not as they were saved,
    and DataError for the data of an older run that is not here, or not what it was trained on.
    """
    run_dir, named = located(Path(run_dir))
    checkpoint = named or "best" if checkpoint is None else str(checkpoint)
    if not re.fullmatch(r"best|last|step-\d+", checkpoint):
        raise ConfigError(f"checkpoint={checkpoint}; expected best, last or step-NUMBER")
    if named not in (None, checkpoint):
        raise ConfigError(
            f"{run_dir / 'checkpoints' / named} is one checkpoint and checkpoint={checkpoint} another; give "
            "only one of them"
        )
    words = [f"trusted=[{','.join(trusted)}]"] if trusted else []
    saved = read_saved(run_dir)
    kept = specification.read(run_dir, trusted)
    for group in ("logger", "optimizer", *(["data"] if kept else [])):
        del saved[group]  # it is not built, so that its class need not be here or trusted
    cfg = reopen(saved, words)
    cfg["device"]["ranks"] = 1  # however many trained it, one process uses it
    device = build_device(cfg)
    store = CheckpointStore(run_dir)
    if not store.steps():
        raise CheckpointError(f"{store.folder} holds no checkpoint; run metalearn resume {run_dir}")
    _, step = choose(store, checkpoint)
    chosen = store.load(step, weights_only=True)
    spec, prepare = kept or from_data(cfg, run_dir, device, chosen.metadata["data_sha256"])
    algorithm = placed(cfg, initial_algorithm(cfg, {"train": spec}, spec), device)
    load_weights(algorithm, chosen.tensors)
    return Loaded(algorithm.eval(), prepare, device)


def from_data(
    cfg: dict[str, Any], run_dir: Path, device: torch.device, trained_on: str
) -> specification.Described:
    """What spec.json would say, of a run that has none."""
    try:
        source = build_source(settled(cfg, cfg, run_dir, advice="put it back there"), device)
        refuse_other_data(trained_on, source.fingerprint())
    except DataError as error:
        raise DataError(
            f"{run_dir} has no spec.json, so that its data is read instead, but {error}"
        ) from error
    try:
        return source.spec("train"), Preprocessing.of(source.spec("train").input_spec, source.preprocessing())
    except ValueError as error:
        raise ConfigError(f"data={source.name}: {error}") from error


class Loaded:
    """A learner with its weights and its preprocessing; `adapt` leaves it as it is, so one learner serves
    many tasks.
    """

    def __init__(self, algorithm: Algorithm, prepare: Preprocessing, device: torch.device) -> None:
        self.algorithm, self.prepare, self.device = algorithm, prepare, device

    def adapt(
        self, support_inputs: Any, labels: Sequence[Any] | np.ndarray | Tensor, *, steps: int | None = None
    ) -> Adapted:
        """Learn from a support set. labels: one per input, any hashable values; numbers (S,) or (S, O) for
        regression.

        A tensor or an array of labels counts as the list of its values. steps: adaptation steps, by default
        the method's own for evaluation. Raises ConfigError, with the reason, for inputs, labels or steps that
        do not fit the run, or if the method cannot take as many classes.
        """
        given = _listed(labels)
        x = self._moved(self.prepare(support_inputs))
        count = len(next(iter(x.values())) if isinstance(x, dict) else x)
        if count != len(given):
            raise ConfigError(
                f"{count} inputs and {len(given)} labels; give one label for each input, and at least one"
            )
        classes = _classes(given) if self.algorithm.spec.kind == "classification" else None
        spec = replace(self.algorithm.spec, support_size=count, query_size=count)
        if classes is not None:
            spec = replace(spec, num_outputs=len(classes), max_way=len(classes))
        try:
            self.algorithm.check(spec)
        except ValueError as error:
            raise ConfigError(
                f"the support holds {len(classes or given)} different labels: {error}"
            ) from error
        steps = self._steps(steps, spec)
        support = Examples(
            x, self._targets(given, classes), torch.ones(count, dtype=torch.bool, device=self.device)
        )
        task = task_of(self.algorithm, support, spec)
        with frozen(self.algorithm), torch.no_grad():
            learned = self.algorithm.inductive(self.algorithm.adapt(task, steps=steps), task)
        return Adapted(self, learned, classes)

    def _targets(self, labels: Sequence[Any], classes: list[Hashable] | None) -> Tensor:
        if classes is not None:
            return torch.tensor([classes.index(label) for label in labels], device=self.device)
        num_outputs = self.algorithm.spec.num_outputs
        try:
            y = torch.as_tensor(np.asarray(labels), dtype=torch.get_default_dtype(), device=self.device)
            return y.reshape(len(labels), num_outputs)
        except (ValueError, TypeError, RuntimeError) as error:
            alone = f"({len(labels)},) or " if num_outputs == 1 else ""
            raise ConfigError(
                f"labels are no numbers of shape {alone}({len(labels)}, {num_outputs}): {error}"
            ) from error

    def _steps(self, steps: int | None, spec: TaskSpec) -> int:
        if steps is None:
            return self.algorithm.eval_adaptation_steps
        # Methods that draw random numbers for their steps have as many as their own steps need, and none
        # after that.
        limit = self.algorithm.eval_adaptation_steps if self.algorithm.draws(spec) else None
        if type(steps) is not int or steps < 0 or (limit is not None and steps > limit):
            upwards = "" if limit is None else f" to {limit}, the run's algo.eval_adaptation_steps"
            raise ConfigError(f"steps={steps}; expected a whole number from 0{upwards}")
        return steps

    def _moved(self, x: Inputs) -> Inputs:
        return (
            {name: value.to(self.device) for name, value in x.items()}
            if isinstance(x, dict)
            else x.to(self.device)
        )


class Adapted:
    """A learner after one support set. classes: labels in the order of `predict_proba`'s columns; None for
    regression.
    """

    def __init__(self, learner: Loaded, learned: Any, classes: list[Any] | None) -> None:
        self.learner, self.learned, self.classes = learner, learned, classes

    def predict(self, inputs: Any) -> Any:
        """The label of each input, as a list; for regression a tensor (Q, O)."""
        scores = self._scores(inputs)
        return scores if self.classes is None else [self.classes[i] for i in scores.argmax(-1).tolist()]

    def predict_proba(self, inputs: Any) -> Tensor:
        """Softmax over the support's classes, (Q, W), columns as in `classes`."""
        if self.classes is None:
            raise ConfigError("predict_proba needs classes, but this run predicts numbers; use predict")
        return self._scores(inputs).softmax(-1)

    def _scores(self, inputs: Any) -> Tensor:
        x = self.learner._moved(self.learner.prepare(inputs))
        count = len(next(iter(x.values())) if isinstance(x, dict) else x)
        mask = torch.ones(count, dtype=torch.bool, device=self.learner.device)
        with frozen(self.learner.algorithm), torch.no_grad():
            scores: Tensor = self.learner.algorithm.predict(self.learned, x, mask)
        return (scores if self.classes is None else scores[:, : len(self.classes)]).cpu()


def _listed(labels: Any) -> list[Any]:
    """Labels as a list of plain values: tensors are equal by identity, so two labels 0 would be two
    classes.
    """
    if hasattr(labels, "tolist"):
        labels = labels.tolist()
    if not hasattr(labels, "__iter__"):
        raise ConfigError(f"labels are a list, not {type(labels).__name__}")
    return [label.tolist() if torch.is_tensor(label) else label for label in labels]


def _classes(labels: list[Any]) -> list[Hashable]:
    """The different labels in order of appearance. Raises ConfigError for one that cannot be told from others
    by its value.
    """
    for number, label in enumerate(labels):
        if not isinstance(label, Hashable):
            raise ConfigError(
                f"labels[{number}]={label} is a {type(label).__name__}; a label is a word, a number or "
                "another hashable value"
            )
    return list(dict.fromkeys(labels))
