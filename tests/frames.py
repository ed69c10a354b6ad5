"""How far it is from the command line to the method, and how tangled the package is.

Prints the frames and changes of file on the stack when `metalearn train` and `metalearn eval` first call a
method, and the rooms (files and folders directly under metalearn/) with the imports between them:

    python -m tests.frames [-v]
"""

from __future__ import annotations

import ast
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import metalearn
from metalearn.algorithms.maml import MAML
from metalearn.cli import main as cli

PACKAGE = Path(metalearn.__file__).parent
TRAIN = (
    *("algo=maml", "data=sinusoid", "device=cpu", "device.plan=loop", "trainer.outer_steps=1"),
    *("trainer.meta_batch_size=2", "eval.val_episodes=2", "eval.episodes=2"),
)

Stack = list[tuple[str, str]]  # file and function, the command line first


def stack(frame: FrameType | None) -> Stack:
    """From the call of `main` to the frame that is given."""
    places: Stack = []
    while frame is not None:
        code = frame.f_code
        places.append((code.co_filename, code.co_name))
        if code is cli.main.__code__:
            return places[::-1]
        frame = frame.f_back
    raise AssertionError("the method was not called by the command line")


def changes_of_file(places: Stack) -> int:
    return sum(here[0] != there[0] for here, there in zip(places, places[1:], strict=False))


def first_call(
    method: str, command: Sequence[str], counts: Callable[[Stack], bool] = lambda _: True
) -> Stack:
    """The stack at the first call of a method of MAML, of those that count, in a command that succeeds."""
    original: Any = getattr(MAML, method)
    found: list[Stack] = []

    def seen(self: MAML, *args: Any, **kwargs: Any) -> Any:
        if not found and counts(places := stack(sys._getframe(1))):
            found.append(places)
        return original(self, *args, **kwargs)

    with mock.patch.object(MAML, method, seen):
        assert cli.main(list(command)) == 0
    return found[0]


def is_step(places: Stack) -> bool:
    return any(name == "train_step" for _, name in places)


def stacks() -> dict[str, Stack]:
    """rehearsal: the first call of `task_loss` in `metalearn train`, which is on a copy. step: that of the
    first outer step. eval: the first of `adapt_path` in `metalearn eval`, which has no `task_loss`.
    """
    with tempfile.TemporaryDirectory() as place:
        words = [f"run_dir={place}/{{}}", *TRAIN]
        return {
            "rehearsal": first_call("task_loss", ["train", words[0].format("one"), *words[1:]]),
            "step": first_call("task_loss", ["train", words[0].format("two"), *words[1:]], is_step),
            "eval": first_call("adapt_path", ["eval", f"{place}/one", "eval.episodes=2", "eval.seed=5"]),
        }


def rooms(root: Path = PACKAGE) -> dict[str, set[str]]:
    """Every room with the other rooms that anything in it imports, whenever it does so."""
    found: dict[str, set[str]] = {}
    for path in sorted(root.rglob("*.py")):
        room = path.relative_to(root).parts[0].removesuffix(".py")
        imports = found.setdefault(room, set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            parts = [name.split(".") for name in names]
            imports |= {part[1] for part in parts if part[0] == "metalearn" and len(part) > 1}
    names_of_rooms = set(found)
    return {room: (imports & names_of_rooms) - {room} for room, imports in found.items()}


def report(*, verbose: bool) -> str:
    lines = []
    for name, places in stacks().items():
        lines.append(f"{name}: {len(places)} frames, {changes_of_file(places)} changes of file")
        lines += [f"    {Path(file).name}:{function}" for file, function in places if verbose]
    graph = rooms()
    lines.append(f"{len(graph)} rooms, {sum(map(len, graph.values()))} imports between them")
    lines += [f"    {room} -> {' '.join(sorted(graph[room]))}" for room in sorted(graph) if verbose]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(f"{report(verbose='-v' in sys.argv[1:])}\n")
