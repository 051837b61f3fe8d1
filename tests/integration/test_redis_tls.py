"""Redis over TLS: everything works with the right authority, and a wrong one is told with what to do about it."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from local_nodes import RedisProcess, WorkerProcess, until, write_profiles
from scripted_api import scripted_api
from tcp_forwarder import Forwarder

from callmill.cli.program import callmill
from callmill.errors import RedisUnavailableError
from callmill.producer import Client, Job

REMEDY = "name the authority of the server's certificate in the URL of Redis: ?ssl_ca_certs=/path/to/ca.pem"
NEW_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]


def openssl(folder: Path, *arguments: str) -> None:
    """Run openssl in a folder."""
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=20)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make two authorities, and a certificate of the first for localhost."""
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("ca", "other"):
        files = ["-keyout", f"{name}.key", "-out", f"{name}.pem"]
        openssl(folder, "req", "-x509", *NEW_KEY, "-days", "2", "-subj", f"/CN={name}", *files)
    openssl(folder, "req", "-new", *NEW_KEY, "-subj", "/CN=redis", "-keyout", "redis.key", "-out", "redis.csr")
    (folder / "names").write_text("subjectAltName=DNS:localhost\n")
    signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-days", "2", "-extfile", "names", "-out", "redis.pem"]
    openssl(folder, "x509", "-req", "-in", "redis.csr", *signed)
    return folder


@pytest.fixture
def port(redis_server: RedisProcess, redis_url: str, certificates: Path) -> Iterator[int]:
    """Return where an empty Redis is reached over TLS."""
    assert redis_url
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "redis.pem", certificates / "redis.key")
    with Forwarder(redis_server.port, context) as forwarder:
        yield forwarder.port


def test_jobs_run_over_tls(port, certificates, tmp_path):
    """Producer, worker and command line reach Redis through a verified connection, and jobs get their outcomes."""
    url = f"rediss://localhost:{port}/0?ssl_ca_certs={certificates / 'ca.pem'}"
    with scripted_api() as api:
        profile = [f'base_url = "{api.url}"', 'limits = ["500/second"]']
        worker = WorkerProcess(tmp_path, url, write_profiles(tmp_path / "apis.toml", {"local": profile}), {})
        try:
            worker.start().ready()
            with Client(url) as client:
                batch = client.submit([Job("GET", f"/{n}", api="local") for n in range(20)])
                assert batch.wait(20).succeeded == 20
            done = CliRunner().invoke(callmill, ["status"], env={"CALLMILL_REDIS_URL": url})
            assert done.exit_code == 0, done.output
        finally:
            worker.teardown()


@pytest.mark.parametrize("query", ["?ssl_ca_certs={folder}/other.pem", ""], ids=["another authority", "the system's"])
def test_a_certificate_that_cannot_be_verified(port, certificates, tmp_path, query):
    """Nothing is sent; programs say which parameter names the authority, and a worker ends at once."""
    url = f"rediss://localhost:{port}/0" + query.format(folder=certificates)
    with Client(url) as client, pytest.raises(RedisUnavailableError, match=r"VERIFY_FAILED.*ssl_ca_certs"):
        client.submit([Job("GET", "/", api="local")])
    done = CliRunner().invoke(callmill, ["doctor"], env={"CALLMILL_REDIS_URL": url, "COLUMNS": "400"})
    assert done.exit_code == 1
    assert REMEDY in done.output
    apis = write_profiles(tmp_path / "apis.toml", {"local": ['base_url = "http://127.0.0.1:1"']})
    worker = WorkerProcess(tmp_path, url, apis, {}).start()
    try:
        until(lambda: worker.status == "exited", what="the worker ends")
        assert REMEDY in worker.logs()
    finally:
        worker.teardown()
