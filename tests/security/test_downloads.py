"""Fault 19: wrong checksums, cut connections, and addresses that are not what they should be, over real https
on the loopback.
"""

from __future__ import annotations

import hashlib
import http.server
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from torchvision.datasets import Omniglot as Official

from metalearn.cli import main as cli
from metalearn.data.files import download as module
from metalearn.data.files.download import download, open_https
from metalearn.errors import DataError
from tests.security.conftest import Certificates

CONTENT = b"the right file, " * 20_000
CHECKSUM = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
Serve = Callable[[Path | None], AbstractContextManager[tuple[str, list[str]]]]


class Handler(http.server.BaseHTTPRequestHandler):
    """The file; with `cut` in the path a quarter of what was asked for; with `to=ADDRESS` a redirect
    there.
    """

    requests: list[str]

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.requests.append(f"{self.path} {asked}" if asked else self.path)
        if "to=" in self.path:
            self.send_response(302)
            self.send_header("Location", self.path.partition("to=")[2])
            self.end_headers()
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        content = CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 4] if "cut" in self.path else content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Quiet(http.server.ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that turns away from a stranger's certificate is what these tests are about."""


@contextmanager
def serving(certificate: Path | None) -> Iterator[tuple[str, list[str]]]:
    """Address and requests of a server on the loopback; https with a certificate, http without."""
    requests: list[str] = []
    with Quiet(("127.0.0.1", 0), type("Own", (Handler,), {"requests": requests})) as served:
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            served.socket = context.wrap_socket(
                served.socket, server_side=True, do_handshake_on_connect=False
            )
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"{'http' if certificate is None else 'https'}://127.0.0.1:{served.server_port}", requests
        finally:
            served.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def own_network(certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust in the tests' own authority alone, and no waiting."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))
    monkeypatch.setenv("SSL_CERT_DIR", str(certificates.authority.parent / "none"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(module, "PAUSE_S", 0.01)


def fetch(url: str, target: Path, checksum: str = CHECKSUM) -> None:
    download(url, target, checksum=checksum, help_text="Fetch it by hand.")


def test_fault_19_a_file_with_the_right_checksum_arrives(certificates: Certificates, tmp_path: Path) -> None:
    with serving(certificates.server) as (url, _):
        fetch(f"{url}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert len(list(tmp_path.iterdir())) == 1


def test_fault_19_a_file_with_a_wrong_checksum_is_never_used(
    certificates: Certificates, tmp_path: Path
) -> None:
    with serving(certificates.server) as (url, requests):
        with pytest.raises(
            DataError, match=r"the file has sha256 .*, expected 00, and was deleted\.\nFetch it by hand"
        ) as caught:
            fetch(f"{url}/file", tmp_path / "file", "sha256:00")
        assert len(requests) == module.ATTEMPTS
    assert caught.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []


def test_fault_19_a_cut_connection_is_retried_and_continued_by_the_next_command(
    certificates: Certificates, tmp_path: Path
) -> None:
    with serving(certificates.server) as (url, requests):
        with pytest.raises(
            DataError, match=r"the connection broke .* are kept, and the same command goes on from there"
        ):
            fetch(f"{url}/cut", tmp_path / "file")
        assert [path.name for path in tmp_path.iterdir()] == ["file.part"]
        assert (tmp_path / "file.part").read_bytes() == CONTENT[: (tmp_path / "file.part").stat().st_size]
        assert [request.partition(" ")[0] for request in requests] == ["/cut"] * module.ATTEMPTS
        fetch(f"{url}/file", tmp_path / "file")
        assert requests[-1].startswith("/file bytes=")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("scheme", ["http", "file", "ftp", "HTTPX", ""])
def test_other_schemes_are_refused(tmp_path: Path, scheme: str) -> None:
    with pytest.raises(DataError, match="is not https; nothing was downloaded"):
        open_https(f"{scheme}://127.0.0.1/x")
    with pytest.raises(DataError, match="is not https; nothing was downloaded"):
        fetch(f"{scheme}://127.0.0.1/x", tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_a_redirect_within_https_is_followed(certificates: Certificates, tmp_path: Path) -> None:
    with serving(certificates.server) as (url, _):
        fetch(f"{url}/to={url}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_redirect_away_from_https_is_refused_before_anyone_is_asked(
    certificates: Certificates, tmp_path: Path
) -> None:
    with serving(certificates.server) as (url, _), serving(None) as (plain, asked):
        for address in (f"{plain}/file", "ftp://127.0.0.1/x"):
            with pytest.raises(DataError, match=f"{address} is not https; nothing was downloaded"):
                fetch(f"{url}/to={address}", tmp_path / "file")
        with pytest.raises(DataError, match="'file:///etc/hostname' is not allowed"):
            fetch(f"{url}/to=file:///etc/hostname", tmp_path / "file")
        assert asked == []
    assert list(tmp_path.iterdir()) == []


def test_a_certificate_that_nobody_vouches_for_is_refused(certificates: Certificates, tmp_path: Path) -> None:
    with serving(certificates.stranger) as (url, requests):
        with pytest.raises(DataError, match="CERTIFICATE_VERIFY_FAILED"):
            fetch(f"{url}/file", tmp_path / "file")
        assert requests == []
    assert list(tmp_path.iterdir()) == []


class TestTheWholeCommand:
    @pytest.fixture
    def cache(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        monkeypatch.delenv("METALEARN_DATA", raising=False)
        monkeypatch.setattr(
            Official, "zips_md5", dict.fromkeys(Official.zips_md5, hashlib.md5(CONTENT).hexdigest())
        )
        return tmp_path / "cache"

    def prepare(self, cache: Path) -> int:
        return cli.main(["data", "prepare", "omniglot", f"data.cache_dir={cache}"])

    def test_fault_19_half_a_download_is_exit_3(
        self,
        certificates: Certificates,
        cache: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        with serving(certificates.server) as (url, requests):
            monkeypatch.setattr(Official, "download_url_prefix", f"{url}/cut")
            assert self.prepare(cache) == 3
        complaint = capsys.readouterr().err
        assert len(requests) == module.ATTEMPTS
        assert "the connection broke after" in complaint
        assert "put both, as they are, into a folder" in complaint
        assert "Traceback" not in complaint
        assert [path.name for path in cache.rglob("*") if path.is_file()] == ["images_background.zip.part"]

    def test_fault_19_the_wrong_file_is_exit_3(
        self,
        certificates: Certificates,
        cache: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(Official, "zips_md5", dict.fromkeys(Official.zips_md5, "00"))
        with serving(certificates.server) as (url, _):
            monkeypatch.setattr(Official, "download_url_prefix", url)
            assert self.prepare(cache) == 3
        assert (
            f"the file has md5 {hashlib.md5(CONTENT).hexdigest()}, expected 00, and was deleted"
            in capsys.readouterr().err
        )
        assert [path for path in cache.rglob("*") if path.is_file()] == []

    @pytest.mark.fault(19)
    def test_the_right_checksum_of_something_else_is_not_used_either(
        self,
        certificates: Certificates,
        cache: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """md5 is what the authors of the data published; the sha256 of the content has the last word."""
        with serving(certificates.server) as (url, _):
            monkeypatch.setattr(Official, "download_url_prefix", url)
            assert self.prepare(cache) == 3
        assert (
            "images_background.zip is damaged or incomplete (File is not a zip file); it was not used"
            in capsys.readouterr().err
        )
        assert list(cache.glob("*.safetensors")) == []
