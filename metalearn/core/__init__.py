"""The words of the house: examples, tasks, objectives, algorithms and the sources that tasks come from.

Everything else leans on these types and imports them from here; nothing here imports anything else of ours.
"""

from metalearn.core.algorithm import Algorithm, Metrics, Parameters, Plan, is_transformed, starting_with
from metalearn.core.dials import one_of
from metalearn.core.source import DRAWN_WITHOUT_END, Location, Member, Members, NamedTask, Row, Source
from metalearn.core.tasks import (
    SPLITS,
    Batch,
    Draw,
    Examples,
    Inputs,
    InputSpec,
    Kind,
    MetricFormat,
    Objective,
    PooledObjective,
    Split,
    Task,
    TaskBatch,
    TaskSpec,
    blank_query,
    class_rows,
)
from metalearn.core.trees import leaves_of, map_leaves, rebuilt

__all__ = [
    "DRAWN_WITHOUT_END",
    "SPLITS",
    "Algorithm",
    "Batch",
    "Draw",
    "Examples",
    "InputSpec",
    "Inputs",
    "Kind",
    "Location",
    "Member",
    "Members",
    "MetricFormat",
    "Metrics",
    "NamedTask",
    "Objective",
    "Parameters",
    "Plan",
    "PooledObjective",
    "Row",
    "Source",
    "Split",
    "Task",
    "TaskBatch",
    "TaskSpec",
    "blank_query",
    "class_rows",
    "is_transformed",
    "leaves_of",
    "map_leaves",
    "one_of",
    "rebuilt",
    "starting_with",
]
