"""Settings: what the environment says, as ``CALLMILL_*`` variables."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from callmill.config.problems import describe
from callmill.config.redaction import redacted
from callmill.config.redis_url import checked_redis_url
from callmill.errors import ConfigurationError

__all__ = ["Settings", "load_settings", "redacted"]

_PREFIX = "CALLMILL_"
_URL_FIELDS = frozenset({"redis_url", "broker_url", "limiter_url"})


def _default_state_dir() -> Path:
    state_home = os.environ.get("XDG_STATE_HOME", "")
    # The XDG specification: a relative path is invalid and to be ignored.
    if state_home.startswith("/"):
        return Path(state_home, "callmill")
    try:
        return Path("~/.local/state/callmill").expanduser().absolute()
    except RuntimeError:  # a user without a home, as in containers
        return Path("/var/lib/callmill")


def _absolute(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        raise ValueError(f"{path}: cannot expand '~', as the home directory is unknown; write the full path") from None


def _lowered(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


RedisUrl = Annotated[str, AfterValidator(checked_redis_url)]
UserPath = Annotated[Path, AfterValidator(_absolute)]


class Settings(BaseSettings):
    """What the environment says.

    Attributes:
        redis_url: Server of the ledger; None when it is left to the embedded server.
        broker_url: Server of Celery's queues. Defaults to ``redis_url``.
        limiter_url: Server of the limiter. Defaults to ``redis_url``.
        apis: Path of the API profiles. Defaults to config/apis.toml, then ./apis.toml, whichever exists.
        outcome_retention_hours: How long a finished batch and its outcomes are kept.
        open_batch_hours: How long a batch that was never sealed is kept without a word from its producer; then it is
            cancelled.
        chunks_per_process: Chunks that one worker process executes at once.
        calls_in_flight: Calls of one API that one worker process has in flight at once.
        shutdown_grace_s: Seconds that calls in flight get to finish when a worker is asked to stop.
        wait_replicas: Replicas that must have a submit or an outcome before it counts; 0: the primary alone decides.
        lease_s: Seconds that a chunk stays a worker's without a word from it: how long after a kill others take over.
        allow_unsafe_redis: Work on a Redis that would lose or evict data.
        memory_watermark: Share of Redis's ``maxmemory`` from which on producers wait; workers stop halfway to full.
        max_unread_outcomes_mb: MiB of outcomes that a batch keeps in Redis before it is held; 0: any number.
        only_batch: The only batch that a worker executes: ``callmill run`` sets it for its own workers.
        state_dir: Where the embedded server keeps its data.
        log_level: Least severe level that is logged.
        log_format: What a line of the log looks like: for people, or one JSON object.
    """

    model_config = SettingsConfigDict(env_prefix=_PREFIX, env_ignore_empty=True, extra="ignore", frozen=True)

    redis_url: RedisUrl | None = None
    broker_url: RedisUrl | None = Field(default_factory=lambda known: known.get("redis_url"))
    limiter_url: RedisUrl | None = Field(default_factory=lambda known: known.get("redis_url"))
    apis: UserPath | None = None
    outcome_retention_hours: float = Field(default=24, gt=0, allow_inf_nan=False)
    open_batch_hours: float = Field(default=24, gt=0, allow_inf_nan=False)
    chunks_per_process: int = Field(default=32, ge=1, le=1024)
    calls_in_flight: int = Field(default=1000, ge=1)
    shutdown_grace_s: float = Field(default=25, ge=0, allow_inf_nan=False)
    lease_s: float = Field(default=8, ge=1, allow_inf_nan=False)
    wait_replicas: int = Field(default=0, ge=0)
    allow_unsafe_redis: bool = False
    memory_watermark: float = Field(default=0.85, gt=0, le=1)
    max_unread_outcomes_mb: float = Field(default=1024, ge=0, allow_inf_nan=False)
    only_batch: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]{1,64}$")
    state_dir: UserPath = Field(default_factory=_default_state_dir)
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lowered)] = "info"
    log_format: Annotated[Literal["text", "json"], BeforeValidator(_lowered)] = "text"

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        return [
            (name, redacted(value) if name in _URL_FIELDS and value else value)
            for name, value in super().__repr_args__()
        ]


def load_settings(*, redis_url: str | None = None) -> Settings:
    """Read the environment as it is now; a ``redis_url`` given here wins over the variable.

    Raises:
        ConfigurationError: A variable is wrong; all wrong ones are named, one a line.
    """
    try:
        return Settings() if redis_url is None else Settings(redis_url=redis_url)
    except ValidationError as invalid:
        problems = [
            f"{_variable(error['loc'], given=redis_url is not None)}: {describe(error)}"
            for error in invalid.errors(include_input=False, include_url=False)
            # A URL that defaults to a wrong one is no second problem.
            if error["type"] != "default_factory_not_called"
        ]
    raise ConfigurationError("\n".join(problems))


def _variable(loc: tuple[int | str, ...], *, given: bool) -> str:
    field = str(loc[0]) if loc else ""
    return field if given and field == "redis_url" else _PREFIX + field.upper()
