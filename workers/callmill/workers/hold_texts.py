"""What users see when an API is held: what went wrong, and what to do about it. Pure."""

from __future__ import annotations

from urllib.parse import urlsplit

from callmill.config.api_profile import ApiProfile, Credential
from callmill.config.secret_refs import is_reference, split_reference
from callmill.workers.throttling import status_line
from callmill.workers.transports.port import FaultKind

_PAYMENT_REQUIRED, _PROXY_AUTHENTICATION = 402, 407
_CERTIFICATE_WORDS = ("certificate", "unknownissuer", "unknown issuer", "self-signed", "self signed", "hostname")
_TOO_OLD_WORDS = ("expired",)
_TOO_NEW_WORDS = ("notvalidyet", "not valid yet", "not yet valid")
_PORTS = {"http": 80, "https": 443}


def refusal_texts(profile: ApiProfile, key: int, status: int) -> tuple[str, str]:
    """Return cause and remedy for calls refused with a status because of credential ``key``, from 0."""
    if status == _PAYMENT_REQUIRED:
        return status_line(status), "check the account's plan and billing"
    if status == _PROXY_AUTHENTICATION:
        return status_line(status), "check the user and password in the proxy's URL"
    return status_line(status), _credential_remedy(profile, key)


def fault_texts(profile: ApiProfile, kind: FaultKind, message: str) -> tuple[str, str]:
    """Return cause and remedy for calls that never reached the API's host."""
    parts = urlsplit(profile.base_url)
    host = parts.hostname or profile.base_url
    host = f"[{host}]" if ":" in host else host
    address = f"{host}:{parts.port or _PORTS.get(parts.scheme, 443)}"
    match kind:
        case FaultKind.DNS:
            return f"{host} does not resolve", "check base_url"
        case FaultKind.TLS:
            return _tls_texts(host, address, message.lower())
        case FaultKind.FORBIDDEN_ADDRESS:
            return f"{host} has a private address", "check base_url, or set allow_private_addresses = true"
        case FaultKind.TIMEOUT:
            return f"{address} does not answer", "check base_url and the network"
        case _:
            return f"{address} accepts no connections", "check base_url, and that the server is running"


def _tls_texts(host: str, address: str, message: str) -> tuple[str, str]:
    if any(word in message for word in _TOO_OLD_WORDS):
        return f"the certificate of {host} has expired", "have it renewed, or check this machine's clock"
    if any(word in message for word in _TOO_NEW_WORDS):
        return f"the certificate of {host} is not valid yet", "check this machine's clock"
    if any(word in message for word in _CERTIFICATE_WORDS):
        return f"the certificate of {host} is not trusted", "check base_url, or set ca_file"
    return f"{address} does not answer with TLS", "check base_url"


def _credential_remedy(profile: ApiProfile, key: int) -> str:
    if key < len(profile.auth):
        names = _references(profile.auth[key])
    else:
        names = [_name_of(value) for value in profile.headers.values() if is_reference(value)]
    if names:
        return f"check {' and '.join(dict.fromkeys(names))}"
    if profile.session_factory is not None:
        return f"check the credentials of {profile.session_factory}"
    return f"{profile.name} has no auth in its profile"


def _references(credential: Credential) -> list[str]:
    named = (*(credential.header or {}).values(), *(credential.query or {}).values())
    texts = [credential.bearer or "", *named, *(credential.basic or [])]
    return [_name_of(text) for text in texts if is_reference(text)]


def _name_of(reference: str) -> str:
    return split_reference(reference)[2]
