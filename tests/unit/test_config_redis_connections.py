"""How Redis clients are made."""

from __future__ import annotations

import pytest

from callmill.config.redis_connections import SOCKET_TIMEOUT_S, connect, connect_blocking
from callmill.errors import ConfigurationError

MAKERS = pytest.mark.parametrize("make", [connect, connect_blocking])


@MAKERS
def test_wrong_url_is_refused_without_its_password(make):
    """A URL that is none of Redis is refused at once, with the remedy and without the password."""
    with pytest.raises(ConfigurationError, match="write redis://") as refusal:
        make("http://:hunter2@host")
    assert "hunter2" not in str(refusal.value)


@MAKERS
def test_clients_are_bounded_and_repeat_nothing(make):
    """A connection has time-outs longer than any blocking read, keeps alive, and retries no command by itself."""
    connection = make("redis://:pw@host:7000/3").connection_pool.make_connection()
    assert (connection.host, connection.port, connection.db) == ("host", 7000, 3)
    assert connection.retry._retries == 0
    assert connection.retry_on_error == []
    assert 5 < connection.socket_timeout == SOCKET_TIMEOUT_S
    assert (connection.socket_connect_timeout, connection.socket_keepalive) == (5, True)
    assert connection.health_check_interval > 0
    assert (connection.client_name, connection.encoder.decode_responses) == ("callmill", False)


@MAKERS
def test_tls_by_scheme(make):
    """``rediss://`` means TLS with the server's certificate checked, and ssl_ parameters reach the connection."""
    connection = make("rediss://host?ssl_ca_certs=/ca.pem").connection_pool.make_connection()
    assert "SSL" in type(connection).__name__
    assert connection.ssl_context.ca_certs == "/ca.pem" if make is connect else connection.ca_certs == "/ca.pem"
