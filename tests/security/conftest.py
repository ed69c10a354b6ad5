"""A certificate authority of the tests' own, made anew each time; the machine's own authorities never hear of it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest


class Certificates(NamedTuple):
    """authority: what a client trusts. server: certificate and key of 127.0.0.1, signed by it. stranger: the same, signed by itself."""

    authority: Path
    server: Path
    stranger: Path


AUTHORITY = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"]
LEAF = "subjectAltName=IP:127.0.0.1\nbasicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth\n"


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl program to make a certificate")
    folder = tmp_path_factory.mktemp("certificates")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True, timeout=60)

    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=metalearn tests", *AUTHORITY)
    openssl("req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=127.0.0.1")
    (folder / "leaf.cnf").write_text(f"{LEAF}authorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n")
    signing = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "leaf.cnf"]
    openssl("x509", "-req", "-in", "server.csr", "-out", "server.crt", *signing)
    names = ["-addext", "subjectAltName=IP:127.0.0.1"]
    openssl("req", "-x509", *key, "-keyout", "stranger.key", "-out", "stranger.crt", "-days", "2", "-subj", "/CN=127.0.0.1", *names)
    for name in ("server", "stranger"):
        (folder / f"{name}.pem").write_bytes((folder / f"{name}.crt").read_bytes() + (folder / f"{name}.key").read_bytes())
    return Certificates(folder / "ca.pem", folder / "server.pem", folder / "stranger.pem")
