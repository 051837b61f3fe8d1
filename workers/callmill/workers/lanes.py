"""Lanes: one lane for each API that this process serves, made from the profiles."""

from __future__ import annotations

from collections.abc import Mapping

from redis.asyncio import Redis

from callmill.breaker import BreakerRules, BreakerStore
from callmill.config.credentials import resolve_credentials
from callmill.config.profiles import ApiProfile
from callmill.config.public_api import PublicApi
from callmill.limits import KeyRules, Limiter, LimitRules
from callmill.workers.call_cost import CallCosts
from callmill.workers.hold_subjects import open_hold_stores
from callmill.workers.lane import Lane
from callmill.workers.request_builder import RequestBuilder
from callmill.workers.transports.answer_room import AnswerRoom, AnswersOfApi
from callmill.workers.transports.factory import make_transport
from callmill.workers.transports.port import TransportOptions

_CONNECTING = 0.9
"""The share of a call's time that connecting may take."""


async def open_lanes(
    profiles: Mapping[str, ApiProfile],
    apis: Mapping[str, PublicApi],
    limiter_redis: Redis,
    *,
    worker: str,
    calls_in_flight: int,
    answers: AnswerRoom,
) -> dict[str, Lane]:
    """Return a lane for each profile, its limiter started; ``apis`` are their public facts, ``answers`` their room.

    Raises:
        ConfigurationError: A credential is missing, or a session factory or hook cannot be loaded.
    """
    lanes = {
        name: await _open_lane(
            profile,
            apis[name].limiter,
            limiter_redis,
            worker,
            max_in_flight=min(profile.max_connections, calls_in_flight),
            answers=answers,
        )
        for name, profile in profiles.items()
    }
    for name, profile in profiles.items():
        if profile.fallback is not None:
            lanes[name].fall_back_to(lanes[profile.fallback])
    return lanes


async def _open_lane(
    profile: ApiProfile, limited_as: str, limiter_redis: Redis, worker: str, *, max_in_flight: int, answers: AnswerRoom
) -> Lane:
    own_answers = AnswersOfApi(answers)
    options = TransportOptions(
        max_connections=max_in_flight,
        max_response_bytes=profile.max_response_bytes,
        allow_private_addresses=profile.allow_private_addresses,
        # Less than the whole call may take, so that a call without a connection is known not to have been sent.
        connect_timeout_s=min(profile.connect_timeout, _CONNECTING * profile.timeout),
        ca_file=profile.ca_file,
        session_factory=profile.session_factory,
        answers=own_answers,
        reuse_connections=profile.reuse_connections,
        exact_headers=tuple(profile.exact_headers),
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
    limiter = Limiter(limiter_redis, limited_as, rules, worker=worker)
    credentials = resolve_credentials(profile)
    requests = RequestBuilder(profile, credentials)
    costs = CallCosts(profile, lambda: limiter.rules)
    transport = make_transport(profile.transport, options)
    await transport.warm_up(profile.base_url)
    await limiter.start()
    await costs.share(limiter_redis, limited_as)
    store = BreakerStore(limiter_redis, limited_as, breaker_rules(profile), worker=worker)
    lane = Lane(
        profile,
        requests,
        transport,
        limiter,
        store,
        costs=costs,
        max_in_flight=max_in_flight,
        answers=own_answers,
        open_holds=lambda: open_hold_stores(
            limiter_redis, profile, limiter.key_names, credentials, name=limited_as, worker=worker
        ),
    )
    await lane.start()
    return lane


def breaker_rules(profile: ApiProfile) -> BreakerRules:
    """Return when an API's breaker opens, by its profile."""
    policy = profile.breaker
    if policy is None:
        return BreakerRules(errors=2.0, streak=0, jobs=0, retry_share=profile.retry.budget)
    return BreakerRules(
        errors=policy.errors,
        calls=policy.calls,
        window_s=policy.window,
        streak=policy.streak,
        jobs=policy.jobs,
        probe_s=policy.probe,
        cap_s=policy.cap,
        retry_share=profile.retry.budget,
    )
