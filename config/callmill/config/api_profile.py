"""ApiProfile: a third-party API as configured."""

from __future__ import annotations

import re
from enum import StrEnum
from functools import cached_property
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from msgspec import structs
from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, model_validator

from callmill.config.failure_policy import BreakerPolicy, RetryPolicy, breaker_or_none
from callmill.config.idempotency import Idempotency
from callmill.config.limit_spec import AUTO, Enforcer, LimitSpec, Scope, Unit, check_alone, parse_limit
from callmill.config.public_api import PublicApi, covers, resolve
from callmill.config.secret_refs import checked_reference, checked_schemed_reference, is_reference, split_reference
from callmill.config.table import Pointer, Seconds, Table
from callmill.config.tenant import checked_tenant
from callmill.config.throttle_policy import ThrottlePolicy

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CALLABLE = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
_SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie", "x-api-key", "api-key"})


def _base_url(url: str) -> str:
    if any(character <= " " or character == "\x7f" for character in url) or not url.isascii():
        raise ValueError("must be plain ASCII without white space; write an international host name as xn--...")
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("must be an absolute http or https URL, such as https://api.example.com")
    if "@" in parts.netloc:
        raise ValueError("must not hold credentials; put them into auth, by reference")
    if "?" in url or "#" in url:
        raise ValueError("must not have a query or a fragment")
    _ = parts.port  # Raises ValueError for a port that is none.
    normal = f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}"
    if not covers(normal, normal):
        raise ValueError("must not hold dot segments or backslashes")
    return normal


def _account(text: str) -> str:
    if not text.strip() or len(text) > 100 or not text.isprintable():
        raise ValueError("must be 1 to 100 printable characters")
    return text


def _header_name(name: str) -> str:
    if not _TOKEN.fullmatch(name):
        raise ValueError("is no header name")
    return name


def _header_value(value: str) -> str:
    if any((character < " " and character != "\t") or character == "\x7f" for character in value):
        raise ValueError("must not hold control characters")
    return value


def _limits(texts: list[str]) -> list[str]:
    seen: dict[tuple[Unit, int, Scope, bool], str] = {}
    for text in texts:
        spec = parse_limit(text)
        first = seen.setdefault((spec.unit, spec.window_s, spec.scope, spec == AUTO), text)
        if first is not text:
            raise ValueError(f"{first!r} and {text!r} limit the same thing; keep the one that holds")
    check_alone(map(parse_limit, texts))
    return texts


def _model_limits(texts: list[str]) -> list[str]:
    for text in _limits(texts):
        spec = parse_limit(text)
        if spec.scope is Scope.KEY:
            raise ValueError(f"{text!r}: a limit of one model holds for it whatever the key")
        if not spec.amount:
            raise ValueError(f"{text!r}: what is not known is found for a whole API only; write it into limits")
    return texts


def _key_limits(texts: list[str]) -> list[str]:
    for text in _limits(texts):
        if not parse_limit(text).amount:
            raise ValueError(f"{text!r}: holds for a whole API only; write it into the limits of the API")
    return texts


def _idempotency_header(value: Any) -> Any:
    if value is False:
        return None
    if not isinstance(value, str) or not _TOKEN.fullmatch(value):
        raise ValueError("must be a header name, or false to send none")
    return value


def _callable(name: str) -> str:
    if not _CALLABLE.fullmatch(name):
        raise ValueError("must name a callable as module:callable, such as mypackage.auth:session")
    return name


def _usage(value: Any) -> Any:
    return {"total": value} if isinstance(value, str) else value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, dict) else value


def _parameter(name: str) -> str:
    if not name or not name.isprintable():
        raise ValueError("must be the name of a query parameter, such as key")
    return name


HeaderName = Annotated[str, AfterValidator(_header_name)]
LowerHeaderName = Annotated[HeaderName, AfterValidator(str.lower)]
HeaderValue = Annotated[str, AfterValidator(_header_value)]
Reference = Annotated[str, AfterValidator(checked_reference)]
ParameterName = Annotated[str, AfterValidator(_parameter)]
Tenant = Annotated[str, AfterValidator(checked_tenant)]
SchemedReference = Annotated[str, AfterValidator(checked_schemed_reference)]
Weight = Annotated[float, Field(ge=0.001, le=1000)]
CallableName = Annotated[str, AfterValidator(_callable)]


class Charge(StrEnum):
    """When the API's server counts a call's tokens."""

    ACTUAL = "actual"
    """What the call really cost, once that is known."""
    ADMISSION = "admission"
    """What the call asks for, when it arrives; nothing is given back."""


class Credential(Table):
    """One credential, by reference: exactly one of bearer, header, query, basic.

    Attributes:
        name: What people call it, where there are several; the reference's name unless given.
        limits: What holds for this one of several, beside the limits "per key" of the API.
        bearer: Sent as ``Authorization: Bearer ...``.
        header: Header names and the references to their values, a scheme before them if needed.
        query: Query parameters and the references to their values.
        basic: User and password; at least one is a reference, and the password is one or empty.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] | None = None
    limits: Annotated[list[str], AfterValidator(_key_limits)] = Field(default_factory=list)
    bearer: Reference | None = None
    header: dict[HeaderName, SchemedReference] | None = Field(default=None, min_length=1)
    query: dict[ParameterName, Reference] | None = Field(default=None, min_length=1)
    basic: Annotated[list[HeaderValue], Field(min_length=2, max_length=2)] | None = None

    @model_validator(mode="after")
    def _one_and_by_reference(self) -> Credential:
        if sum(given is not None for given in (self.bearer, self.header, self.query, self.basic)) != 1:
            raise ValueError(
                "takes exactly one of bearer, header, query, basic; for several credentials, write a list of tables"
            )
        if self.basic is not None:
            user, password = self.basic
            if password or not is_reference(user):
                checked_reference(password)
        return self

    @property
    def reference_name(self) -> str:
        """The name of the variable or file that holds the secret, as far as a name of a credential may have it."""
        tables = (self.header or {}), (self.query or {})
        texts = [self.bearer or "", *(text for table in tables for text in table.values()), *reversed(self.basic or [])]
        kind_and_name = next((split_reference(text)[1:] for text in texts if is_reference(text)), ("", "default"))
        return re.sub(r"[^A-Za-z0-9_.-]", "-", kind_and_name[1].rpartition("/")[2])[:64]


class Usage(Table):
    """Where an answer says what the call cost: JSON pointers into its body.

    Attributes:
        total: To all of its tokens; the sum of the other two where only these are there.
        input: To those of the request.
        output: To those of the answer.
    """

    total: Pointer | None = None
    input: Pointer | None = None
    output: Pointer | None = None

    @model_validator(mode="after")
    def _tells_the_whole(self) -> Usage:
        if self.total is None and (self.input is None or self.output is None):
            raise ValueError("needs total, or both input and output")
        return self


class ApiProfile(Table):
    """A third-party API as configured.

    Attributes:
        name: Name of the API, the table's name.
        base_url: Where it is, without a trailing slash.
        account: Any text that distinguishes it from another API of the same name at the same URL.
        auth: Its credentials; several are a key pool.
        limits: Its limits as written; ``limit_specs`` has them parsed.
        enforcer: How its server counts.
        burst: Calls that a bucket server takes at once.
        quantum: Seconds of the parts in which a server counts longer windows, where it does.
        timeout: Seconds for a whole call.
        connect_timeout: Seconds for opening a connection.
        throttle: How it says that it wants fewer calls.
        retry: How failed calls are repeated.
        breaker: When it counts as down; None (``false`` in TOML): never.
        fallback: The API that gets its calls while it is down or paused for long.
        model: JSON pointer to the model in a request's body.
        models: Limits of single models, besides those of the API; ``model_limit_specs`` has them parsed.
        usage: Where the answer says what the call cost; a text is the pointer to the total.
        max_tokens: JSON pointer to the most tokens that a request's body allows its answer.
        charge: When the server counts tokens.
        cost: ``module:callable`` that estimates what a call will cost.
        actual_cost: ``module:callable`` that reads from an answer what the call cost.
        transport: The HTTP client that makes the calls.
        session_factory: ``module:callable`` that returns a requests.Session; only for the requests transport.
        reuse_connections: Whether a connection may be reused for further calls.
        allow_private_addresses: Whether its host may resolve to a private, loopback or link-local address.
        headers: Headers sent with every call; values may be references to secrets.
        exact_headers: Names of request headers that must go out in this very case.
        max_response_bytes: Largest body that is read, decompressed.
        idempotency_header: Header that carries a job's idempotency key; None (``false`` in TOML) sends none.
        idempotency: Which calls may be repeated when it is unknown whether the API executed them.
        follow_redirects: Whether redirects to a URL under the base URL are followed.
        keep_headers: Answer headers that outcomes keep, in lower case.
        max_connections: Connections to the API that one worker process opens at most.
        tenants: Weights of tenants, by name: the part of the limits that each gets beside others. Unnamed ones have 1.
        ca_file: PEM file of certificate authorities to trust instead of the system's.
    """

    name: str
    base_url: Annotated[str, AfterValidator(_base_url)]
    account: Annotated[str, AfterValidator(_account)] | None = None
    auth: Annotated[list[Credential], BeforeValidator(_listed)] = Field(default_factory=list)
    limits: Annotated[list[str], AfterValidator(_limits)] = Field(default_factory=list)
    enforcer: Enforcer = Field(default=Enforcer.UNKNOWN, strict=False)
    burst: int = Field(default=1, ge=1)
    quantum: Annotated[float, Field(ge=0.1, le=3600)] | None = None
    timeout: Seconds = 60
    connect_timeout: Seconds = 10
    throttle: ThrottlePolicy = Field(default_factory=ThrottlePolicy)
    retry: RetryPolicy = Field(default_factory=RetryPolicy)
    breaker: Annotated[BreakerPolicy | None, BeforeValidator(breaker_or_none)] = Field(default_factory=BreakerPolicy)
    fallback: str | None = None
    model: Pointer | None = None
    models: dict[str, Annotated[list[str], AfterValidator(_model_limits)]] = Field(default_factory=dict)
    usage: Annotated[Usage, BeforeValidator(_usage)] | None = None
    max_tokens: Pointer | None = None
    charge: Charge = Field(default=Charge.ACTUAL, strict=False)
    cost: CallableName | None = None
    actual_cost: CallableName | None = None
    transport: Literal["pyreqwest", "requests"] = "pyreqwest"
    session_factory: CallableName | None = None
    reuse_connections: bool = True
    allow_private_addresses: bool = False
    headers: dict[HeaderName, HeaderValue] = Field(default_factory=dict)
    exact_headers: list[HeaderName] = Field(default_factory=lambda: ["SOAPAction"])
    max_response_bytes: int = Field(default=8 * 1024 * 1024, ge=1)
    idempotency_header: Annotated[str | None, BeforeValidator(_idempotency_header)] = "Idempotency-Key"
    idempotency: Idempotency = Field(default=Idempotency.BY_METHOD, strict=False)
    follow_redirects: bool = True
    keep_headers: list[LowerHeaderName] = Field(default_factory=lambda: ["x-request-id", "request-id", "content-type"])
    max_connections: int = Field(default=500, ge=1)
    tenants: dict[Tenant, Weight] = Field(default_factory=dict)
    ca_file: str | None = None

    _source: Path | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _keys_agree(self) -> ApiProfile:
        if self.burst > 1 and self.enforcer is not Enforcer.BUCKET:
            raise ValueError('burst needs enforcer = "bucket": no other server takes calls at once')
        if self.session_factory and self.transport != "requests":
            raise ValueError('session_factory needs transport = "requests"')
        if self.idempotency is Idempotency.BY_KEY and self.idempotency_header is None:
            raise ValueError('idempotency = "by-key" needs idempotency_header: without it no key is sent')
        if not self.allow_private_addresses and _is_private_literal(self.base_url):
            raise ValueError("base_url is a private address; set allow_private_addresses = true if that is meant")
        if literal := next((name for name, value in self.headers.items() if _is_literal_secret(name, value)), None):
            raise ValueError(f'headers.{literal} must refer to the secret as "env:NAME" or "file:/path"')
        given = [credential.name for credential in self.auth if credential.name]
        if twice := next((name for name in given if given.count(name) > 1), None):
            raise ValueError(f"auth: two credentials are named {twice!r}; people tell them apart by their names")
        return self

    @property
    def source(self) -> Path | None:
        """The file that the profile was read from."""
        return self._source

    @cached_property
    def limit_specs(self) -> tuple[LimitSpec, ...]:
        """The limits, parsed, in the order written."""
        return tuple(parse_limit(text) for text in self.limits)

    @cached_property
    def key_limit_specs(self) -> dict[str, tuple[LimitSpec, ...]]:
        """Each credential's own limits, parsed, by its name; one of no name where there is no credential."""
        return {
            name: tuple(structs.replace(parse_limit(text), scope=Scope.KEY) for text in credential.limits)
            for name, credential in zip(_key_names(self.auth), self.auth, strict=True)
        } or {"default": ()}

    @cached_property
    def model_limit_specs(self) -> dict[str, tuple[LimitSpec, ...]]:
        """The limits of single models, parsed, by the model's name."""
        return {
            model: tuple(structs.replace(parse_limit(text), scope=Scope.MODEL) for text in texts)
            for model, texts in self.models.items()
        }

    def covers(self, url: str) -> bool:
        """Say whether an absolute URL lies under the base URL."""
        return covers(self.base_url, url)

    def resolve(self, url: str) -> str:
        """Return the absolute URL of a job's ``url``.

        Raises:
            ValueError: It is neither a path nor covered by this API.
        """
        return resolve(self.base_url, url)

    def public_facts(self) -> PublicApi:
        """Return what may leave the worker: no credential, no header, no reference to either."""
        return PublicApi(
            name=self.name,
            base_url=self.base_url,
            limits=tuple(str(spec) for spec in self.limit_specs),
            enforcer=self.enforcer.value,
            burst=self.burst,
            quantum=self.quantum,
            usage=None if self.usage is None else self.usage.total,
            model=self.model,
            models={model: tuple(map(str, specs)) for model, specs in self.model_limit_specs.items()},
            timeout=self.timeout,
            account=self.account,
        )


def _key_names(credentials: list[Credential]) -> list[str]:
    names: list[str] = []
    for credential in credentials:
        name = credential.name or credential.reference_name
        names.append(name if name not in names else f"{name}.{len(names) + 1}")
    return names


def _is_private_literal(base_url: str) -> bool:
    host = urlsplit(base_url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return not ip_address(host).is_global
    except ValueError:
        return False


def _is_literal_secret(name: str, value: str) -> bool:
    return name.lower() in _SECRET_HEADERS and not is_reference(value)
