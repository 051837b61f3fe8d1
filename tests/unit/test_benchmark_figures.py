"""Benchmarks do not flatter: a figure of a run that was disturbed gives no verdict, and says why."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
figure = importlib.import_module("figure")
machine = importlib.import_module("machine")

QUIET = machine.Load(busy=0.9, stolen=0.0, others_cores=0.0)
shares = st.floats(0, 0.5)
ratios = st.floats(0.1, 10)


def made(*, ratio=1.0, drift=0.0, load=QUIET, **words):
    """Make a figure that is ``ratio`` times its baseline, one run of which is by ``drift`` above the others."""
    baseline = (100.0, 100.0 * (1 + drift), 100.0)
    runs = tuple(ratio * run for run in baseline)
    words = {"unit": "us", "judged": "ratio", "must": 1.0, "aim": 0.5, **words}
    return figure.Figure(name="a figure", runs=runs, baseline_runs=baseline, load=load, **words)


@given(ratios, shares, shares, shares)
def test_disturbed_runs_give_no_verdict(ratio, drift, stolen, others_cores):
    """A figure meets or misses its bounds only if baseline, stolen time and other programs were all within theirs."""
    load = machine.Load(busy=1.0, stolen=stolen, others_cores=others_cores)
    shown = made(ratio=ratio, drift=drift, load=load)
    disturbed = shown.drift > 0.10 or stolen > 0.02 or others_cores > 0.05
    assert shown.verdict.startswith("NOT USABLE: ") == disturbed
    if not disturbed:
        assert shown.verdict == made(ratio=ratio).verdict


@given(ratios)
def test_quiet_runs_are_judged_by_their_bounds(ratio):
    """What was measured on a quiet machine is MISSED, must or aim, by its bounds alone."""
    shown = made(ratio=ratio)
    assert shown.verdict == ("MISSED" if shown.ratio > 1 else "must" if shown.ratio > 0.5 else "aim")


@pytest.mark.parametrize(
    ("drift", "stolen", "others_cores", "words"),
    [
        (0.14, 0, 0, "baseline drifted 14 %"),
        (0, 0.03, 0, "3 % of the time was stolen"),
        (0, 0, 0.4, "other programs used 40 % of a core"),
        (0.2, 0, 1.5, "baseline drifted 20 %, other programs used 150 % of a core"),
    ],
)
def test_verdict_names_every_disturbance(drift, stolen, others_cores, words):
    """The verdict names all that disturbed the runs, with how much it was."""
    load = machine.Load(busy=1.0, stolen=stolen, others_cores=others_cores)
    assert made(drift=drift, load=load).verdict == f"NOT USABLE: {words}"


def test_figures_that_only_inform_are_marked_too():
    """A figure without bounds is marked as well: its number is as wrong."""
    assert made(must=None).verdict == ""
    assert made(must=None, drift=0.5).verdict.startswith("NOT USABLE")


@pytest.mark.parametrize("unit", ["jobs", "outcomes", "calls", "keys", "B", "MB"])
def test_what_is_counted_is_judged_on_any_machine(unit):
    """A lost job is lost on a busy machine too: no disturbance hides what counts have missed."""
    busy = machine.Load(busy=1.0, stolen=0.5, others_cores=2.0)
    assert made(unit=unit, judged="value", must=0, load=busy).verdict == "MISSED"


def test_doubts_of_the_benchmark_count():
    """What the benchmark itself saw makes a figure useless as well, on any machine."""
    assert made(doubt="900 of 2,000 calls/s made").verdict == "NOT USABLE: 900 of 2,000 calls/s made"


def test_nobody_looked_at_the_machine():
    """Where nobody looked at the machine, only the baseline can show a disturbance."""
    assert made(load=None).verdict == "must"
    assert made(load=None, drift=0.2).verdict == "NOT USABLE: baseline drifted 20 %"


@given(
    cores=st.integers(1, 64),
    seconds=st.floats(1, 1000),
    ours=st.floats(0, 1),
    others=st.floats(0, 1),
    stolen=st.just(0.0) | st.floats(0.01, 0.3),
    throttled=st.just(0.0) | st.floats(0.01, 2),
)
def test_load_is_what_happened_between_two_moments(*, cores, seconds, ours, others, stolen, throttled):
    """Other programs have what was neither unused, nor stolen, nor ours; stolen is the share of the time wanted."""
    all_s = cores * seconds
    ours_s, others_s, stolen_s = all_s * ours * 0.3, all_s * others * 0.3, all_s * stolen
    unused_s = all_s - ours_s - others_s - stolen_s
    before = machine.Moment(5.0, cores, unused_s=7.0, stolen_s=2.0, throttled_s=1.0, ours_s=3.0)
    after = machine.Moment(5.0 + seconds, cores, 7.0 + unused_s, 2.0 + stolen_s, 1.0 + throttled, 3.0 + ours_s)
    load = after.since(before)
    wanted_s = ours_s + others_s + stolen_s + throttled
    assert load.others_cores == pytest.approx(others_s / seconds, abs=1e-6)
    assert load.busy == pytest.approx((ours_s + others_s) / all_s, abs=1e-6)
    assert load.stolen == pytest.approx((stolen_s + throttled) / wanted_s if wanted_s else 0, abs=1e-6)


def test_time_of_our_own_processes_is_not_others():
    """A process of ours that ran and ended while the machine was watched counts as ours."""
    before = machine.Moment.now().ours_s
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", burn], check=True)
    assert machine.Moment.now().ours_s - before >= 0.25
