"""The page about limits: its programs run, its profiles load, its figures are those of the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from callmill.config.limit_spec import Enforcer, parse_limit
from callmill.config.profiles import load_profiles
from callmill.limits.bound import Guard, bounds
from callmill.limits.rules import LimitRules, fixed_guard_s

PAGE = (Path(__file__).parents[2] / "docs/limits.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
PROFILES = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
GUARDS_S = (0.008, 0.022, 0.060)


def test_the_page_has_programs_and_profiles():
    """The examples are found: a page that is written otherwise does not pass unread."""
    assert len(PROGRAMS) == 6
    assert len(PROFILES) == 3


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_programs_run(program, redis_url, tmp_path):
    """Every Python example is a whole program that ends well within seconds, as it is printed."""
    assert "redis://localhost" in program
    text = program.replace("redis://localhost", redis_url)
    subprocess.run([sys.executable, "-W", "error", "-c", text], cwd=tmp_path, timeout=20, check=True)


@pytest.mark.parametrize("profile", PROFILES, ids=range(len(PROFILES)))
def test_profiles_load(profile, tmp_path):
    """Every TOML example is a file that loads."""
    path = tmp_path / "apis.toml"
    path.write_text(profile)
    assert load_profiles(path)


def test_the_figures_of_the_bound_are_the_codes():
    """Every share in the table of the bound is what ``callmill limits`` would show, cut to a tenth of a percent."""
    rows = re.findall(r"^\| (`.*?) \| (sliding.*?|bucket.*?) \| (.*?) %? \|$", PAGE, re.MULTILINE)
    assert len(rows) == 5
    for limits, server, shares in rows:
        shown = [float(share.strip(" %")) for share in shares.split("|")]
        burst = int(server.rpartition(" ")[2]) if server.startswith("bucket") else 1
        for text in re.findall(r"`(.*?)`", limits):
            for kind in (
                server.partition(",")[0].split() if burst > 1 else re.findall(r"bucket|sliding|fixed|unknown", server)
            ):
                rules = LimitRules((parse_limit(text),), Enforcer(kind), burst)
                fixed_s = fixed_guard_s(rules)
                for guard_s, share in zip(GUARDS_S, shown, strict=True):
                    (bound,) = bounds(rules, Guard(guard_s if fixed_s is None else fixed_s))
                    assert bound.usable is not None
                    assert share == pytest.approx(int(bound.usable * 1000) / 10), (text, kind)
