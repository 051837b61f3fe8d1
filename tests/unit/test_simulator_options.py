"""Options: combinations that make no sense are refused, and the command line carries all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from callmill.config.limit_spec import parse_limit
from callmill.errors import ConfigurationError
from callmill.simulator import command
from callmill.simulator.latency import parse_latency
from callmill.simulator.options import EnforcerKind, HeaderStyle, SimulatorOptions
from callmill.simulator.process import command_line

EVERYTHING = SimulatorOptions(
    host="127.0.0.2",
    port=1234,
    limits=(parse_limit("200/second"), parse_limit("5000 tokens/minute"), parse_limit("64 concurrent")),
    enforcer=EnforcerKind.BUCKET,
    burst=7,
    latency=parse_latency("lognormal:50ms,p99=400ms"),
    error_rate=0.125,
    error_statuses=(500, 429),
    reset_rate=0.25,
    hang_rate=0.03125,
    malformed_rate=0.0625,
    hang_s=2.5,
    headers=HeaderStyle.IETF,
    seed=99,
    log=Path("calls.jsonl"),
)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"error_rate": 1.5}, "--error-rate 1.5"),
        ({"hang_rate": -0.1}, "--hang-rate -0.1"),
        ({"error_rate": 0.6, "reset_rate": 0.6}, "add up to 1.2"),
        ({"error_statuses": (200,)}, "--error-status 200"),
        ({"error_rate": 0.1, "error_statuses": ()}, "at least one --error-status"),
        ({"burst": 3}, "--burst 3"),
        ({"burst": 0, "enforcer": EnforcerKind.BUCKET}, "at least 1"),
        ({"enforcer": EnforcerKind.NGINX, "limits": (parse_limit("10/hour"),)}, "10/hour"),
        ({"enforcer": EnforcerKind.NGINX, "limits": (parse_limit("10 tokens/second"),)}, "10 tokens/second"),
    ],
)
def test_values_that_do_not_go_together_are_refused(values, message):
    """A combination that cannot be simulated raises a ConfigurationError that names the option."""
    with pytest.raises(ConfigurationError, match=message):
        SimulatorOptions(**values)


@pytest.mark.parametrize("options", [EVERYTHING, SimulatorOptions()])
def test_the_command_line_carries_every_option(monkeypatch, options):
    """The command, given the arguments made from options, starts a simulator with equal options."""
    started: list[SimulatorOptions] = []
    monkeypatch.setattr(command, "run", lambda given: started.append(given) or 0)
    result = CliRunner().invoke(command.simulate, command_line(options))
    assert (result.exit_code, started) == (0, [options])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--limit", "many"],
        ["--latency", "slow"],
        ["--enforcer", "magic"],
        ["--error-rate", "2"],
        ["--burst", "3"],
        ["--log", "/nowhere/calls.jsonl", "--port", "0"],
    ],
)
def test_wrong_arguments_are_usage_errors(arguments):
    """A wrong argument ends the command with exit code 2 and a message, never a traceback."""
    result = CliRunner().invoke(command.simulate, arguments)
    assert result.exit_code == 2
    assert "Error: " in result.stderr


def test_the_description_names_what_was_chosen():
    """The line printed at the start names limits, counting, latency, faults, headers, seed and log."""
    text = EVERYTHING.describe()
    for part in ("200/second", "bucket, burst 7", "p99=400ms", "reset 0.25", "headers ietf", "seed 99", "calls.jsonl"):
        assert part in text
