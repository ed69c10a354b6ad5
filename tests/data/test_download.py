"""Against a server on the loopback, which stands in for the network; nothing here leaves the machine."""

from __future__ import annotations

import hashlib
import http.server
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metalearn.data import download as module
from metalearn.data.download import download, open_https
from metalearn.errors import DataError

CONTENT = bytes(range(256)) * 1000
MD5 = hashlib.md5(CONTENT).hexdigest()
LIMITS = module.SILENCE_S, module.STALL_S, module.PAUSE_S  # before the tests shorten them
HELP = "Fetch it by hand; data=glyphs needs nothing."


class Handler(http.server.BaseHTTPRequestHandler):
    """/good, /cut (half of the promised bytes), /wrong, /missing, /stall, /flaky (fails once)."""

    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if self.path == "/missing" or (self.path == "/flaky" and len(self.requests) == 1):
            self.send_error(404 if self.path == "/missing" else 503)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        if self.path == "/stall":
            self.wfile.write(CONTENT[:10])
            time.sleep(1.5)
            return
        self.wfile.write({"/cut": CONTENT[: len(CONTENT) // 2], "/wrong": CONTENT[::-1]}.get(self.path, CONTENT))

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Handler.requests = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 0.01)
    monkeypatch.setattr(module, "STALL_S", 0.5)


def plain(url: str) -> Any:
    return urllib.request.urlopen(url, timeout=5)


def test_a_good_file_arrives_whole_and_alone(server: str, tmp_path: Path) -> None:
    download(f"{server}/good", tmp_path / "new" / "data.zip", md5=MD5, help_text=HELP, open_url=plain)
    assert (tmp_path / "new" / "data.zip").read_bytes() == CONTENT
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_a_failure_is_tried_again(server: str, tmp_path: Path) -> None:
    download(f"{server}/flaky", tmp_path / "data.zip", md5=MD5, help_text=HELP, open_url=plain)
    assert Handler.requests == ["/flaky", "/flaky"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/cut", "the connection broke after 128000 of 256000 bytes"),
        ("/wrong", "the file has md5 .*, expected .*, and was deleted"),
        ("/missing", "HTTP Error 404"),
        ("/stall", "no data for"),
    ],
)
def test_a_bad_file_is_never_left_behind(server: str, tmp_path: Path, path: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        download(server + path, tmp_path / "data.zip", md5=MD5, help_text=HELP, open_url=plain)
    assert str(caught.value).endswith(HELP)
    time.sleep(0.1 if path != "/stall" else 1.5)
    assert list(tmp_path.iterdir()) == []


def test_an_older_bad_file_is_replaced(server: str, tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(b"half")
    download(f"{server}/good", tmp_path / "data.zip", md5=MD5, help_text=HELP, open_url=plain)
    assert (tmp_path / "data.zip").read_bytes() == CONTENT


def test_a_name_look_up_that_hangs_is_left_behind_in_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "SILENCE_S", 1.0)
    monkeypatch.setattr(module, "STALL_S", 30.0)

    def hanging(url: str) -> Any:
        time.sleep(4)
        raise OSError("too late")

    start = time.monotonic()
    with pytest.raises(DataError, match="no data for 1 s after 0 bytes"):
        download("https://example.invalid/x", tmp_path / "x", md5=MD5, help_text=HELP, open_url=hanging)
    assert time.monotonic() - start < 3


def test_the_limits_add_up_to_less_than_thirty_seconds() -> None:
    silence, stall, pause = LIMITS
    pauses = pause * sum(range(module.ATTEMPTS))
    assert silence + pauses < 30
    assert stall * module.ATTEMPTS + pauses < 30


def test_other_schemes_are_refused(tmp_path: Path) -> None:
    for url in ("http://example.invalid/x", "file:///etc/hostname", "ftp://example.invalid/x"):
        with pytest.raises(DataError, match="is not https; nothing was downloaded"):
            open_https(url)
    assert list(tmp_path.iterdir()) == []


def test_a_redirect_away_from_https_is_refused() -> None:
    handler = module._HttpsOnly()
    request = urllib.request.Request("https://example.invalid/a")
    with pytest.raises(DataError, match="http://example.invalid/b is not https"):
        handler.redirect_request(request, None, 302, "Found", {}, "http://example.invalid/b")
