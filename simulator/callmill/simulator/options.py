"""What a simulator is started with."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from msgspec import Struct

from callmill.config.limit_spec import LimitSpec
from callmill.errors import ConfigurationError
from callmill.simulator.latency import Latency
from callmill.simulator.tokens import Charging, TokenDraw


class EnforcerKind(StrEnum):
    """How limits are counted."""

    BUCKET = "bucket"
    """Token bucket: holds ``burst``, refilled continuously."""
    SLIDING = "sliding"
    """Sliding log: every window that ends at a call, exactly."""
    FIXED = "fixed"
    """Fixed window: a counter that starts anew at each multiple of the window since 1970."""
    NGINX = "nginx"
    """nginx's ``limit_req ... nodelay``, integer milliseconds and integer rates included."""


class HeaderStyle(StrEnum):
    """Which rate limit headers answers carry."""

    OPENAI = "openai"
    GITHUB = "github"
    IETF = "ietf"
    NONE = "none"


class SimulatorOptions(Struct, frozen=True, kw_only=True):
    """What a simulator is started with.

    Attributes:
        host: Address to listen on. Defaults to loopback: the simulator has no authentication.
        port: Port to listen on; 0 takes a free one.
        limits: Enforced together: a call that breaks one of them is charged to none.
        enforcer: How windows are counted; ``concurrent`` limits count calls in flight whatever it is.
        burst: For ``bucket`` the requests that it holds (default 1), for ``nginx`` the ``burst=`` of the directive
            (default 0). A bucket of tokens always holds one window's tokens.
        latency: Time from a call's arrival to its answer; a 429 is answered at once.
        tokens: What calls cost in tokens, drawn and told in the answers' ``usage``; None: what they ask for.
        charge: When limits in tokens are charged.
        error_rate: Share of accepted calls answered with one of ``error_statuses``.
        error_statuses: Drawn evenly.
        reset_rate: Share of accepted calls whose connection is reset (TCP RST) in place of the answer.
        hang_rate: Share of accepted calls that get no answer; the connection closes after ``hang_s``.
        malformed_rate: Share of accepted calls answered with no HTTP, with broken JSON, or with a truncated body.
        hang_s: Seconds that a hanging call is held.
        headers: Rate limit headers of the answers.
        seed: Of latencies, costs and faults; None takes a fresh one. The n-th accepted call gets
            the same with the same seed.
        log: File that gets one JSON line per call, appended; None for no log.

    Raises:
        ConfigurationError: Values that do not go together; the message names the option.
    """

    host: str = "127.0.0.1"
    port: int = 0
    limits: tuple[LimitSpec, ...] = ()
    enforcer: EnforcerKind = EnforcerKind.SLIDING
    burst: int | None = None
    latency: Latency = Latency()
    tokens: TokenDraw | None = None
    charge: Charging = Charging.ADMISSION
    error_rate: float = 0.0
    error_statuses: tuple[int, ...] = (500, 502, 503)
    reset_rate: float = 0.0
    hang_rate: float = 0.0
    malformed_rate: float = 0.0
    hang_s: float = 300.0
    headers: HeaderStyle = HeaderStyle.OPENAI
    seed: int | None = None
    log: Path | None = None

    def __post_init__(self) -> None:
        """Refuse values that do not go together."""
        self._check_faults()
        self._check_burst()
        if self.enforcer is EnforcerKind.NGINX:
            self._check_nginx()

    def _check_faults(self) -> None:
        rates = {
            "--error-rate": self.error_rate,
            "--reset-rate": self.reset_rate,
            "--hang-rate": self.hang_rate,
            "--malformed-rate": self.malformed_rate,
        }
        for option, rate in rates.items():
            if not 0 <= rate <= 1:
                raise ConfigurationError(f"{option} {rate:g}: a rate is from 0 to 1")
        if sum(rates.values()) > 1 + 1e-9:
            raise ConfigurationError(f"{', '.join(rates)} add up to {sum(rates.values()):g}; they may add up to 1")
        for status in self.error_statuses:
            if not 400 <= status <= 599:
                raise ConfigurationError(f"--error-status {status}: an error status is from 400 to 599")
        if self.error_rate and not self.error_statuses:
            raise ConfigurationError("--error-rate needs at least one --error-status")

    def _check_burst(self) -> None:
        if self.burst is None:
            return
        if self.enforcer not in (EnforcerKind.BUCKET, EnforcerKind.NGINX):
            raise ConfigurationError(f"--burst {self.burst}: only the enforcers 'bucket' and 'nginx' have a burst")
        least = 1 if self.enforcer is EnforcerKind.BUCKET else 0
        if self.burst < least:
            raise ConfigurationError(f"--burst {self.burst}: the burst of {self.enforcer.value!r} is at least {least}")

    def _check_nginx(self) -> None:
        for limit in self.limits:
            if limit.unit.is_tokens or limit.window_s > 60:
                raise ConfigurationError(
                    f"--limit {str(limit)!r}: nginx counts requests per second or per minute; use another --enforcer"
                )

    def describe(self) -> str:
        """Return the configuration in one line for people."""
        limits = ", ".join(map(str, self.limits)) or "no limit"
        burst = "" if self.burst is None else f", burst {self.burst}"
        faults = {
            "error": self.error_rate,
            "reset": self.reset_rate,
            "hang": self.hang_rate,
            "malformed": self.malformed_rate,
        }
        parts = [f"{limits} ({self.enforcer.value}{burst})", f"latency {self.latency}"]
        if self.tokens is not None:
            parts.append(f"tokens {self.tokens}")
        if self.charge is Charging.ANSWER:
            parts.append("tokens charged at the answer")
        parts += [f"{kind} {rate:g}" for kind, rate in faults.items() if rate]
        parts.append(f"headers {self.headers.value}")
        if self.seed is not None:
            parts.append(f"seed {self.seed}")
        if self.log is not None:
            parts.append(f"log {self.log}")
        return "; ".join(parts)
