"""Lanes: one lane for each API that this process serves, made from the profiles."""

from __future__ import annotations

from collections.abc import Mapping

from redis.asyncio import Redis

from callmill.breaker import BreakerRules, BreakerStore
from callmill.config.credentials import resolve_headers
from callmill.config.profiles import ApiProfile
from callmill.limits import KeyRules, Limiter, LimitRules
from callmill.workers.call_cost import CallCosts
from callmill.workers.lane import Lane
from callmill.workers.request_builder import RequestBuilder
from callmill.workers.transports.factory import make_transport
from callmill.workers.transports.port import TransportOptions


async def open_lanes(
    profiles: Mapping[str, ApiProfile], limiter_redis: Redis, *, worker: str, calls_in_flight: int
) -> dict[str, Lane]:
    """Return a lane for each profile, its limiter started.

    Raises:
        ConfigurationError: A credential is missing, or a session factory or hook cannot be loaded.
    """
    lanes = {
        name: await _open_lane(profile, limiter_redis, worker, min(profile.max_connections, calls_in_flight))
        for name, profile in profiles.items()
    }
    for name, profile in profiles.items():
        if profile.fallback is not None:
            lanes[name].fall_back_to(lanes[profile.fallback])
    return lanes


async def _open_lane(profile: ApiProfile, limiter_redis: Redis, worker: str, max_in_flight: int) -> Lane:
    options = TransportOptions(
        max_connections=max_in_flight,
        max_response_bytes=profile.max_response_bytes,
        allow_private_addresses=profile.allow_private_addresses,
        connect_timeout_s=profile.connect_timeout,
        ca_file=profile.ca_file,
        session_factory=profile.session_factory,
    )
    rules = LimitRules(
        limits=profile.limit_specs,
        enforcer=profile.enforcer,
        burst=profile.burst,
        quantum_s=profile.quantum,
        keys=tuple(KeyRules(name, specs) for name, specs in profile.key_limit_specs.items()),
        models=profile.model_limit_specs,
        tenant_weights=profile.tenants,
    )
    limiter = Limiter(limiter_redis, profile.name, rules, worker=worker)
    requests = RequestBuilder(profile, resolve_headers(profile))
    costs = CallCosts(profile, lambda: limiter.rules)
    transport = make_transport(profile.transport, options)
    await transport.warm_up(profile.base_url)
    await limiter.start()
    await costs.share(limiter_redis)
    store = BreakerStore(limiter_redis, profile.name, breaker_rules(profile), worker=worker)
    lane = Lane(profile, requests, transport, limiter, store, costs=costs, max_in_flight=max_in_flight)
    await lane.start()
    return lane


def breaker_rules(profile: ApiProfile) -> BreakerRules:
    """Return when an API's breaker opens, by its profile."""
    policy = profile.breaker
    if policy is None:
        return BreakerRules(errors=2.0, streak=0, retry_share=profile.retry.budget)
    return BreakerRules(
        errors=policy.errors,
        calls=policy.calls,
        window_s=policy.window,
        streak=policy.streak,
        probe_s=policy.probe,
        cap_s=policy.cap,
        retry_share=profile.retry.budget,
    )
