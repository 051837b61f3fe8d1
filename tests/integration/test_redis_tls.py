"""Redis over TLS: everything works with the right authority, and a wrong one is told with what to do about it."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from click.testing import CliRunner
from forking_program import run
from local_nodes import RedisProcess, WorkerProcess, until, write_profiles
from scripted_api import scripted_api
from tcp_forwarder import Forwarder

from callmill.cli.program import callmill
from callmill.errors import RedisUnavailableError
from callmill.producer import Client, Job

REMEDY = "name the authority of the server's certificate in the URL of Redis: ?ssl_ca_certs=/path/to/ca.pem"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make two authorities, and a certificate of the first for localhost."""
    folder = tmp_path_factory.mktemp("certificates")
    ours, other = trustme.CA(), trustme.CA()
    ours.cert_pem.write_to_path(folder / "ca.pem")
    other.cert_pem.write_to_path(folder / "other.pem")
    ours.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(folder / "redis.pem")
    return folder


@pytest.fixture
def port(redis_server: RedisProcess, redis_url: str, certificates: Path) -> Iterator[int]:
    """Return where an empty Redis is reached over TLS."""
    assert redis_url
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "redis.pem")
    with Forwarder(redis_server.port, context) as forwarder:
        yield forwarder.port


def test_jobs_run_over_tls(port, certificates, tmp_path):
    """Producer, worker and command line reach Redis through a verified connection, and jobs get their outcomes."""
    url = f"rediss://localhost:{port}/0?ssl_ca_certs={certificates / 'ca.pem'}"
    with scripted_api() as api:
        profile = [f'base_url = "{api.url}"', 'limits = ["500/second"]']
        worker = WorkerProcess(tmp_path, url, write_profiles(tmp_path / "apis.toml", {"near": profile}), {})
        try:
            worker.start().ready()
            with Client(url) as client:
                batch = client.submit([Job("GET", f"/{n}", api="near") for n in range(20)])
                assert batch.wait(20).succeeded == 20
            done = CliRunner().invoke(callmill, ["status"], env={"CALLMILL_REDIS_URL": url})
            assert done.exit_code == 0, done.output
        finally:
            worker.teardown()


def test_a_child_says_no_goodbye_for_its_parent(port, certificates, tmp_path, monkeypatch):
    """A forked child that ends leaves its parent's TLS connection as it was."""
    monkeypatch.chdir(tmp_path)
    program = """
    client = Client(URL)
    client.submit(jobs(1))
    before = client.async_client()._connection.redis.connection_pool._available_connections[:]
    assert ended(forked(lambda: client.submit(jobs(1)), sys.exit)) == 0
    client.submit(jobs(1))
    assert client.async_client()._connection.redis.connection_pool._available_connections == before
    print(len(client.batches()))
    """
    assert run(f"rediss://localhost:{port}/0?ssl_ca_certs={certificates / 'ca.pem'}", program).strip() == "3"


@pytest.mark.parametrize("query", ["?ssl_ca_certs={folder}/other.pem", ""], ids=["another authority", "the system's"])
def test_a_certificate_that_cannot_be_verified(port, certificates, tmp_path, query):
    """Nothing is sent; programs say which parameter names the authority, and a worker ends at once."""
    url = f"rediss://localhost:{port}/0" + query.format(folder=certificates)
    with Client(url) as client, pytest.raises(RedisUnavailableError, match=r"VERIFY_FAILED.*ssl_ca_certs"):
        client.submit([Job("GET", "/", api="near")])
    done = CliRunner().invoke(callmill, ["doctor"], env={"CALLMILL_REDIS_URL": url, "COLUMNS": "400"})
    assert done.exit_code == 1
    assert REMEDY in done.output
    apis = write_profiles(tmp_path / "apis.toml", {"near": ['base_url = "http://127.0.0.1:1"']})
    worker = WorkerProcess(tmp_path, url, apis, {}).start()
    try:
        until(lambda: worker.status == "exited", what="the worker ends")
        assert REMEDY in worker.logs()
    finally:
        worker.teardown()
