"""Standard streams that are closed, full, or without the letters that we print."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """command: what follows `metalearn` in a shell, redirections included."""
    return subprocess.run(
        ["sh", "-c", f"{sys.executable} -m metalearn {command}"],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=120,
        check=False,
    )


def test_a_closed_output_is_no_error() -> None:
    done = shell("ls device >&-")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_closed_error_stream_keeps_the_exit_code() -> None:
    assert shell("train algo=x 2>&-").returncode == 2


def test_letters_that_the_terminal_lacks_are_replaced() -> None:
    done = shell("--help", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: metalearn VERB ?")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_sentence() -> None:
    done = shell("ls device >/dev/full")
    sentence = (
        "error: standard output cannot be written: No space left on device; send it to another file "
        "or device\n"
    )
    assert (done.returncode, done.stderr) == (1, sentence)
    assert shell("train algo=x 2>/dev/full").returncode == 2
