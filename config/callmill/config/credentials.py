"""Secrets, read where they are used: in workers, just before their first call."""

from __future__ import annotations

from base64 import b64encode

from msgspec import Struct

from callmill.config.api_profile import ApiProfile, Credential
from callmill.config.redaction import hide
from callmill.config.secret_refs import is_reference, read_reference, split_reference
from callmill.errors import ConfigurationError


class ResolvedCredential(Struct, frozen=True):
    """What every call with one credential carries.

    Attributes:
        headers: The credential's headers and the static ones of the profile.
        query: Query parameters; names and values are not encoded.
        secrets: The parts of these that must stay secret.
    """

    headers: dict[str, str] = {}
    query: dict[str, str] = {}
    secrets: tuple[str, ...] = ()


def resolve_credentials(profile: ApiProfile) -> list[ResolvedCredential]:
    """Return the API's credentials in order; if the profile has none, one without a secret of its own.

    The profile's static headers go with each; a credential's header wins over a static one of the same name.

    Raises:
        ConfigurationError: A variable or file is missing, empty or cannot be sent; all of them, one per line.
    """
    reader = _Reader(profile)
    static = {
        name: reader.read(f"headers.{name}", text) if is_reference(text) else text
        for name, text in profile.headers.items()
    }
    of_all = reader.take_secrets()
    several = len(profile.auth) > 1
    found = []
    for position, credential in enumerate(profile.auth):
        own = _headers(reader, f"auth[{position}]" if several else "auth", credential)
        query = _query(reader, f"auth[{position}]" if several else "auth", credential)
        taken = {name.lower() for name in own}
        headers = {name: value for name, value in static.items() if name.lower() not in taken} | own
        found.append(ResolvedCredential(headers, query, (*of_all, *reader.take_secrets())))
    if reader.problems:
        raise ConfigurationError("\n".join(reader.problems))
    return found or [ResolvedCredential(static, {}, of_all)]


class _Reader:
    """Reads one profile's references; collects their secrets and any problems."""

    def __init__(self, profile: ApiProfile) -> None:
        self.problems: list[str] = []
        self._profile = profile
        self._secrets: list[str] = []

    def read(self, key: str, reference: str, *, in_header: bool = True) -> str:
        """Return the secret behind a reference, preceded by its scheme."""
        scheme, kind, name = split_reference(reference)
        try:
            secret = read_reference(reference, self._profile.source)
        except ValueError as error:
            self.problems.append(f"{_place(self._profile, key)}: {error}")
            return ""
        if not secret.isprintable() or (in_header and not secret.isascii()):
            where = "header" if in_header else "URL"
            self.problems.append(
                f"{_place(self._profile, key)}: {kind}:{name} contains characters that a {where} cannot carry"
            )
        self._secrets.append(secret)
        return scheme + secret

    def add_secret(self, secret: str) -> None:
        """Add a secret derived from others."""
        hide(secret)
        self._secrets.append(secret)

    def drop_secret(self, text: str) -> None:
        """Drop a text that is not secret, although it came from a reference."""
        self._secrets = [secret for secret in self._secrets if secret != text]

    def take_secrets(self) -> tuple[str, ...]:
        """Return the secrets collected since the last call."""
        taken, self._secrets = tuple(self._secrets), []
        return taken


def _headers(reader: _Reader, key: str, credential: Credential) -> dict[str, str]:
    if credential.bearer is not None:
        return {"Authorization": f"Bearer {reader.read(f'{key}.bearer', credential.bearer)}"}
    if credential.header is not None:
        return {name: reader.read(f"{key}.header.{name}", text) for name, text in credential.header.items()}
    if credential.basic is not None:
        return {"Authorization": f"Basic {_basic(reader, f'{key}.basic', *credential.basic)}"}
    return {}


def _basic(reader: _Reader, key: str, user: str, password: str) -> str:
    name = reader.read(f"{key}[0]", user) if is_reference(user) else user
    if password and is_reference(user):
        reader.drop_secret(name)  # often an account id, which many answers contain
    secret = reader.read(f"{key}[1]", password) if is_reference(password) else password
    encoded = b64encode(f"{name}:{secret}".encode()).decode()
    reader.add_secret(encoded)
    return encoded


def _query(reader: _Reader, key: str, credential: Credential) -> dict[str, str]:
    return {
        name: reader.read(f"{key}.query.{name}", reference, in_header=False)
        for name, reference in (credential.query or {}).items()
    }


def _place(profile: ApiProfile, key: str) -> str:
    return f"{profile.source or 'profile'}: [apis.{profile.name}] {key}"
