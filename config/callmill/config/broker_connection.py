"""BrokerConnection: a broker connection whose channels say that they are closed, and that comes back soon.

When a Redis server goes away, Celery closes the connection and connects anew, while tasks that are still running will
acknowledge over the old channel. kombu 5.7 then looks for the address in a connection that is no more; Celery takes the
AttributeError for unrecoverable and ends the worker. As a connection error it is what it is: a message that cannot be
acknowledged any more. Its hint or plain call comes again, and a claim, or an idempotency key, makes that harmless.

A URL that names Sentinels goes over kombu's transport for them, with the same channels.

What is no message is dropped before anybody takes it: kombu and Celery end, or connect anew, over it.

A message with the header ``TAKEN_NEXT`` goes to the head of its queue, for which kombu has no word.

After an outage kombu would wait up to 30 s for its next try; the ledger's connections are back within a second or two,
and so is this one.
"""

from __future__ import annotations

from queue import Empty
from typing import Any, Literal

from kombu.connection import Connection
from kombu.transport import redis as kombu_redis
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps
from redis.exceptions import ConnectionError as RedisConnectionError

from callmill.config.broker_messages import (
    MOST_BYTES,
    MOST_BYTES_OF_HINT,
    CheckedMessage,
    MalformedMessageError,
    read_message,
)
from callmill.config.dropped_messages import dropped_messages
from callmill.config.redis_connections import sentinel_options, ssl_options
from callmill.config.redis_url import SentinelUrl, is_sentinel

TAKEN_NEXT = "callmill_next"
"""Header of a message that is to be taken before those that wait. Of messages published in a batch only."""

_FROZEN_AFTER_S = 5
"""How long a primary that stands still, and that Sentinels may have replaced, is waited for."""

LANE_PREFIX = "lane."
"""What the name of every queue that carries hints begins with."""

_FIRST_RETRY_S, _RETRY_STEP_S, _LAST_RETRY_S = 0.2, 0.4, 1.0


class _Channel(kombu_redis.Channel):
    Message = CheckedMessage
    _shared_client: Any = None

    def _connparams(self, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002 - kombu's signature
        if self.connection.client is None:
            raise RedisConnectionError("the broker connection of this channel is closed")
        return super()._connparams(asynchronous=asynchronous)  # type: ignore[no-untyped-call] # kombu is not annotated

    def _create_client(self, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002 - as above
        """Return one client for all commands: kombu makes one for each, which costs more than the command."""
        if asynchronous:
            return super()._create_client(asynchronous=True)  # type: ignore[no-untyped-call] # as above
        if self._shared_client is None or self._shared_client.connection_pool is not self.pool:
            self._shared_client = super()._create_client()  # type: ignore[no-untyped-call] # as above
        return self._shared_client

    def _put(self, queue: str, message: Any, **kwargs: Any) -> None:
        batch = kwargs.get("_publish_batch")
        if batch is not None and message["headers"].get(TAKEN_NEXT):
            batch.add("rpush", self._q_for_pri(queue, 0), dumps(message))  # type: ignore[no-untyped-call] # as above
            return
        super()._put(queue, message, **kwargs)  # type: ignore[no-untyped-call] # as above

    def _brpop_read(self, **options: Any) -> Literal[True]:
        """Take what a queue gave, as kombu does it, if it is a message."""
        client = self.client
        try:
            try:
                found = client.parse_response(client.connection, "BRPOP", **options)
            except self.connection_errors:
                client.connection.disconnect()
                raise
            if not found:
                raise Empty
            queue = bytes_to_str(found[0]).rsplit(self.sep, 1)[0]  # type: ignore[no-untyped-call] # as above
            self._queue_cycle.rotate(queue)
            most = MOST_BYTES_OF_HINT if queue.startswith(LANE_PREFIX) else MOST_BYTES
            try:
                self.connection._deliver(read_message(found[1], "", queue, most_bytes=most), queue)  # noqa: SLF001 - as kombu does
            except MalformedMessageError as error:
                dropped_messages.note(f"queue {queue}", error)
        finally:
            self._in_poll = None  # type: ignore[assignment] # as above
            self._flush_brpop_reauth()  # type: ignore[no-untyped-call] # as above
        return True

    def _receive_one(self, c: Any) -> Literal[True] | None:
        """Take what a channel of Redis told, as kombu does it, if it is a message."""
        try:
            response = c.parse_response()
        except self.connection_errors:
            self._in_listen = None  # type: ignore[assignment] # as above
            raise
        if not isinstance(response, list | tuple):
            return None
        told = self._handle_message(c, response)  # type: ignore[no-untyped-call] # as above
        if not bytes_to_str(told["type"]).endswith("message"):  # type: ignore[no-untyped-call] # as above
            return None
        topic = bytes_to_str(told["channel"])  # type: ignore[no-untyped-call] # as above
        exchange = (topic.partition(".")[2] if topic.startswith("/") else topic).partition("/")[0]
        if exchange not in self._fanout_to_queue:
            return None
        try:
            raw = read_message(told["data"], exchange, "", most_bytes=MOST_BYTES)
            self._deliver_fanout_message(raw, exchange)  # type: ignore[no-untyped-call] # as above
        except MalformedMessageError as error:
            dropped_messages.note(f"channel {exchange}", error)
        return True


class _SentinelChannel(_Channel, kombu_redis.SentinelChannel):
    pass


class _Transport(kombu_redis.Transport):
    Channel = _Channel


class _SentinelTransport(kombu_redis.SentinelTransport):
    Channel = _SentinelChannel


_TRANSPORTS = {kombu_redis.Transport: _Transport, kombu_redis.SentinelTransport: _SentinelTransport}


class BrokerConnection(Connection):
    """A connection to the broker, made by the app."""

    def __init__(self, hostname: Any = "localhost", *args: Any, **options: Any) -> None:
        if isinstance(hostname, str) and is_sentinel(hostname):
            address = SentinelUrl.parse(hostname)
            hostname = address.kombu_url()
            transport_options = options.get("transport_options") or {}
            options["transport_options"] = transport_options | sentinel_transport_options(address)
            if address.tls:
                options["ssl"] = ssl_options(address)
        super().__init__(hostname, *args, **options)  # type: ignore[no-untyped-call] # as below

    def ensure_connection(self, *args: Any, **options: Any) -> Any:
        """Connect, and while the broker is away try again every second, until ``max_retries`` if there is one."""
        intervals = {
            "interval_start": _FIRST_RETRY_S,
            "interval_step": _RETRY_STEP_S,
            "interval_max": _LAST_RETRY_S,
        }
        return super().ensure_connection(*args, **(intervals | options))  # type: ignore[no-untyped-call] # as below

    def get_transport_cls(self) -> Any:
        """Return kombu's transport for the URL, with channels of ours where it is that of Redis."""
        found = super().get_transport_cls()  # type: ignore[no-untyped-call] # as above
        return _TRANSPORTS.get(found, found)


def sentinel_transport_options(address: SentinelUrl) -> dict[str, Any]:
    """Return what kombu and Celery must know of Sentinels beside their URL."""
    return {
        "master_name": address.service,
        "sentinel_kwargs": sentinel_options(address),
        "socket_timeout": _FROZEN_AFTER_S,
    }
