"""Reads what Prometheus would, and the expressions that are asked of it."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from msgspec import Struct
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[1]
_SUFFIXES = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
_LABELS_OF_TARGETS = {"job", "instance"}


class Answer(Struct, frozen=True):
    """What was answered."""

    status: int
    text: str


def get(url: str, *, sign_in: str = "") -> Answer:
    """Ask for a page."""
    request = Request(url)  # noqa: S310 - http
    if sign_in:
        request.add_header("Authorization", "Basic " + base64.b64encode(sign_in.encode()).decode())
    try:
        with urlopen(request, timeout=10) as answer:  # noqa: S310 - http
            return Answer(answer.status, answer.read().decode())
    except HTTPError as error:
        with error:
            return Answer(error.code, error.read().decode())


class Exported:
    """Everything of Callmill that a scrape brought.

    Attributes:
        families: Name, as Prometheus writes it -> type.
        labels: Name of a series -> its labels' names.
        values: (name of a series, its labels) -> value.
    """

    def __init__(self, text: str) -> None:
        self.families: dict[str, str] = {}
        self.labels: dict[str, set[str]] = {}
        self.values: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for family in text_string_to_metric_families(text):
            if not family.name.startswith("callmill_"):
                continue
            self.families[family.name + ("_total" if family.type == "counter" else "")] = family.type
            for suffix in _SUFFIXES.get(family.type, [""]):
                self.labels.setdefault(family.name + suffix, set())
            for sample in family.samples:
                self.labels[sample.name] |= set(sample.labels)
                self.values[sample.name, frozenset(sample.labels.items())] = sample.value

    def value(self, name: str, **labels: str) -> float:
        """Return one value."""
        return self.values[name, frozenset(labels.items())]

    def sum(self, name: str, **labels: str) -> float:
        """Return the sum of all series of a name that have these labels."""
        return sum(
            value for (series, own), value in self.values.items() if series == name and own >= frozenset(labels.items())
        )

    def unknown(self, expression: str) -> set[str]:
        """Return what an expression names and what was not exported: metrics, and labels asked of them."""
        unknown = set()
        for name, matchers in re.findall(r"\b(callmill_\w+)(?:\{([^}]*)\})?", expression):
            if name not in self.labels:
                unknown.add(name)
                continue
            asked = set(re.findall(r"(\w+)\s*(?:=|!)", matchers))
            unknown |= {f"{name}{{{label}}}" for label in asked - self.labels[name] - _LABELS_OF_TARGETS}
        return unknown


def dashboard_expressions() -> Iterator[str]:
    """Yield every expression of the Grafana dashboard, its variables put in."""
    dashboard = json.loads((ROOT / "config/grafana/dashboards/callmill.json").read_text())
    for panel in _panels(dashboard):
        for target in panel.get("targets", ()):
            yield _without_variables(target["expr"])
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield re.fullmatch(r"label_values\((.*), *\w+\)", variable["query"]["query"])[1]
    for annotation in dashboard["annotations"]["list"]:
        yield annotation["expr"]


def _panels(dashboard: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", ())


def _without_variables(expression: str) -> str:
    return expression.replace("$__rate_interval", "1m").replace("$api", ".*")
