"""The run folder that a stranger could have sent, and a certificate authority of the tests' own, of which the
machine's never hear.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from metalearn.cli import main as cli
from tests.security.run_folders import TINY


class Certificates(NamedTuple):
    """authority: what a client trusts. server: certificate and key of 127.0.0.1, signed by it. stranger: the
    same, signed by itself.
    """

    authority: Path
    server: Path
    stranger: Path


AUTHORITY = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"]
LEAF = """subjectAltName=IP:127.0.0.1
basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=serverAuth
"""


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl program to make a certificate")
    folder = tmp_path_factory.mktemp("certificates")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True, timeout=60)

    openssl(
        "req",
        "-x509",
        *key,
        "-keyout",
        "ca.key",
        "-out",
        "ca.pem",
        "-days",
        "2",
        "-subj",
        "/CN=metalearn tests",
        *AUTHORITY,
    )
    openssl("req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=127.0.0.1")
    (folder / "leaf.cnf").write_text(f"{LEAF}authorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n")
    signing = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "leaf.cnf"]
    openssl("x509", "-req", "-in", "server.csr", "-out", "server.crt", *signing)
    names = ["-addext", "subjectAltName=IP:127.0.0.1"]
    openssl(
        "req",
        "-x509",
        *key,
        "-keyout",
        "stranger.key",
        "-out",
        "stranger.crt",
        "-days",
        "2",
        "-subj",
        "/CN=127.0.0.1",
        *names,
    )
    for name in ("server", "stranger"):
        (folder / f"{name}.pem").write_bytes(
            (folder / f"{name}.crt").read_bytes() + (folder / f"{name}.key").read_bytes()
        )
    return Certificates(folder / "ca.pem", folder / "server.pem", folder / "stranger.pem")


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run that has finished."""
    run_dir = tmp_path_factory.mktemp("template") / "run"
    assert cli.main(["train", *TINY, f"run_dir={run_dir}"]) == 0
    return run_dir


@pytest.fixture
def run_dir(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "run"))


@pytest.fixture
def never_unexpected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the last line of defence would catch is a mistake of ours here."""

    def again(error: Exception, run_dir: Path | None) -> int:
        raise error

    monkeypatch.setattr(cli, "complain_unexpected", again)
    # most of the time of a tiny run
    monkeypatch.setattr("metalearn.run.session.draw_plots", lambda *parts: None)
