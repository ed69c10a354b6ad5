"""Where tasks come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from metalearn.core.tasks import Examples, Split, TaskBatch, TaskSpec

DRAWN_WITHOUT_END: Literal["drawn without end"] = "drawn without end"


class Member(NamedTuple):
    """A class, user or group that tasks are made from.

    source: the data that it is of, as in `data=NAME`. name: within that, whatever is done to its inputs.
    sha256: over what it is made of, before anything is done to it; None where nothing lies on a disk.
    """

    source: str
    name: str
    sha256: str | None = None


Members = Sequence[Member] | Literal["drawn without end"] | None


class Row(NamedTuple):
    """A row of a task by its name. owner: its class or user. item: which of the owner's: a file's name or a
    number, as the raw data have it.

    label: the answer, None where a file leaves it out. turned: degrees by which a picture was turned,
    counterclockwise.
    """

    owner: str
    item: str | int
    label: int | float | None = None
    turned: int = 0


class NamedTask(NamedTuple):
    """The rows of a task by their names, in its order. name: what a file calls the task."""

    support: list[Row]
    query: list[Row]
    name: str = ""


class Location(NamedTuple):
    """A key of a source's YAML that says where something lies, not what it is.

    key: its value is a path, or null. words: values of it that are no path.
    made: what is not there is made anew, as a cache is.
    """

    key: str
    words: tuple[str, ...] = ()
    made: bool = False

    def holds(self, value: Any) -> bool:
        """Whether this value of the key is a path, or null."""
        return value is None or (isinstance(value, str) and value not in self.words)


class Source(ABC):
    """Where tasks come from. Holds its data as tensors on one device and draws without any state.

    name: as in `data=NAME`. locations: a run goes on from other places as long as `fingerprint` is equal.
    owner_word, item_word: what a file of tasks calls the two parts of a row's name.
    training_facts: those of `protocol` that say how training tasks are made, not those that are judged.
    """

    name: str
    locations: tuple[Location, ...] = ()
    owner_word: str = "class"
    item_word: str = "row"
    training_facts: tuple[str, ...] = ()

    def prepare(self) -> None:  # noqa: B027 - a source that computes its tasks has nothing to fetch
        """Fetch, verify and cache the data now rather than on first use."""

    @classmethod
    def audit(cls, root: str | None = None, cache_dir: str | None = None) -> str | None:
        """What lies on this machine of published data, held against their sha256; nothing is fetched.

        root, cache_dir: where to look, as the keys of these names; None: the usual places.
        None: nothing of it was published. FileNotFoundError: none of it is here. DataError: it is incomplete,
        or not what was published.
        """
        return None

    def check(self, splits: Sequence[Split]) -> None:  # noqa: B027 - a source that draws without end has enough of everything
        """Raise ConfigError if the data cannot give the tasks of these splits: all of them before training,
        one before it is judged.
        """

    @abstractmethod
    def spec(self, split: Split) -> TaskSpec:
        """What the tasks of this split look like. No `check` of any split: judging one must not fail for want
        of another.
        """

    @abstractmethod
    def tasks(self, split: Split, *, seed: int, first: int, count: int) -> TaskBatch:
        """Tasks number first … first+count-1 of (seed, split): a pure function of these, on the device."""

    def examples(self, *, seed: int, first: int, count: int) -> Examples:
        """Rows first … first+count-1 of an endless stream of shuffled epochs over the train split.

        y: class numbers 0 … num_train_classes-1, int64 (count,).
        """
        raise ValueError(
            f"data={self.name} has no labelled classes to draw flat minibatches from; choose an algorithm "
            "that learns from tasks"
        )

    def named(self, split: Split, *, seed: int, first: int, count: int) -> list[NamedTask] | None:
        """The tasks of `tasks` by the names of their rows, whatever is done to inputs; None: rows have no
        names, and a task is its numbers.
        """
        return None

    def recognised(self, row: Row, beside: Path) -> Row:
        """A row of a file as this data names it. beside: the folder of the file. DataError if it is not
        here.
        """
        return row

    def gathered(self, parts: Sequence[Sequence[Row]]) -> Examples:
        """The rows of the same part of several tasks, (T, n, …), padded. Only for rows that were
        recognised.
        """
        raise ValueError(f"data={self.name} does not name its rows, so that no file can list its tasks")

    def groups(self) -> tuple[str, Mapping[str, str]] | None:
        """What a group is called, and the group of each owner, such as the alphabet of a character; None:
        there are none.
        """
        return None

    def content_sha256(self) -> str:
        """Over the raw data, before anything is done to inputs and however they are divided."""
        return self.fingerprint()

    def num_tasks(self, split: Split) -> int | None:
        """How many different tasks the split holds (users, say); None when they are drawn without end."""
        return None

    def members(self, split: Split) -> Members:
        """Who is in the split, so that nobody is judged on what was trained on, whatever other data an
        evaluation takes.

        DRAWN_WITHOUT_END where no two tasks share anything. None: the source does not say, and a run on it
        can only be judged on data of the same fingerprint.
        """
        return None

    @abstractmethod
    def protocol(self, split: Split) -> dict[str, Any]:
        """Facts that a result must state: way, shot, query_shot, partition, augmentation, … JSON values."""

    @abstractmethod
    def fingerprint(self) -> str:
        """sha256 over the data that tasks are drawn from, their division into splits, and what lies at its
        `locations`.
        """

    def preprocessing(self) -> dict[str, Any]:
        """What was done to inputs, to be done to a person's own: JSON values. Empty: they come as the model
        takes them.

        Of images: resize (nearest, area or lanczos) and invert (bool). Size and channels are those of the
        specification.
        """
        return {}
