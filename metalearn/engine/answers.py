"""What was answered to every query: the content of `predictions_<split>.safetensors`, and how well each class
and group was known.

Shape letters: T tasks, Q queries (padded), R real queries of all tasks, W ways, D target dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metalearn.core import NamedTask, Source
from metalearn.engine.evaluate import EvalSpec, Evaluation, summarise
from metalearn.engine.task_names import AT_ONCE


@dataclass(frozen=True)
class Answers:
    """prediction: (T, Q, …). y, mask: (T, Q, …). owners: names of classes or users, with @90 behind the name
    of one that was turned; empty where rows have no names. names: the same without it. classes: int32 (T, W),
    which owner a label of a task stands for, -1 for none. row: int32 (T, Q), the number of each query within
    its owner, or, where the data have files, which of `items`. score: the primary metric of each task.
    """

    prediction: Tensor
    y: Tensor
    mask: Tensor
    owners: list[str]
    names: list[str]
    items: list[str]
    classes: Tensor
    row: Tensor
    score: list[float]

    @staticmethod
    def of(evaluation: Evaluation, source: Source, spec: EvalSpec) -> Answers:
        """spec: as `metalearn.engine.evaluate.limited` left it."""
        rows, primary = evaluation.rows, source.spec(spec.split).objective.primary
        prediction, y, mask = rows["prediction"], rows["y"], rows["mask"]
        count, queries = mask.shape
        row = torch.arange(queries, dtype=torch.int32).expand(count, queries).clone()
        owners: dict[tuple[str, int], int] = {}
        items: dict[str, int] = {}
        classes = torch.full((count, prediction.shape[-1]), -1, dtype=torch.int32)
        is_class = not y.is_floating_point()
        for first, tasks in named_blocks(source, spec, count):
            for number, task in enumerate(tasks, first):
                numbers = [
                    entry.item if isinstance(entry.item, int) else items.setdefault(entry.item, len(items))
                    for entry in task.query
                ]
                row[number, : len(numbers)] = torch.tensor(numbers, dtype=torch.int32)
                for entry in task.support if is_class else task.support[:1]:
                    label = int(entry.label or 0) if is_class else 0
                    owner = entry.owner, entry.turned
                    classes[number, label] = owners.setdefault(owner, len(owners))
        shown = [f"{name}@{turned}" if turned else name for name, turned in owners]
        names, scores = [name for name, _ in owners], evaluation.columns[primary]
        return Answers(prediction, y, mask, shown, names, list(items), classes, row, scores)

    @property
    def is_class(self) -> bool:
        return not self.y.is_floating_point()

    def tensors(self) -> dict[str, Tensor]:
        """Of the real queries: task, row int32 (R,); label and predicted int64 (R,), probability float16
        (R, W), whose rounding may tie; or target and prediction float32 (R, D); classes as above, where there
        are names.
        """
        real = self.mask
        task = torch.arange(len(real), dtype=torch.int32)[:, None].expand_as(real)
        found = {"task": task[real], "row": self.row[real]}
        if self.is_class:
            probability = self.prediction[real].float().softmax(-1).half()
            predicted = self.prediction[real].argmax(-1)
            found |= {"label": self.y[real], "predicted": predicted, "probability": probability}
        else:
            found |= {"target": self.y[real].float(), "prediction": self.prediction[real].float()}
        named = {"classes": self.classes} if self.owners else {}
        return {name: values.contiguous() for name, values in (found | named).items()}


def named_blocks(source: Source, spec: EvalSpec, count: int) -> Iterator[tuple[int, list[NamedTask]]]:
    """The first `count` tasks of an evaluation by name, a few at a time, with the number of the first;
    nothing where rows have no names.
    """
    for start in range(0, count, AT_ONCE):
        first, stop = start, min(start + AT_ONCE, count)
        while first < stop:
            index, within = divmod(first, spec.episodes)
            size = min(stop - first, spec.episodes - within)
            named = source.named(spec.split, seed=spec.seed + index, first=within, count=size)
            if named is None:
                return
            yield first, named
            first += size


def breakdown(answers: Answers, groups: tuple[str, Mapping[str, str]] | None) -> dict[str, list[Any]]:
    """Columns kind, name, tasks, queries, mean, ci95: the primary metric of each class (of classifications)
    and of each group of the source, over the tasks that held any of it. Empty without names.

    Of a class the score of a task is the share of its queries of that class that were answered right.
    """
    if not answers.owners:
        return {}
    right = (answers.prediction.argmax(-1) == answers.y).tolist() if answers.is_class else None
    parts: dict[tuple[str, str], list[tuple[float, int]]] = {}
    for task, labels in enumerate(answers.classes.tolist()):
        members: dict[tuple[str, str], list[float]] = {}
        for owner, scores in _scores(answers, task, labels, right):
            name = answers.names[owner]
            if right is not None:
                members.setdefault(("class", name), []).extend(scores)
            if groups is not None and name in groups[1]:
                members.setdefault((groups[0], groups[1][name]), []).extend(scores)
        for key, scores in members.items():
            if scores:
                parts.setdefault(key, []).append((sum(scores) / len(scores), len(scores)))
    rows = [
        [*key, len(found), sum(size for _, size in found), *_interval([score for score, _ in found])]
        for key, found in sorted(parts.items())
    ]
    names = ("kind", "name", "tasks", "queries", "mean", "ci95")
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


def _scores(
    answers: Answers, task: int, labels: list[int], right: list[list[bool]] | None
) -> list[tuple[int, list[float]]]:
    """Each owner of a task with the scores of its queries: of users that of the whole task."""
    if right is None:
        return [(labels[0], [answers.score[task]])] if labels[0] >= 0 else []
    mask, y = answers.mask[task].tolist(), answers.y[task].tolist()
    by_label: dict[int, list[float]] = {}
    for real, label, correct in zip(mask, y, right[task], strict=True):
        if real:
            by_label.setdefault(label, []).append(float(correct))
    return [(labels[label], scores) for label, scores in by_label.items() if labels[label] >= 0]


def _interval(scores: list[float]) -> tuple[float, float | None]:
    """Mean and half-width over tasks; None for a single task, which gives no interval."""
    if len(scores) < 2:
        return scores[0], None
    found = summarise(scores)
    return found["mean"], found["ci95"]
