"""The dashboard's server: Flower with our pages, set up for Callmill's Celery app and made safe before it listens."""

from __future__ import annotations

import atexit
import secrets
import signal
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from flower import command as flower_command
from flower.urls import settings as flower_settings
from tornado.options import Error as OptionError
from tornado.options import options

from callmill.config.celery import app
from callmill.config.log_format import set_up_log
from callmill.config.settings import load_settings
from callmill.dashboard.access import LOOPBACK, check_address, check_credentials
from callmill.dashboard.figures import Figures
from callmill.dashboard.flower_app import CallmillFlower
from callmill.dashboard.metrics_site import add_metrics_page
from callmill.dashboard.scaling_site import ScalingReader
from callmill.dashboard.task_texts import COLUMNS, readable
from callmill.errors import ConfigurationError, OutsideError
from callmill.overview.scaling_adviser import ScalingAdviser
from callmill.overview.workers_wanted import ScalingRules

_ALL_INTERFACES = frozenset({"", "0.0.0.0", "::"})
_TASKS_KEPT = 10_000
"""Chunks that Flower remembers: those of some million jobs, in some ten MB."""


class DashboardServer:
    """Flower and our pages on a socket.

    Args:
        chosen: Flower options by name that win over every other source.
        flower_arguments: Further Flower options, as ``--name=value``; they win over ``FLOWER_*`` variables and
            ``flowerconfig.py``, and these over our defaults.
        make_sign_in: Make up who may sign in, where nobody said.
        known_hosts: Names by which it answers without a sign-in, beside the loopback's.

    Attributes:
        made_sign_in: What was made up, as USER:PASSWORD; empty: nothing was.

    Raises:
        ConfigurationError: An option is wrong, or others could open the dashboard without authentication.
        ServerNotFoundError: No Redis is configured and no embedded server runs.
        OutsideError: The address cannot be listened on.
    """

    def __init__(
        self,
        chosen: Mapping[str, Any],
        flower_arguments: Sequence[str] = (),
        *,
        make_sign_in: bool = False,
        known_hosts: Collection[str] = (),
    ) -> None:
        settings = load_settings()
        figures = Figures(settings)
        _set_options(chosen, flower_arguments)
        self.made_sign_in = ""
        if make_sign_in and not any(options.basic_auth or ()) and not options.auth:
            self.made_sign_in = f"callmill:{secrets.token_urlsafe(12)}"
            options.basic_auth = [self.made_sign_in]
        check_credentials(options.basic_auth or ())
        if not options.unix_socket:
            check_address(options.address, authenticated=bool(options.basic_auth or options.auth))
        self._read_only = bool(options.read_only)
        # Flower's own operations, on workers and tasks, are nothing that a worker of ours takes.
        options.read_only = True
        flower_command.extract_settings()
        flower_command.setup_logging()
        set_up_log("dashboard", level=settings.log_level, style=settings.log_format)
        flower_settings["xsrf_cookie_kwargs"] = {"samesite": "Strict"}
        self._flower = CallmillFlower(
            figures=figures,
            batch_control=not self._read_only,
            known_hosts=known_hosts,
            capp=app,
            options=options,
            **flower_settings,
        )
        self.scaling = ScalingReader(figures.load, ScalingAdviser(ScalingRules()))
        self.metrics = add_metrics_page(self._flower, figures, self.scaling)
        try:
            self._port = self._flower.start_http_server()
        except OSError as error:
            where = options.unix_socket or f"{options.address}:{options.port}"
            raise OutsideError(f"the dashboard cannot listen on {where}: {error.strerror or error}") from error

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the dashboard; the socket's path when it listens on one."""
        if options.unix_socket:
            return f"unix:{options.unix_socket}"
        scheme = "https" if "ssl_options" in flower_settings else "http"
        host = LOOPBACK if options.address in _ALL_INTERFACES else options.address
        prefix = f"/{options.url_prefix.strip('/')}/" if options.url_prefix else ""
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self._port}{prefix}"

    @property
    def read_only(self) -> bool:
        """Whether the pages lack everything that changes anything."""
        return self._read_only

    def run(self) -> None:
        """Serve until SIGTERM or Ctrl-C."""
        atexit.register(self._flower.stop)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        try:
            self._flower.start()
        except (KeyboardInterrupt, SystemExit):
            self._flower.stop()


def _set_options(chosen: Mapping[str, Any], flower_arguments: Sequence[str]) -> None:
    for argument in flower_arguments:
        name, equals, _ = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or name.replace("-", "_") not in options:
            raise ConfigurationError(f"{name if equals else argument!r} is no option of Flower; write --name=value")
    options.address = LOOPBACK
    options.read_only = None
    options.max_tasks = _TASKS_KEPT
    options.tasks_columns = COLUMNS
    options.format_task = readable
    try:
        flower_command.apply_env_options()
        flower_command.apply_options(sys.argv[0], list(flower_arguments))
        for name, value in chosen.items():
            setattr(options, name, value)
    except (OptionError, ValueError) as error:
        raise ConfigurationError(f"an option of Flower is wrong: {error}") from error
