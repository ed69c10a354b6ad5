"""Downloads that end soon and leave either the right file or nothing.

https only, redirects included. Bytes go to a file of their own that ends in `.part`; only when its md5 is
right is it renamed. Without a network, `download` gives up within 20 seconds, name resolution included.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from http.client import HTTPException
from pathlib import Path
from typing import Any

from metalearn.errors import ConfigError, DataError

log = logging.getLogger(__name__)

ATTEMPTS = 3
PAUSE_S = 1.0  # before the second attempt, twice that before the third
STALL_S = 8.0  # without a new byte, an attempt is given up
SILENCE_S = 20.0  # without any byte at all, the download is given up, whatever attempts are left
MAX_BYTES = 200 << 20
CHUNK = 1 << 16
Opener = Callable[[str], AbstractContextManager[Any]]


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> urllib.request.Request | None:
        _require_https(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def open_https(url: str) -> AbstractContextManager[Any]:
    """The response to a GET. Raises DataError for any address, redirects included, that is not https."""
    _require_https(url)
    opener = urllib.request.build_opener(_HttpsOnly)
    response: AbstractContextManager[Any] = opener.open(urllib.request.Request(url, headers={"User-Agent": "metalearn"}), timeout=STALL_S)
    return response


def download(url: str, target: Path, *, md5: str, help_text: str, open_url: Opener = open_https) -> None:
    """Fetch url into target. Raises DataError, with the reasons and help_text, when that fails; target is then as it was."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{target.parent} cannot be written ({error}); choose another folder with data.cache_dir=PATH") from error
    deadline = time.monotonic() + SILENCE_S
    reasons: list[str] = []
    for attempt in range(1, ATTEMPTS + 1):
        log.info("downloading %s", url)
        fetching = _Fetch(url, target, open_url)
        reason = fetching.wait(deadline) or _wrong(fetching.part, md5)
        if reason is None:
            os.replace(fetching.part, target)
            return
        fetching.part.unlink(missing_ok=True)
        log.warning("attempt %d of %d: %s", attempt, ATTEMPTS, reason)
        reasons.append(reason)
        if attempt < ATTEMPTS:
            time.sleep(PAUSE_S * attempt)
        if time.monotonic() >= deadline and not fetching.received:
            break
    raise DataError(f"{url}: {'; '.join(dict.fromkeys(reasons))}.\n{help_text}")


class _Fetch:
    """One attempt in a thread of its own, since a name look-up cannot be interrupted but can be left behind."""

    def __init__(self, url: str, target: Path, open_url: Opener) -> None:
        self.part = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.part")
        self.url, self.open_url = url, open_url
        self.received = 0
        self.error: str | None = None
        self.given_up = False
        self.thread = threading.Thread(target=self._run, daemon=True)

    def wait(self, deadline: float) -> str | None:
        """Why it failed, or None. deadline: for the first byte, in monotonic seconds."""
        self.thread.start()
        seen, since = 0, time.monotonic()
        while self.thread.is_alive():
            self.thread.join(0.1)
            now = time.monotonic()
            if self.received > seen:
                seen, since = self.received, now
            if now - since > STALL_S or (not seen and now > deadline):
                self.given_up = True
                return f"no data for {now - since:.0f} s after {seen} bytes"
        return self.error

    def _run(self) -> None:
        try:
            with self.open_url(self.url) as response, open(self.part, "wb") as file:
                expected = int(response.headers.get("Content-Length") or 0)
                while (chunk := response.read(CHUNK)) and not self.given_up:
                    file.write(chunk)
                    self.received += len(chunk)
                    if self.received > MAX_BYTES:
                        raise DataError(f"more than {MAX_BYTES} bytes")
            if expected and self.received < expected:
                self.error = f"the connection broke after {self.received} of {expected} bytes"
        except (OSError, HTTPException, ValueError, DataError) as error:  # told by `wait`, in the thread that asked
            self.error = str(error) or type(error).__name__
        if self.given_up:
            self.part.unlink(missing_ok=True)


def _wrong(path: Path, md5: str) -> str | None:
    found = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    return None if found == md5 else f"the file has md5 {found}, expected {md5}, and was deleted"


def _require_https(url: str) -> None:
    if urllib.parse.urlsplit(url).scheme != "https":
        raise DataError(f"{url} is not https; nothing was downloaded")
