"""What the property tests share: how many cases, how bytes are damaged, what may come of a case, and a watch
over the whole process.

METALEARN_FUZZ=10 multiplies the cases by ten and draws new ones each time; by default the same ones are
drawn, so that a red test stays red.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from metalearn.errors import MetalearnError

FACTOR = float(os.environ.get("METALEARN_FUZZ", "1"))
SECONDS = 60  # after which a case hangs, on a machine that is busy with other things too
RUNS_CODE = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "pty.spawn",
    "socket.connect",
    "ctypes.dlopen",
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES_FILES = (
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "os.truncate",
    "os.chmod",
    "shutil.rmtree",
)


def cases(count: int) -> settings:
    """Settings of a property test with so many cases."""
    return settings(
        max_examples=max(1, round(count * FACTOR)),
        deadline=None,
        derandomize=FACTOR == 1,
        database=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )


def mutations(content: bytes) -> st.SearchStrategy[bytes]:
    """The content with a few bytes changed, taken out, put in, repeated or cut off."""
    place = st.integers(0, max(len(content) - 1, 0))
    change = st.one_of(
        st.tuples(st.just("set"), place, st.binary(min_size=1, max_size=4)),
        st.tuples(st.just("insert"), place, st.binary(min_size=1, max_size=8)),
        st.tuples(st.just("cut"), place, st.integers(1, 40)),
        st.tuples(st.just("repeat"), place, st.integers(1, 200)),
        st.tuples(st.just("end"), place, st.just(0)),
    )
    return st.lists(change, min_size=1, max_size=4).map(lambda changes: changed(content, changes))


def changed(content: bytes, changes: list[tuple[str, int, Any]]) -> bytes:
    for kind, place, what in changes:
        if kind == "set":
            content = content[:place] + what + content[place + len(what) :]
        elif kind == "insert":
            content = content[:place] + what + content[place:]
        elif kind == "cut":
            content = content[:place] + content[place + what :]
        elif kind == "repeat":
            content = content[:place] + content[place : place + what] * 2 + content[place + what :]
        else:
            content = content[:place]
    return content


def answered(function: Callable[[], Any]) -> Any:
    """What a function returns, or the error that a person would read. Any other exception is a mistake of
    ours.
    """
    with in_time():
        try:
            return function()
        except MetalearnError as error:
            assert str(error).strip(), "an error without a word"
            return error


@contextmanager
def in_time() -> Iterator[None]:
    """TimeoutError for what would never end. It takes the place of pytest's own alarm, which counts all cases
    together.
    """

    def late(*_: Any) -> None:
        raise TimeoutError(f"not finished after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Watch:
    """Notes whatever this process writes outside some folders, and every program or connection that it
    starts.
    """

    def __init__(self) -> None:
        self.inside: tuple[str, ...] | None = None
        self.seen: list[str] = []
        sys.addaudithook(self.hear)  # it cannot be taken out again, only told to be silent

    @contextmanager
    def over(self, *folders: Path) -> Iterator[list[str]]:
        self.inside, self.seen = (*(f"{folder}{os.sep}" for folder in folders), "/dev/null"), []
        try:
            yield self.seen
        finally:
            self.inside = None

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.inside is None:
            return
        if event in RUNS_CODE and not is_ours(event, arguments):
            self.seen.append(f"{event} {arguments}")
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
            self.note(event, arguments[0])
        elif event in CHANGES_FILES:
            for path in arguments[: 2 if event in ("os.rename", "os.link", "os.symlink") else 1]:
                self.note(event, path, within=arguments[-1])

    def note(self, event: str, path: Any, within: Any = None) -> None:
        """within: the open folder that a relative path starts from; the folder itself was noted when it was
        changed.
        """
        if self.inside is None or not isinstance(path, (str, bytes, os.PathLike)):
            return
        if not os.path.isabs(path) and isinstance(within, int) and within >= 0:
            return
        place = os.path.abspath(os.fsdecode(path))
        # a file without a name, which is gone when it is closed
        nameless = event == "open" and os.path.isdir(place)
        if not nameless and not f"{place}{os.sep}".startswith(self.inside) and "__pycache__" not in place:
            self.seen.append(f"{event} {place}")


def is_ours(event: str, arguments: tuple[Any, ...]) -> bool:
    """What a run itself starts to note its surroundings (git, uname), and the C library, to set its
    allocator.
    """
    return (event == "subprocess.Popen" and arguments[0] in ("git", "uname")) or (
        event == "ctypes.dlopen" and arguments[0] is None
    )
