"""The Celery app, without any server."""

from __future__ import annotations

import subprocess
import sys

import pytest
from kombu.exceptions import OperationalError

from callmill.config import celery as celery_module
from callmill.config.celery import CALLS_QUEUE, celery_configuration, lane_queue
from callmill.config.settings import load_settings
from callmill.errors import ServerNotFoundError


@pytest.fixture
def app(monkeypatch, tmp_path):
    """Make an app of the same kind as the module's, not configured yet."""
    monkeypatch.setenv("CALLMILL_STATE_DIR", str(tmp_path))
    monkeypatch.delenv("CALLMILL_REDIS_URL", raising=False)
    return celery_module._App("callmill", set_as_current=False)


def test_import_needs_nothing(tmp_path):
    """Importing the app reads no environment: a wrong one shows at first use only."""
    program = "import callmill.config.celery as c; print(c.app.main, c.lane_queue('x'))"
    environment = {"CALLMILL_REDIS_URL": "wrong", "CALLMILL_APIS": "/none", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["callmill", "lane.x"]


def test_broker_is_tried_again_every_second_however_long_it_is_away(app, monkeypatch):
    """The time between two tries does not grow beyond a second, so a fleet is back soon after its broker."""
    monkeypatch.setenv("CALLMILL_REDIS_URL", "redis://127.0.0.1:1")  # where nobody listens
    monkeypatch.setattr("kombu.utils.functional.sleep", lambda _: None)
    intervals_s: list[float] = []
    with app.connection_for_read() as connection, pytest.raises(OperationalError):
        connection.ensure_connection(lambda _, interval_s: intervals_s.append(interval_s), max_retries=40)
    assert len(intervals_s) == 40
    assert 0 < intervals_s[0] < max(intervals_s) <= 1


def test_settings_are_read_at_first_use(app, monkeypatch):
    """The environment counts as it is when the app is first used, and other apps' variables never do."""
    monkeypatch.setenv("CALLMILL_REDIS_URL", "redis://ledger:7000/1")
    monkeypatch.setenv("CALLMILL_BROKER_URL", "redis://broker:7000/2")
    for foreign in ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL"):
        monkeypatch.setenv(foreign, "amqp://foreign")
    monkeypatch.setenv("CELERY_RESULT_BACKEND", "rpc://")
    for connection in (app.connection(), app.connection_for_read(), app.connection_for_write()):
        assert (connection.transport.driver_type, connection.hostname) == ("redis", "broker")
    assert app.backend.connparams["host"] == "ledger"


def test_no_server_is_said_and_tried_again(app, monkeypatch):
    """Without any server the first use says both remedies, and a later use reads the environment again."""
    with pytest.raises(ServerNotFoundError, match=r"CALLMILL_REDIS_URL.*callmill up"):
        _ = app.conf.broker_url
    monkeypatch.setenv("CALLMILL_REDIS_URL", "redis://late")
    assert app.conf.broker_url == "redis://late"


def test_every_setting_is_one_that_celery_knows():
    """No setting is misspelt: Celery would ignore it silently."""
    known = set(celery_module.Celery("other", set_as_current=False).conf.keys())
    ours = set(celery_configuration(load_settings(redis_url="redis://host")))
    assert ours - known == {"redis_backend_health_check_interval", "redis_client_name"}  # read, but not listed


def test_every_transport_option_is_one_that_kombu_knows():
    """No option of the broker is misspelt, and none forbids batch publishing."""
    from kombu.transport.redis import Channel  # noqa: PLC0415 - needed by this contract test only

    options = celery_configuration(load_settings(redis_url="redis://host"))["broker_transport_options"]
    assert set(options) <= {*Channel.from_transport_options, "polling_interval"}  # read apart from the listed ones
    assert "retry_on_timeout" not in options


def test_queue_names():
    """Each API has a lane of its own, apart from the queue of plain calls."""
    assert (lane_queue("openai"), CALLS_QUEUE) == ("lane.openai", "calls")


def test_app_is_not_the_current_one():
    """A user's own Celery app stays the current app after the import."""
    from celery import current_app  # noqa: PLC0415 - what is current must be asked now

    assert current_app._get_current_object() is not celery_module.app
