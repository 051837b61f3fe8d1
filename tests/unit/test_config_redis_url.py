"""URLs that name Sentinels: what they say, what is wrong with them, and that no password of them is shown."""

from __future__ import annotations

import pytest
from kombu.transport.redis import SentinelChannel

from callmill.config import celery as celery_module
from callmill.config.broker_connection import BrokerConnection
from callmill.config.celery import celery_configuration
from callmill.config.redaction import redacted, without_secrets
from callmill.config.redis_connections import sentinel_options, ssl_options
from callmill.config.redis_url import SentinelUrl, checked_redis_url, is_sentinel
from callmill.config.settings import load_settings
from callmill.errors import ConfigurationError

FULL = "rediss+sentinel://me:s%40crt@one:7000,two,[::1]:7002/main/3?sentinel_password=wh1sper&ssl_ca_certs=/ca.pem"
SECRETS = ("s%40crt", "s@crt", "wh1sper")


def test_every_part_is_read():
    """Sentinels with and without a port, IPv6, both logins, the service, the database and TLS all arrive."""
    read = SentinelUrl.parse(FULL)
    assert read.sentinels == (("one", 7000), ("two", 26379), ("::1", 7002))
    assert (read.service, read.db, read.username, read.password, read.tls) == ("main", 3, "me", "s@crt", True)
    assert (read.ssl, read.sentinel_login) == ({"ssl_ca_certs": "/ca.pem"}, {"password": "wh1sper"})
    assert ssl_options(read) == {"ssl_cert_reqs": "required", "ssl_ca_certs": "/ca.pem"}
    options = sentinel_options(read)
    assert (options["password"], options["ssl"], options["ssl_ca_certs"]) == ("wh1sper", True, "/ca.pem")


def test_the_short_form_will_do():
    """Database and logins may be left out; a plain URL is none of Sentinel."""
    read = SentinelUrl.parse("redis+sentinel://one/main")
    assert (read.db, read.username, read.password, read.tls, read.sentinel_login) == (0, None, None, False, {})
    assert not is_sentinel("redis://one/0")


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("redis+sentinel://one:26379", "names no service"),
        ("redis+sentinel://:s3cret@one:26379/", "names no service"),
        ("redis+sentinel://:s3cret@one,two:x/main", "no host:port"),
        ("redis+sentinel://:s3cret@one,/main", "no host:port"),
        ("redis+sentinel://one:70000/main", "no host:port"),
        ("redis+sentinel://one/main/first", "database by its number"),
        ("redis+sentinel://one/main/0?socket_timeout=1", "only ssl_"),
        ("redis+sentinel://one/main/0?password=s3cret", "only ssl_"),
    ],
)
def test_what_is_wrong_is_said_without_the_password(url, complaint, monkeypatch):
    """A wrong URL is refused with what is wrong and the right form, and never shows what it has of secrets."""
    with pytest.raises(ValueError, match=complaint) as refusal:
        checked_redis_url(url)
    assert "s3cret" not in str(refusal.value)
    monkeypatch.setenv("CALLMILL_LIMITER_URL", url)
    with pytest.raises(ConfigurationError, match=r"CALLMILL_LIMITER_URL: .*" + complaint):
        load_settings()


def test_no_text_shows_a_password():
    """Neither messages, nor logs, nor settings in a traceback, nor kombu's form of the URL show either password."""
    shown = [redacted(FULL), without_secrets(f"broker at {FULL}"), repr(load_settings(redis_url=FULL))]
    shown.append(without_secrets(SentinelUrl.parse(FULL).kombu_url()))
    assert not [(text, secret) for text in shown for secret in SECRETS if secret in text]
    assert "one:7000" in shown[0]


def test_the_broker_goes_over_sentinels_with_our_channels():
    """A broker connection, and a copy of it, find the primary by its name, with channels and prefix of any other."""
    options = celery_configuration(load_settings(redis_url=FULL))["broker_transport_options"]
    with BrokerConnection(FULL, transport_options=options) as connection:
        for one in (connection, connection.clone()):
            assert one.transport_cls == "sentinel"
            channel_type = one.transport.Channel
            assert issubclass(channel_type, SentinelChannel)
            assert channel_type._put is BrokerConnection("redis://one").transport.Channel._put
            chosen = one.transport_options
            assert (chosen["master_name"], chosen["global_keyprefix"]) == ("main", "callmill:")
            assert chosen["sentinel_kwargs"]["password"] == "wh1sper"
            assert (one.userid, one.password, one.virtual_host) == ("me", "s@crt", "3")
            assert one.ssl == {"ssl_cert_reqs": "required", "ssl_ca_certs": "/ca.pem"}


def test_results_of_tasks_go_over_sentinels(monkeypatch):
    """Celery's result backend gets its form of the same Sentinels, login and database."""
    monkeypatch.setenv("CALLMILL_REDIS_URL", FULL)
    app = celery_module._App("callmill", set_as_current=False)
    parameters = app.backend.connparams
    assert [(host["host"], host["port"]) for host in parameters["hosts"]] == [
        ("one", 7000),
        ("two", 26379),
        ("::1", 7002),
    ]
    assert (parameters["username"], parameters["password"], int(parameters["db"])) == ("me", "s@crt", 3)
    assert app.backend._transport_options["master_name"] == "main"


@pytest.mark.parametrize(
    ("url", "becomes"),
    [
        ("redis://one:7000/3?password_file={file}", "redis://:p%40ss%2F%3F@one:7000/3"),
        (
            "rediss://me@one?ssl_ca_certs=/ca.pem&password_file={file}",
            "rediss://me:p%40ss%2F%3F@one?ssl_ca_certs=/ca.pem",
        ),
        ("redis+sentinel://one,two:7000/main?password_file={file}", "redis+sentinel://:p%40ss%2F%3F@one,two:7000/main"),
    ],
)
def test_a_password_file_stands_for_its_password(url, becomes, tmp_path, monkeypatch):
    """The URL has the password of the file, percent-encoded, its line end cut off; logs hide it."""
    (tmp_path / "password").write_text("p@ss/?\n")
    monkeypatch.setenv("CALLMILL_REDIS_URL", url.format(file=tmp_path / "password"))
    assert load_settings().redis_url == becomes
    assert "p@ss/?" not in without_secrets("somebody says p@ss/? aloud")


@pytest.mark.parametrize(
    ("url", "content", "complaint"),
    [
        ("redis://one?password_file={file}", None, "cannot read the password file"),
        ("redis://one?password_file={file}", "\n", "is empty"),
        ("redis://:s3cret@one?password_file={file}", "other", "more than one password"),
        ("redis://one?password_file={file}&password_file={file}", "other", "more than one password"),
    ],
)
def test_a_password_file_that_will_not_do_is_named(url, content, complaint, tmp_path):
    """A missing or empty file, and a second password, are refused; the message shows no password."""
    if content is not None:
        (tmp_path / "password").write_text(content)
    with pytest.raises(ValueError, match=complaint) as refusal:
        checked_redis_url(url.format(file=tmp_path / "password"))
    assert "s3cret" not in str(refusal.value)
