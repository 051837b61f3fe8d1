"""requests.Sessions as the transport needs them: ours, or those of a user's factory."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from functools import partial
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from requests.utils import DEFAULT_ACCEPT_ENCODING, default_user_agent
from urllib3.poolmanager import PoolManager, ProxyManager

from callmill.errors import ConfigurationError
from callmill.workers.transports.authorities import read_authorities
from callmill.workers.transports.checked_connections import POOL_CLASSES
from callmill.workers.transports.content_codings import ACCEPT_ENCODING
from callmill.workers.transports.port import TransportOptions
from callmill.workers.transports.user_agent import USER_AGENT
from callmill.workers.user_callables import load_callable

SessionFactory = Callable[[], requests.Session]


class _Adapter(HTTPAdapter):
    """Trusts the authorities of a CA file alone, if there is one."""

    def __init__(self, ca_file: str | None) -> None:
        self._ca_file = ca_file
        super().__init__(pool_connections=16, pool_maxsize=1)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        if self._ca_file is not None:
            kwargs["ssl_context"] = ssl.create_default_context(cadata=read_authorities(self._ca_file).decode())
        super().init_poolmanager(*args, **kwargs)

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        super().cert_verify(conn, url, verify, cert)  # type: ignore[no-untyped-call] # not in the stubs
        if self._ca_file is not None:
            conn.ca_certs = None  # or requests would add its own authorities to those of the context


def session_factory(options: TransportOptions) -> SessionFactory:
    """Choose what makes the sessions, and try it once, so that a mistake shows at start.

    Raises:
        ConfigurationError: ``ca_file`` or ``session_factory`` is unusable.
    """
    make = _own_sessions(options.ca_file) if options.session_factory is None else _users(options.session_factory)

    def checked() -> requests.Session:
        session = make()
        _obey(session, options)
        return session

    checked().close()
    return checked


def _own_sessions(ca_file: str | None) -> SessionFactory:
    def make() -> requests.Session:
        session = requests.Session()
        # Neither proxies nor the credentials of a .netrc are taken from the surroundings.
        session.trust_env = False
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        session.headers = CaseInsensitiveDict(
            {"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": ACCEPT_ENCODING}
        )
        adapter = _Adapter(ca_file)
        session.mount("http://", adapter)
        session.mount("https://", adapter)
        return session

    return make


def _users(path: str) -> SessionFactory:
    found = load_callable("session_factory", path)

    def make() -> requests.Session:
        try:
            session = found()
        except Exception as error:
            raise ConfigurationError(f"session_factory = {path!r} raised {error!r}") from error
        if not isinstance(session, requests.Session):
            raise ConfigurationError(
                f"session_factory = {path!r} returned {type(session).__name__}, not a requests.Session"
            )
        if session.headers.get("User-Agent") == default_user_agent():
            session.headers["User-Agent"] = USER_AGENT
        if session.headers.get("Accept-Encoding") == DEFAULT_ACCEPT_ENCODING:
            session.headers["Accept-Encoding"] = ACCEPT_ENCODING
        return session

    return make


def _obey(session: requests.Session, options: TransportOptions) -> None:
    # Even when told not to follow redirects, requests reads a redirect's body, whatever its size, and fails when the
    # target is not a URL. Without a target it leaves the answer alone.
    session.get_redirect_target = _no_target  # type: ignore[method-assign]
    for prefix, adapter in session.adapters.items():
        if isinstance(adapter, HTTPAdapter):
            adapter.poolmanager.pool_classes_by_scheme = POOL_CLASSES
            adapter.proxy_manager_for = partial(_obedient_proxies, adapter.proxy_manager_for)  # type: ignore[method-assign]
        elif not options.allow_private_addresses:
            raise ConfigurationError(
                f"session_factory = {options.session_factory!r}: the adapter for {prefix} is no requests HTTPAdapter, "
                "so the addresses it connects to cannot be checked; set allow_private_addresses = true to use it"
            )


def _obedient_proxies(make: Callable[..., PoolManager], proxy: str, **settings: Any) -> PoolManager:
    manager = make(proxy, **settings)
    if type(manager) is ProxyManager:  # The one for SOCKS has its own kind of pools.
        manager.pool_classes_by_scheme = POOL_CLASSES
    return manager


def _no_target(resp: requests.Response) -> None:  # noqa: ARG001 - requests defines the name
    return None
