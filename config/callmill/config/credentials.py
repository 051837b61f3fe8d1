"""Secrets, read where they are used: in workers, just before their first call."""

from __future__ import annotations

from base64 import b64encode

from callmill.config.api_profile import ApiProfile, Credential
from callmill.config.redaction import hide
from callmill.config.secret_refs import is_reference, read_reference, split_reference
from callmill.errors import ConfigurationError


def resolve_headers(profile: ApiProfile) -> list[dict[str, str]]:
    """Return the headers of every call to the API, one dict for each credential; one dict where there is none.

    The profile's static headers are in each; a credential's header wins over a static one of the same name.

    Raises:
        ConfigurationError: A variable or file is missing, empty or no header value; all of them, one a line.
    """
    problems: list[str] = []
    static = {
        name: _value(profile, f"headers.{name}", text, problems) if is_reference(text) else text
        for name, text in profile.headers.items()
    }
    several = len(profile.auth) > 1
    sets = [static] if not profile.auth else []
    for position, credential in enumerate(profile.auth):
        own = _credential(profile, f"auth[{position}]" if several else "auth", credential, problems)
        taken = {name.lower() for name in own}
        sets.append({name: value for name, value in static.items() if name.lower() not in taken} | own)
    if problems:
        raise ConfigurationError("\n".join(problems))
    return sets


def _credential(profile: ApiProfile, key: str, credential: Credential, problems: list[str]) -> dict[str, str]:
    if credential.bearer is not None:
        return {"Authorization": f"Bearer {_value(profile, f'{key}.bearer', credential.bearer, problems)}"}
    if credential.header is not None:
        return {
            name: _value(profile, f"{key}.header.{name}", text, problems) for name, text in credential.header.items()
        }
    user, password = (
        _value(profile, f"{key}.basic[{position}]", text, problems) if is_reference(text) else text
        for position, text in enumerate(credential.basic or ["", ""])
    )
    encoded = b64encode(f"{user}:{password}".encode()).decode()
    hide(encoded)
    return {"Authorization": f"Basic {encoded}"}


def _value(profile: ApiProfile, key: str, reference: str, problems: list[str]) -> str:
    scheme, kind, name = split_reference(reference)
    try:
        secret = read_reference(reference, profile.source)
    except ValueError as error:
        problems.append(f"{_place(profile, key)}: {error}")
        return ""
    if not secret.isascii() or not secret.isprintable():
        problems.append(f"{_place(profile, key)}: {kind}:{name} holds characters that no header can carry")
    return scheme + secret


def _place(profile: ApiProfile, key: str) -> str:
    return f"{profile.source or 'profile'}: [apis.{profile.name}] {key}"
