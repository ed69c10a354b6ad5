"""How things end on a terminal: one clean line per problem, and no noise when the reader of a pipe has
left.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from metalearn.errors import MetalearnError

# Characters that steer a terminal or turn the direction of a text; a name in a stranger's file may hold them.
STEERING = [*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
HARMLESS = {code: "?" for code in STEERING if chr(code) not in "\n\r\t"}


def complain(error: MetalearnError) -> int:
    """Every problem on a line of its own; the exit code."""
    for problem in str(error).splitlines():
        say_error(f"error: {problem}")
    return error.exit_code


def complain_unexpected(error: Exception, run_dir: Path | None) -> int:
    """One line for a mistake of ours; the traceback goes into the run's log."""
    if run_dir is not None and run_dir.is_dir():
        log = run_dir / "train.log"
    else:
        handle, name = tempfile.mkstemp(prefix="metalearn-", suffix=".log")
        os.close(handle)
        log = Path(name)
    with contextlib.suppress(OSError), log.open("a", encoding="utf-8") as file:
        file.write("".join(traceback.format_exception(error)))
    reason = str(error).splitlines()[0] if str(error) else "no further reason"
    say_error(f"error: {type(error).__name__}: {reason} (details in {shlex.quote(str(log))})")
    return 1


def say_error(text: str) -> None:
    sys.stderr.write(f"{text}\n")


class PatientStream:
    """A stream whose reader may leave (`| head -1`): what it would have read is dropped, and the run goes on.

    Characters that steer a terminal become `?`. A full disk behind standard output is an error in one
    sentence; behind standard error there is nowhere to say it.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text.translate(HARMLESS))
        except OSError as error:
            self.abandon(error)
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError as error:
            self.abandon(error)

    def abandon(self, error: OSError) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
        if not isinstance(error, BrokenPipeError) and self.stream.fileno() == 1:
            raise MetalearnError(
                f"standard output cannot be written: {error.strerror}; send it to another file or device"
            ) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def patient_streams() -> Iterator[None]:
    """Standard output and error that no reader, encoding or closed descriptor can break."""
    with contextlib.ExitStack() as stack:
        for name, redirect in (
            ("stdout", contextlib.redirect_stdout),
            ("stderr", contextlib.redirect_stderr),
        ):
            raw: Any = getattr(sys, name)
            if raw is None:  # closed by the shell (`>&-`): the words go nowhere, the exit code still speaks
                raw = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            if hasattr(raw, "reconfigure"):  # a terminal without ± shows ? in its place
                raw.reconfigure(errors="replace")
            stream: Any = PatientStream(raw)
            stack.enter_context(redirect(stream))
            stack.callback(stream.flush)
        yield
