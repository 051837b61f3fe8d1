"""URLs of Redis: one server, or a primary that Sentinels know.

redis-py has no URL for Sentinel; the form here is the one that most Python libraries took over from
Redis-Sentinel-Url: ``redis+sentinel://[[user]:password@]host[:port][,host[:port]...]/service[/db]``. User and password
are those of the Redis servers. In every URL, ``?password_file=/path`` stands for the password that the file holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from msgspec import Struct

from callmill.config.redaction import hide, redacted

_SCHEMES = frozenset({"redis", "rediss"})
_SENTINEL_SCHEMES = {"redis+sentinel": False, "rediss+sentinel": True}
_SENTINEL_PORT, _MOST_PORT = 26379, 65535
_FILE_PARAMETER = "password_file"
_SENTINEL_LOGIN = frozenset({"sentinel_username", "sentinel_password"})
_REMEDY = "write redis://[:password@]host:port/db, or rediss:// for TLS"
_SENTINEL_REMEDY = "write redis+sentinel://[:password@]host:port,host:port,host:port/service/db, or rediss+sentinel://"


class SentinelUrl(Struct, frozen=True):
    """Where Sentinels are, and what they are asked for.

    Attributes:
        sentinels: Host and port of each.
        service: The name under which they know the primary.
        db: Number of the database.
        username: Of the Redis servers; None: the default user.
        password: Of the Redis servers.
        tls: Whether Redis servers and Sentinels are spoken to over TLS.
        ssl: ``ssl_...`` parameters of redis-py, as text.
        sentinel_login: ``username`` and ``password`` of the Sentinels, where they have any.
    """

    sentinels: tuple[tuple[str, int], ...]
    service: str
    db: int
    username: str | None
    password: str | None
    tls: bool
    ssl: Mapping[str, str]
    sentinel_login: Mapping[str, str]

    @classmethod
    def parse(cls, url: str) -> SentinelUrl:
        """Read a URL for which ``is_sentinel`` is true.

        Raises:
            ValueError: It is incomplete, or says what is not understood; the message never shows the password.
        """
        scheme, _, rest = url.partition("://")
        location, _, query = rest.partition("?")
        authority, _, path = location.partition("/")
        login, at, hosts = authority.rpartition("@")
        username, _, password = login.partition(":")
        service, _, db = path.strip("/").partition("/")
        shown = repr(redacted(f"{scheme}://{login}{at}host/{path}")) if at else repr(redacted(url))
        if not service:
            raise ValueError(f"{shown} names no service; {_SENTINEL_REMEDY}")
        if db and not db.isdecimal():
            raise ValueError(f"{shown} does not name a database by its number; {_SENTINEL_REMEDY}")
        parameters = dict(parse_qsl(query, keep_blank_values=True))
        if any(not name.startswith("ssl_") and name not in _SENTINEL_LOGIN for name in parameters):
            raise ValueError(
                f"{shown}: only ssl_..., sentinel_username, sentinel_password and password_file may follow the '?'"
            )
        return cls(
            sentinels=tuple(_address(host, shown) for host in hosts.split(",")),
            service=unquote(service),
            db=int(db or 0),
            username=unquote(username) or None,
            password=unquote(password) or None,
            tls=_SENTINEL_SCHEMES[scheme.lower()],
            ssl={name: value for name, value in parameters.items() if name.startswith("ssl_")},
            sentinel_login={
                name.removeprefix("sentinel_"): value for name, value in parameters.items() if name in _SENTINEL_LOGIN
            },
        )

    def kombu_url(self) -> str:
        """Return the Sentinels as kombu and Celery write them; service, TLS and their login go another way."""
        login = ""
        if self.username or self.password:
            login = f"{quote(self.username or '', safe='')}:{quote(self.password or '', safe='')}@"
        hosts = (f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.sentinels)
        return ";".join(f"sentinel://{login}{host}/{self.db}" for host in hosts)


def is_sentinel(url: str) -> bool:
    """Say whether a URL names Sentinels."""
    return url.partition("://")[0].lower() in _SENTINEL_SCHEMES


def checked_redis_url(url: str) -> str:
    """Return the URL if it can name a Redis server, with the password of its ``password_file``.

    Raises:
        ValueError: It cannot, or the file holds no password; the message shows the form and never the password.
    """
    url = _with_password_of_file(url)
    if is_sentinel(url):
        SentinelUrl.parse(url)
        return url
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"is no Redis URL; {_REMEDY}") from None
    if parts.scheme not in _SCHEMES or not host:
        raise ValueError(f"{redacted(url)!r} is no Redis URL; {_REMEDY}")
    if any(not pair.startswith("ssl_") for pair in parts.query.split("&") if pair):
        raise ValueError(
            f"{redacted(url)!r}: only ssl_... parameters and password_file may follow the '?'; "
            "the others are Callmill's"
        )
    if parts.path.strip("/") and not parts.path.strip("/").isdecimal():
        raise ValueError(f"{redacted(url)!r} does not name a database by its number; {_REMEDY}")
    return url


def _with_password_of_file(url: str) -> str:
    location, _, query = url.partition("?")
    parameters = query.split("&")
    named = [parameter for parameter in parameters if parameter.partition("=")[0] == _FILE_PARAMETER]
    if not named:
        return url
    scheme, separator, rest = location.partition("://")
    authority, slash, path = rest.partition("/")
    login, _, hosts = authority.rpartition("@")
    username, _, password = login.partition(":")
    if password or len(named) > 1:
        raise ValueError(f"{redacted(url)!r} names more than one password; leave all but one out")
    secret = quote(_read_password(Path(unquote(named[0].partition("=")[2]))), safe="")
    others = "&".join(parameter for parameter in parameters if parameter not in named)
    return f"{scheme}{separator}{username}:{secret}@{hosts}{slash}{path}" + (f"?{others}" if others else "")


def _read_password(path: Path) -> str:
    try:
        password = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the password file {path}: {error}") from error
    if not password:
        raise ValueError(f"the password file {path} is empty; write the password into it")
    hide(password)
    return password


def _address(text: str, shown: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(_SENTINEL_PORT)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) <= _MOST_PORT:
        raise ValueError(f"{shown}: one of its Sentinels is no host:port; {_SENTINEL_REMEDY}")
    return host, int(port)
