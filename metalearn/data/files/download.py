"""Downloads that end soon and leave either the right file or nothing under its name.

https only, redirects included. Bytes go to `NAME.part`, which is renamed only when its checksum is right. A
download that was
cut goes on where it stopped, at the next attempt or in the next command: the rest is asked for with Range. A
server that ignores Range, and a file that changed meanwhile, mean from the start. Without a network,
`download` gives up within 20 seconds, name resolution included.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import threading
import time
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError

from metalearn.errors import ConfigError, DataError

log = logging.getLogger(__name__)

ATTEMPTS = 3
PAUSE_S = 1.0  # before the second attempt, twice that before the third
STALL_S = 8.0  # without a new byte, an attempt is given up
SILENCE_S = 20.0  # without any byte at all, the download is given up, whatever attempts are left
GRACE_S, SLOWEST = 60.0, 1 << 10  # after so many seconds, an attempt with fewer bytes per second is given up
MAX_BYTES = 200 << 20
CHUNK = 1 << 16
CONTENT_RANGE = re.compile(r"bytes (\d+)-")
PARTIAL, NOT_SATISFIABLE = 206, 416  # HTTP's answers to a range: the rest, and that there is none
Opener = Callable[[str, int], AbstractContextManager[Any]]


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        _require_https(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def open_https(url: str, start: int = 0) -> AbstractContextManager[Any]:
    """The response to a GET from byte `start` on. Raises DataError for any address, redirects included, that
    is not https.
    """
    _require_https(url)
    headers = {"User-Agent": "metalearn", **({"Range": f"bytes={start}-"} if start else {})}
    opener = urllib.request.build_opener(_HttpsOnly)
    response: AbstractContextManager[Any] = opener.open(
        urllib.request.Request(url, headers=headers), timeout=STALL_S
    )
    return response


def download(url: str, target: Path, *, checksum: str, help_text: str, open_url: Opener = open_https) -> None:
    """Fetch url into target. checksum: `sha256:…` or `md5:…` of the right file.

    Raises DataError, with the reasons and help_text, when that fails; target is then as it was.
    """
    with _part_of(target) as part:
        reasons = _attempts(url, part, checksum, open_url)
        if not reasons:
            with part.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(part, target)
            return
        kept = part.stat().st_size
    rest = (
        f" {kept} bytes are kept, and the same command goes on from there." if kept and part.exists() else ""
    )
    raise DataError(f"{url}: {'; '.join(dict.fromkeys(reasons))}.{rest}\n{help_text}")


@contextlib.contextmanager
def _part_of(target: Path) -> Iterator[Path]:
    """A file beside target that only this process writes. It is NAME.part, which a later download continues,

    or, while another process downloads the same, one of a name of its own, which is gone afterwards.
    """
    shared = target.with_name(f"{target.name}.part")
    part = shared
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = shared.open("ab")
        if not _is_mine(file, shared):
            file.close()
            part = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.part")
            file = part.open("ab")
    except OSError as error:
        raise ConfigError(
            f"{target.parent} cannot be written ({error}); choose another folder with data.cache_dir=PATH"
        ) from error
    with file:
        try:
            yield part
        finally:
            if part.exists() and (part != shared or not part.stat().st_size):
                part.unlink()


def _is_mine(file: IO[bytes], path: Path) -> bool:
    """Whether this process now holds the lock of the file that lies at path."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:  # held by another process, or just renamed by it
        return False


def _attempts(url: str, part: Path, checksum: str, open_url: Opener) -> list[str]:
    """Why no attempt brought the right file; empty once it lies in `part`."""
    if part.stat().st_size and _wrong(part, checksum) is None:
        return []  # it was complete, but its process died before it could rename it
    deadline = time.monotonic() + SILENCE_S
    reasons: list[str] = []
    for attempt in range(1, ATTEMPTS + 1):
        log.info("downloading %s", url)
        fetching = _Fetch(url, part, open_url)
        reason = fetching.wait(deadline)
        if reason is None:
            reason = _wrong(part, checksum)
            if reason is None:
                return []
            os.truncate(part, 0)  # nothing of it can be continued
        log.warning("attempt %d of %d: %s", attempt, ATTEMPTS, reason)
        reasons.append(reason)
        if attempt < ATTEMPTS:
            time.sleep(PAUSE_S * attempt)
        if time.monotonic() >= deadline and not fetching.received:
            break
    return reasons


class _Fetch:
    """One attempt in a thread of its own, since a name look-up cannot be interrupted but can be left behind.

    part: continued if the server does so too, otherwise written from the start. received: bytes of this
    attempt.
    """

    def __init__(self, url: str, part: Path, open_url: Opener) -> None:
        self.url, self.part, self.open_url = url, part, open_url
        self.received = 0
        self.error: str | None = None
        self.given_up = False
        # so that a thread which was left behind never writes into the next attempt's bytes
        self.writing = threading.Lock()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def wait(self, deadline: float) -> str | None:
        """Why it failed, or None. deadline: for the first byte, in monotonic seconds."""
        start = since = time.monotonic()
        seen = 0
        self.thread.start()
        while self.thread.is_alive():
            self.thread.join(0.1)
            now = time.monotonic()
            if self.received > seen:
                seen, since = self.received, now
            if now - since > STALL_S or (not seen and now > deadline):
                return self._give_up(f"no data for {now - since:.0f} s after {seen} bytes")
            if now - start > GRACE_S and seen / (now - start) < SLOWEST:
                return self._give_up(f"{seen} bytes in {now - start:.0f} s, which is too slow")
        return self.error

    def _give_up(self, reason: str) -> str:
        with self.writing:
            self.given_up = True
        return reason

    def _run(self) -> None:
        try:
            start = self.part.stat().st_size
            with self._answer(start) as response, open(self.part, "ab", buffering=0) as file:
                if not _continues(response, start):
                    file.truncate(start := 0)
                self._copy(response, file, start)
        except (
            OSError,
            HTTPException,
            ValueError,
            DataError,
        ) as error:  # told by `wait`, in the thread that asked
            self.error = str(error) or type(error).__name__

    def _answer(self, start: int) -> AbstractContextManager[Any]:
        try:
            return self.open_url(self.url, start)
        except HTTPError as error:
            if error.code != NOT_SATISFIABLE or not start:
                raise
            # the file is no longer than what lies here, which is thus no part of it
            return self.open_url(self.url, 0)

    def _copy(self, response: Any, file: IO[bytes], start: int) -> None:
        length = int(response.headers.get("Content-Length") or 0)
        if start + length > MAX_BYTES:
            raise DataError(f"{start + length} bytes are offered, and at most {MAX_BYTES} are taken")
        while chunk := response.read1(CHUNK):
            with self.writing:
                if self.given_up:
                    return
                file.write(chunk)
                self.received += len(chunk)
            if start + self.received > MAX_BYTES:
                file.truncate(0)
                raise DataError(f"more than {MAX_BYTES} bytes")
        if length and self.received < length:
            self.error = f"the connection broke after {start + self.received} of {start + length} bytes"


def _continues(response: Any, start: int) -> bool:
    """Whether the answer begins at byte `start`, not at the beginning of the file."""
    if not start or response.status != PARTIAL:
        return False
    found = CONTENT_RANGE.match(response.headers.get("Content-Range") or "")
    if found is None or int(found[1]) != start:
        raise DataError(
            f"asked for the bytes from {start} on, the server sent {response.headers.get('Content-Range')}"
        )
    return True


def _wrong(path: Path, checksum: str) -> str | None:
    """What is wrong with a file that should have this checksum, or None."""
    kind, _, expected = checksum.partition(":")
    state = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            state.update(chunk)
    found = state.hexdigest()
    return None if found == expected else f"the file has {kind} {found}, expected {expected}, and was deleted"


def _require_https(url: str) -> None:
    if urllib.parse.urlsplit(url).scheme != "https":
        raise DataError(f"{url} is not https; nothing was downloaded")
