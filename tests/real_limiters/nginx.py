"""nginx's limiters: ``limit_req``, of calls a second, and ``limit_conn``, of calls in flight."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from real_limiters.served import ProgramProcess, Served, ServerProcess, program, running

RAW_API = Path(__file__).parent / "programs/raw_api.py"
_CONFIG = """\
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 4096; }}
http {{
  log_format answers '$msec $request_time $status $request_uri';
  access_log {folder}/answers.log answers;
  default_type application/json;
  keepalive_requests 1000000;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  {http}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    {server}
  }}
}}
"""
# A bare "return" would answer before the limits are asked.
_REQ_HTTP = "limit_req_zone $server_port zone=all:1m rate={rate}r/s;"
_REQ_SERVER = """\
limit_req_status {status};
    location / {{ limit_req zone=all burst={burst} nodelay; try_files /none @answer; }}
    location @answer {{ return 200 '{{"ok": true}}'; }}"""
_CONN_HTTP = """\
limit_conn_zone $server_port zone=all:1m;
  upstream slow {{ server 127.0.0.1:{upstream}; keepalive 64; }}"""
_CONN_SERVER = """\
limit_conn_status {status};
    location / {{
      limit_conn all {most};
      proxy_http_version 1.1;
      proxy_set_header Connection '';
      proxy_pass http://slow;
    }}"""


class NginxProcess(ServerProcess):
    """nginx as one process."""

    def __init__(self, folder: Path, http: str, server: str, **values: int) -> None:
        super().__init__(folder)
        self._program = _nginx()
        places = {"folder": self.folder, "port": self.port}
        parts = {name: text.format(**places, **values) for name, text in (("http", http), ("server", server))}
        (self.folder / "nginx.conf").write_text(_CONFIG.format(**places, **parts))

    def command(self) -> list[str]:
        """Return nginx's command line."""
        return [self._program, "-p", str(self.folder), "-c", str(self.folder / "nginx.conf")]


@contextmanager
def limit_req(folder: Path, *, rate: int, burst: int, status: int = 429) -> Iterator[Served]:
    """Let ``rate`` calls a second pass, and ``burst`` more at once, without delay."""
    with running(NginxProcess(folder, _REQ_HTTP, _REQ_SERVER, rate=rate, burst=burst, status=status)) as nginx:
        yield nginx


@contextmanager
def limit_conn(folder: Path, *, most: int, latency_s: float = 0.2, status: int = 429) -> Iterator[Served]:
    """Let ``most`` calls be in flight, to an API behind it that takes its time."""
    _nginx()  # before anything starts
    with running(ProgramProcess(folder, sys.executable, RAW_API, then=["slow", str(latency_s)])) as upstream:
        own = NginxProcess(folder, _CONN_HTTP, _CONN_SERVER, most=most, status=status, upstream=upstream.port)
        with running(own) as nginx:
            yield nginx


def _nginx() -> str:
    return program("nginx", package="nginx-light")
