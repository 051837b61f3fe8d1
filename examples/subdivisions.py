#!/usr/bin/env python3
"""Turn a table into a file of API calls: here the subdivisions of all countries (ISO 3166-2), one geocoding call a row.

    python examples/subdivisions.py > subdivisions.jsonl            # Debian: apt install iso-codes
    callmill run subdivisions.jsonl -o outcomes.jsonl --api geocoder

One's own rows work the same way. Each line of the file is one call:

    {"custom_id": ..., "method": ..., "url": ..., "body": ..., "api": ...}

- custom_id: what you find the outcome by later, unique in the file. A primary key is best.
- method, url: a path under the API's base URL, or a URL that the API's profile covers.
- body: what is sent as JSON; leave it out for a call without one.
- api: the profile in apis.toml; leave it out and say --api once.

CSV:       for row in csv.DictReader(file): print(json.dumps(call_of(row)))
JSON:      for row in json.load(file): ...
Database:  for row in connection.execute("select id, name from places"): ...

No file is needed at all from Python: `client.submit(Job(...) for row in rows)` takes any iterable.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ISO_CODES = Path("/usr/share/iso-codes/json")


def rows(folder: Path) -> list[dict[str, str]]:
    """Return one row per subdivision, with the name of its country."""
    countries = {
        country["alpha_2"]: country.get("common_name", country["name"])
        for country in json.loads((folder / "iso_3166-1.json").read_text(encoding="utf-8"))["3166-1"]
    }
    subdivisions = json.loads((folder / "iso_3166-2.json").read_text(encoding="utf-8"))["3166-2"]
    return [{**subdivision, "country": countries[subdivision["code"][:2]]} for subdivision in subdivisions]


def call_of(row: dict[str, str]) -> dict[str, Any]:
    """Return the call for one row: this is the function to write for data of one's own."""
    return {
        "custom_id": row["code"],
        "method": "POST",
        "url": "/geocode",
        "body": {"query": f"{row['name']}, {row['country']}", "type": row["type"]},
    }


def main() -> None:
    """Print one call per row."""
    arguments = argparse.ArgumentParser(description="Print one geocoding call per subdivision of ISO 3166-2.")
    arguments.add_argument("--iso-codes", type=Path, default=ISO_CODES, help="folder of Debian's iso-codes")
    arguments.add_argument("--every", type=int, default=1, metavar="N", help="take every N-th row only")
    chosen = arguments.parse_args()
    try:
        table = rows(chosen.iso_codes)
    except FileNotFoundError as error:
        sys.exit(f"{error.filename} is missing: apt install iso-codes, or name its folder with --iso-codes")
    for row in table[:: chosen.every]:
        print(json.dumps(call_of(row), ensure_ascii=False))


if __name__ == "__main__":
    main()
