"""A victim beside hostile tenants, with real workers: the kinds that once made others wait for minutes, or for ever."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hostile_tenants import WhimsicalApi, alone_and_beside_s, profiles, whimsical_api
from limits_site import Site, limits_site

NOISE_S = 4.0
"""What a busy machine may add to the second that it takes to see whose matter the trouble is."""

KINDS = (
    "hangs",
    "429 for ever",
    "401 for ever",
    "401 for ever, pool of keys",
    "one 429 that asks for a week",
    "remaining 0, reset in a week",
    "heavy calls",
)


@pytest.fixture(scope="module")
def api() -> Iterator[WhimsicalApi]:
    """Serve an API that answers as paths say."""
    with whimsical_api() as served:
        yield served


@pytest.fixture(scope="module")
def site(redis_server, tmp_path_factory, api) -> Iterator[Site]:
    """Run two workers."""
    folder = tmp_path_factory.mktemp("hostile")
    with limits_site(folder, redis_server.url, profiles(api.url, folder, KINDS), workers=2) as running:
        yield running
        running.assert_healthy()


@pytest.mark.parametrize("kind", KINDS)
def test_a_victim_beside_a_hostile_tenant(site, api, kind):
    """The slowest of 20 calls takes twice as long as alone and a second at most, and what a busy machine adds."""
    alone_s, beside_s = alone_and_beside_s(site.client, api, kind)
    print(f"{kind}: {alone_s:.2f} s alone, {beside_s:.2f} s beside")  # noqa: T201 - the figure, where it is asked for
    assert beside_s <= 2 * alone_s + 1 + NOISE_S
