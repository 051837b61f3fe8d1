"""Measure how long a victim's calls take alone and beside a hostile tenant of each kind.

``python benchmarks/bench_hostile_tenants.py [--only WORDS]... [--workers 2] [--tenants 6000] [--models 20000]``;
some ten minutes with everything. The victim makes 20 calls of an API that the hostile tenant uses as well; the slower
of two rounds counts.
Prints a table as it goes; exit code 1: a target is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"
sys.path += [str(TESTS), str(TESTS / "contract")]

from hostile_tenants import HOSTILE, alone_and_beside_s, models, profiles, tenants, whimsical_api  # noqa: E402 - as above
from limits_site import limits_site  # noqa: E402 - as above
from local_nodes import RedisProcess  # noqa: E402 - as above

_TWICE, _BEYOND_S = 2.0, 1.0
_TENANTS, _MODELS = "1,500 tenants", "3,000 models"


def main() -> int:
    """Measure what was asked for; return the exit code."""
    parser = argparse.ArgumentParser(description="Measure a victim's calls beside hostile tenants.")
    parser.add_argument("--only", action="append", metavar="WORDS", help="kinds with these words in their names")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tenants", type=int, help=f"so many instead of {_TENANTS}")
    parser.add_argument("--models", type=int, help=f"so many instead of {_MODELS}")
    options = parser.parse_args()
    kinds = [kind for kind in HOSTILE if not options.only or any(words in kind for words in options.only)]
    if options.tenants:
        HOSTILE[_TENANTS] = replace(HOSTILE[_TENANTS], attack=tenants(options.tenants))
    if options.models:
        for kind in kinds:
            if kind.startswith(_MODELS):
                HOSTILE[kind] = replace(HOSTILE[kind], attack=models(options.models))
    missed = 0
    with tempfile.TemporaryDirectory(prefix="callmill-bench-") as name, whimsical_api() as api:
        folder = Path(name)
        server = RedisProcess(folder).start()
        server.ready()
        try:
            with limits_site(folder, server.url, profiles(api.url, folder, kinds), workers=options.workers) as site:
                print("| hostile tenant | alone, s | beside, s | must be, s | |\n|---|---|---|---|---|", flush=True)
                for kind in kinds:
                    alone_s, beside_s = alone_and_beside_s(site.client, api, kind)
                    must_s = _TWICE * alone_s + _BEYOND_S
                    missed += beside_s > must_s
                    word = "ok" if beside_s <= must_s else "MISSED"
                    print(f"| {kind} | {alone_s:.2f} | {beside_s:.2f} | {must_s:.2f} | {word} |", flush=True)
        finally:
            server.teardown()
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
