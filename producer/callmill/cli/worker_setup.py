"""What a worker needs, checked before any process is started for it."""

from __future__ import annotations

import os

from callmill.config.alert_policy import resolve_webhooks
from callmill.config.credentials import resolve_credentials
from callmill.config.profiles import ApiProfile, find_alerts, find_profiles, profiles_path
from callmill.config.settings import Settings
from callmill.errors import ConfigurationError


def checked_profiles(settings: Settings) -> dict[str, ApiProfile]:
    """Return the profiles that a worker here would serve, their credentials in place.

    Raises:
        ConfigurationError: There is no profile, or something in one, in a credential or in [alerts] is wrong.
    """
    profiles = find_profiles(settings)
    if not profiles:
        where = profiles_path(settings) or "config/apis.toml or ./apis.toml"
        raise ConfigurationError(
            f"no API profile: write [apis.NAME] tables into {where}, or set CALLMILL_APIS to the file's path"
        )
    for profile in profiles.values():
        resolve_credentials(profile)
    if (alerts := find_alerts(settings)) is not None:
        resolve_webhooks(alerts)
    return profiles


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
