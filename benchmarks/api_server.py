"""The API that everything calls: nginx, one process, which answers far faster than anybody here asks.

``/ok`` answers at once, ``/slow`` after 200 ms. ``/limited/RATE`` lets RATE calls a second pass, with a burst of 20 and
no delay, and answers 429 beyond that; it writes the time, the status and the idempotency key of every answer into its
log.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from child import Child, answers, free_port
from msgspec import Struct

BURST = 20
LATENCY_MS = 200
_NGINX = """\
daemon off;
master_process off;
worker_rlimit_nofile 20000;
pid {dir}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 19000; }}
http {{
  access_log off;
  log_format answers '$msec $status $http_idempotency_key';
  default_type application/json;
  keepalive_requests 100000000;
  keepalive_timeout 300s;
  client_body_temp_path {dir}/body;
  proxy_temp_path {dir}/proxy;
  fastcgi_temp_path {dir}/fastcgi;
  uwsgi_temp_path {dir}/uwsgi;
  scgi_temp_path {dir}/scgi;
  limit_req_status 429;
  limit_req_zone $server_port zone=account:1m rate={rate}r/s;
  server {{
    listen 127.0.0.1:{port} backlog=8192;
    set $reply '{reply}';
    location = /ok {{ return 200 $reply; }}
    # The one thing in nginx that waits and costs nothing: what it does with those who bring no password.
    location = /slow {{
      auth_basic slow;
      auth_basic_user_file none;
      auth_delay {latency_ms}ms;
      error_page 401 =200 @slow;
    }}
    location @slow {{ return 200 $reply; }}
    # A bare "return" would answer before limit_req is asked.
    location = /limited/{rate} {{
      limit_req zone=account burst={burst} nodelay;
      access_log {dir}/answers.log answers;
      try_files /none @answer;
    }}
    location @answer {{ access_log {dir}/answers.log answers; return 200 $reply; }}
  }}
}}
"""
_REPLY = (
    '{"id":"chatcmpl-1","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant",'
    '"content":"a small reply"}}],"usage":{"prompt_tokens":12,"completion_tokens":9,"total_tokens":21}}'
)


class Answer(Struct, frozen=True):
    """One line of the log: Unix time in seconds, HTTP status, the call's idempotency key."""

    time_s: float
    status: int
    key: str


class ApiServer:
    """A running server; ``url`` has no slash at its end."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url = url
        self._log = directory / "answers.log"

    def answers(self) -> list[Answer]:
        """Return what the limited path answered, in the order of time."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return sorted(
            (Answer(float(time_s), int(status), key) for time_s, status, key in map(str.split, lines)),
            key=lambda answer: answer.time_s,
        )


@contextmanager
def api_server(directory: Path, rate: int) -> Iterator[ApiServer]:
    """Run nginx while the context lasts, with ``rate`` calls a second on its limited path."""
    port = free_port()
    config = directory / "nginx.conf"
    config.write_text(
        _NGINX.format(dir=directory, port=port, rate=rate, burst=BURST, latency_ms=LATENCY_MS, reply=_REPLY)
    )
    with Child([nginx_program(), "-p", directory, "-c", config], directory / "nginx.log") as server:
        server.await_ready(lambda: answers(port))
        yield ApiServer(f"http://127.0.0.1:{port}", directory)


def nginx_program() -> str:
    """Return the nginx of this machine; without one the program ends with the remedy."""
    found = find_nginx()
    if found is None:
        raise SystemExit(
            "benchmarks: nginx is not installed; it is the API that is called: apt-get install nginx-light"
        )
    return found


def find_nginx() -> str | None:
    """Return the nginx of this machine, if it has one."""
    # Debian has it where only root's PATH leads.
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
