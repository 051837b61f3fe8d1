"""The page about configuration says what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from callmill.config.alert_policy import AlertEvent, AlertPolicy
from callmill.config.api_profile import ApiProfile
from callmill.config.failure_policy import BreakerPolicy, RetryPolicy
from callmill.config.profiles import find_alerts, load_profiles
from callmill.config.settings import Settings, load_settings
from callmill.config.throttle_policy import ThrottlePolicy

PAGE = (Path(__file__).parents[2] / "docs/configuration.md").read_text()
ALERTS = (Path(__file__).parents[2] / "docs/alerts.md").read_text()
ALERT_ROWS = dict(re.findall(r"^\| `(alerts\.\w+)` \| (.*?) \|", ALERTS, re.MULTILINE))
ROWS = dict(re.findall(r"^\| `([\w.]+)` \| (.*?) \|", PAGE, re.MULTILINE))


def test_every_setting_and_key_is_documented():
    """The tables list every setting, every key of a profile and of its tables, and nothing else."""
    settings = {f"CALLMILL_{field.upper()}" for field in Settings.model_fields}
    retry = {f"retry.{field}" for field in RetryPolicy.model_fields}
    throttle = {f"throttle.{field}" for field in ThrottlePolicy.model_fields}
    breaker = {f"breaker.{field}" for field in BreakerPolicy.model_fields}
    alerts = {f"alerts.{field}" for field in AlertPolicy.model_fields}
    assert set(ALERT_ROWS) == alerts
    assert set(ROWS) == settings | retry | throttle | breaker | set(ApiProfile.model_fields) - {"name"}


@pytest.mark.parametrize("model", [Settings, ApiProfile, RetryPolicy, BreakerPolicy])
def test_documented_defaults_are_the_real_ones(model):
    """Where a table states a number, a text or a list as the default, it is the default."""
    prefix, spelt = {
        Settings: ("CALLMILL_", str.upper),
        RetryPolicy: ("retry.", str),
        BreakerPolicy: ("breaker.", str),
    }.get(model, ("", str))
    checked = 0
    for name, field in model.model_fields.items():
        if field.is_required() or name == "name":
            continue
        default = field.get_default(call_default_factory=True, validated_data={})
        if isinstance(default, int | float | str | tuple) and not isinstance(default, bool):
            stated = ROWS[prefix + spelt(name)].strip("`")
            assert stated in {json.dumps(default), str(default)}, name
            checked += 1
    assert checked >= 4


@pytest.mark.parametrize("name", ["max_refusals", "max_wait"])
def test_documented_bounds_of_refusals_are_the_real_ones(name):
    """What bounds the refusals of a job is stated with its default."""
    assert ROWS[f"throttle.{name}"] == str(getattr(ThrottlePolicy(), name))


def test_examples_load(tmp_path):
    """Every TOML example on the page is a file that loads."""
    examples = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) == 5
    for number, example in enumerate(examples):
        path = tmp_path / f"{number}.toml"
        path.write_text(example)
        assert load_profiles(path)


def test_example_of_alerts_loads(tmp_path, monkeypatch):
    """The example on the page about alerts loads, its defaults are the real ones, and every event is listed."""
    (example,) = re.findall(r"```toml\n(.*?)```", ALERTS, re.DOTALL)
    (tmp_path / "apis.toml").write_text(example)
    monkeypatch.setenv("CALLMILL_APIS", str(tmp_path / "apis.toml"))
    policy = find_alerts(load_settings())
    assert policy is not None
    assert AlertPolicy(webhook=["env:X"]).stuck_after == float(ALERT_ROWS["alerts.stuck_after"])
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| [A-Z]", ALERTS.partition("## Events")[2], re.MULTILINE)
    assert re.findall(r"`(\w+)`", " ".join(rows)) == list(AlertEvent)
