"""Against a server on the loopback, which stands in for the network; nothing here leaves the machine.

What has to do with https itself is in tests/security/test_downloads.py.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.server
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from metalearn.data.files import download as module
from metalearn.data.files.download import download
from metalearn.errors import ConfigError, DataError

CONTENT = bytes(range(256)) * 1000
HALF = len(CONTENT) // 2
CHECKSUM = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
LIMITS = module.SILENCE_S, module.STALL_S, module.PAUSE_S  # before the tests shorten them
HELP = "Fetch it by hand; data=glyphs needs nothing."


class Handler(http.server.BaseHTTPRequestHandler):
    """What the path says happens: the file, half of it, another file, an error, silence, drops …"""

    requests: list[tuple[str, str | None]]  # path and Range of each

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.requests.append((self.path, asked))
        start = (
            int(asked.removeprefix("bytes=").removesuffix("-"))
            if asked and self.path not in ("/deaf", "/cut-deaf")
            else 0
        )
        first = len(self.requests) == 1
        if self.path == "/missing" or (self.path == "/flaky" and first):
            self.send_error(404 if self.path == "/missing" else 503)
        elif start >= len(CONTENT):
            self.send_error(416)
        elif self.path in ("/stall", "/drip"):
            self.answer(start, b"")
            self.trickle()
        elif self.path == "/huge":
            self.answer(start, b"", length=1 << 40)
        elif self.path == "/endless":
            self.answer(start, CONTENT * 2, length=0)
        elif self.path == "/elsewhere" and start:
            self.answer(start + 1, CONTENT[start + 1 :])
        elif self.path.startswith("/cut") and (first or self.path == "/cut"):
            self.answer(start, CONTENT[start : (start + len(CONTENT)) // 2])
        else:
            self.answer(start, (CONTENT[::-1] if self.path == "/wrong" else CONTENT)[start:])

    def answer(self, start: int, content: bytes, length: int | None = None) -> None:
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        length = len(CONTENT) - start if length is None else length
        if length:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)

    def trickle(self) -> None:
        self.wfile.write(CONTENT[:10])
        for _ in range(15):
            time.sleep(0.1)
            if self.path == "/drip":
                self.wfile.write(b"x")

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Quiet(http.server.ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is what these tests are about."""


@pytest.fixture
def server() -> Iterator[str]:
    Handler.requests = []
    with Quiet(("127.0.0.1", 0), Handler) as served:
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{served.server_port}"
        finally:
            served.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 0.01)
    monkeypatch.setattr(module, "STALL_S", 0.5)


@pytest.fixture
def fetch(server: str, tmp_path: Path) -> Callable[[str], None]:
    """Downloads a path of the server to data.zip."""

    def plain(url: str, start: int) -> Any:
        return urllib.request.urlopen(
            urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {}), timeout=5
        )

    return lambda path: download(
        server + path, tmp_path / "new" / "data.zip", checksum=CHECKSUM, help_text=HELP, open_url=plain
    )


def files(tmp_path: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}


def part(tmp_path: Path, content: bytes) -> Path:
    """What an earlier download left behind."""
    path = tmp_path / "new" / "data.zip.part"
    path.parent.mkdir()
    path.write_bytes(content)
    return path


def test_a_good_file_arrives_whole_and_alone(fetch: Callable[[str], None], tmp_path: Path) -> None:
    fetch("/good")
    assert files(tmp_path) == {"data.zip": CONTENT}


def test_a_failure_is_tried_again(fetch: Callable[[str], None]) -> None:
    fetch("/flaky")
    assert Handler.requests == [("/flaky", None), ("/flaky", None)]


def test_a_download_that_was_cut_goes_on_where_it_stopped(
    fetch: Callable[[str], None], tmp_path: Path
) -> None:
    fetch("/cut-once")
    assert Handler.requests == [("/cut-once", None), ("/cut-once", f"bytes={HALF}-")]
    assert files(tmp_path) == {"data.zip": CONTENT}


def test_the_next_command_goes_on_where_the_last_one_stopped(
    fetch: Callable[[str], None], tmp_path: Path
) -> None:
    with pytest.raises(
        DataError,
        match=r"the connection broke after 128000 of 256000 bytes.* 224000 bytes are kept, and the same "
        r"command",
    ):
        fetch("/cut")
    assert files(tmp_path) == {"data.zip.part": CONTENT[:224000]}
    fetch("/good")
    assert Handler.requests[-1] == ("/good", "bytes=224000-")
    assert files(tmp_path) == {"data.zip": CONTENT}


def test_a_server_that_ignores_the_range_is_read_from_the_start(
    fetch: Callable[[str], None], tmp_path: Path
) -> None:
    fetch("/cut-deaf")
    assert Handler.requests == [("/cut-deaf", None), ("/cut-deaf", f"bytes={HALF}-")]
    assert files(tmp_path) == {"data.zip": CONTENT}


@pytest.mark.parametrize(
    "old", [CONTENT[:HALF][::-1], CONTENT * 2, b"x" * len(CONTENT)], ids=["changed", "longer", "as long"]
)
def test_a_beginning_that_belongs_to_another_file_is_dropped(
    fetch: Callable[[str], None], tmp_path: Path, old: bytes
) -> None:
    part(tmp_path, old)
    fetch("/good")
    assert files(tmp_path) == {"data.zip": CONTENT}


def test_a_whole_part_is_renamed_without_asking_anyone(fetch: Callable[[str], None], tmp_path: Path) -> None:
    part(tmp_path, CONTENT)
    fetch("/missing")
    assert Handler.requests == []
    assert files(tmp_path) == {"data.zip": CONTENT}


def test_an_answer_that_continues_elsewhere_is_refused(fetch: Callable[[str], None], tmp_path: Path) -> None:
    part(tmp_path, CONTENT[:HALF])
    with pytest.raises(
        DataError, match=f"asked for the bytes from {HALF} on, the server sent bytes {HALF + 1}-"
    ):
        fetch("/elsewhere")
    assert files(tmp_path) == {"data.zip.part": CONTENT[:HALF]}


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/wrong", "the file has sha256 .*, expected .*, and was deleted"),
        ("/missing", "HTTP Error 404"),
        ("/huge", r"1099511627776 bytes are offered, and at most \d+ are taken"),
        ("/endless", "more than 300000 bytes"),
    ],
)
def test_a_bad_file_is_never_left_behind(
    fetch: Callable[[str], None], tmp_path: Path, path: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 300_000)
    with pytest.raises(DataError, match=reason) as caught:
        fetch(path)
    assert str(caught.value).endswith(HELP)
    assert "are kept" not in str(caught.value)
    assert files(tmp_path) == {}


def test_silence_is_given_up_and_what_came_is_kept(fetch: Callable[[str], None], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data for 1 s after 10 bytes"):
        fetch("/stall")
    assert files(tmp_path)["data.zip.part"][:10] == CONTENT[:10]


def test_a_server_that_drips_is_given_up(
    fetch: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE_S", 0.4)
    with pytest.raises(DataError, match=r"bytes in 0 s, which is too slow"):
        fetch("/drip")


def test_a_thread_that_was_left_behind_writes_nothing_more(
    fetch: Callable[[str], None], tmp_path: Path
) -> None:
    with pytest.raises(DataError):
        fetch("/stall")
    before = files(tmp_path)
    time.sleep(1.5)  # by now the server has sent the end of its answers
    assert files(tmp_path) == before


def test_an_older_bad_file_is_replaced(fetch: Callable[[str], None], tmp_path: Path) -> None:
    part(tmp_path, b"").with_suffix("").write_bytes(b"half")
    fetch("/good")
    assert files(tmp_path) == {"data.zip": CONTENT}


def test_two_downloads_at_once_do_not_share_a_part(fetch: Callable[[str], None], tmp_path: Path) -> None:
    with part(tmp_path, b"other's").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        fetch("/good")
        assert files(tmp_path) == {"data.zip": CONTENT, "data.zip.part": b"other's"}


def test_a_folder_that_cannot_be_written_is_exit_2(fetch: Callable[[str], None], tmp_path: Path) -> None:
    (tmp_path / "new").write_text("a file")
    with pytest.raises(
        ConfigError, match=r"new cannot be written .* choose another folder with data.cache_dir=PATH"
    ):
        fetch("/good")


def test_a_name_look_up_that_hangs_is_left_behind_in_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "SILENCE_S", 1.0)
    monkeypatch.setattr(module, "STALL_S", 30.0)

    def hanging(url: str, start: int) -> Any:
        time.sleep(4)
        raise OSError("too late")

    start = time.monotonic()
    with pytest.raises(DataError, match="no data for 1 s after 0 bytes"):
        download(
            "https://example.invalid/x", tmp_path / "x", checksum=CHECKSUM, help_text=HELP, open_url=hanging
        )
    assert time.monotonic() - start < 3
    assert list(tmp_path.iterdir()) == []


def test_the_limits_add_up_to_less_than_thirty_seconds() -> None:
    silence, stall, pause = LIMITS
    pauses = pause * sum(range(module.ATTEMPTS))
    assert silence + pauses < 30
    assert stall * module.ATTEMPTS + pauses < 30
