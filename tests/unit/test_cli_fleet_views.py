"""What ``callmill status`` and ``callmill watch`` show of everything: on any terminal, and in a pipe."""

from __future__ import annotations

import io
import re
from datetime import timedelta

import msgspec
import pytest
from fleet_samples import API, AT, BATCH, DONE, FLEET, LANE, OPENAI, PAUSED, REDIS, WORKER, api_now, api_view
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from rich.console import Console

from callmill.cli.figures import bar, in_ascii, printable, short_count, short_time
from callmill.cli.fleet_displays import LinesDisplay, ScreenDisplay, display_for
from callmill.cli.fleet_lines import fleet_lines
from callmill.cli.fleet_now import FleetNow
from callmill.cli.fleet_screen import fleet_screen
from callmill.cli.problems import fleet_problems
from callmill.ledger.fleet import KeyStatus
from callmill.ledger.records import BatchState

NAMES = st.text(max_size=90)
COUNTS = st.integers(0, 10**13)
TIMES = st.floats(0, 10**9)


def screen(now=FLEET, width=80, height=24, at=AT):
    """Return the lines of the screen as plain text."""
    return [line.plain for line in fleet_screen(now, Console(width=width, file=io.StringIO()), at, height=height)]


def line_with(part, lines):
    """Return the only line with that text."""
    (found,) = [line for line in lines if part in line]
    return found


@st.composite
def batches(draw):
    """Make a batch of any name and any numbers."""
    eta = st.none() | TIMES
    return replace(
        BATCH, id=draw(st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)), name=draw(NAMES), total=draw(COUNTS),
        done=draw(COUNTS), succeeded=draw(COUNTS), failed=draw(COUNTS), retries=draw(COUNTS), rate=draw(TIMES),
        eta=draw(eta), limited_by=draw(NAMES), elapsed=draw(TIMES), mean_rate=draw(TIMES), sealed=draw(st.booleans()),
        ended=draw(st.booleans()), state=draw(st.sampled_from(BatchState)), tenant=draw(NAMES),
    )  # fmt: skip


@st.composite
def fleets(draw):
    """Make a fleet of any size, with any names and numbers."""
    lanes = st.builds(
        lambda name, in_flight, waiting, rate, paused_s, why: replace(
            LANE, api=name, in_flight=in_flight, waiting=waiting, rate=rate, paused_s=paused_s, pause_reason=why
        ),
        st.sampled_from(["openai", "crm"]), COUNTS, COUNTS, TIMES, st.just(0.0) | TIMES, NAMES,
    )  # fmt: skip
    workers = draw(
        st.lists(
            st.builds(
                lambda host, held, lanes, cost, rate, draining: replace(
                    WORKER, host=host, held=held, lanes=lanes, cpu_us_per_call=cost, calls_per_s=rate, draining=draining
                ),
                NAMES, NAMES, st.lists(lanes, max_size=2), st.none() | TIMES, TIMES, st.booleans(),
            ),
            max_size=20,
        )
    )  # fmt: skip
    limits = st.lists(st.sampled_from(["100/second", "64 concurrent", "200000 tokens/minute"]), unique=True)
    apis = [
        api_view(api_now(replace(OPENAI, name=name, limits=tuple(draw(limits))), *workers), draw(NAMES))
        for name in draw(st.lists(NAMES | st.just("openai"), max_size=12))
    ]
    now = [api.now for api in apis]
    shown = draw(st.lists(batches(), max_size=60))
    return replace(
        FLEET, away=draw(st.just("") | NAMES), problems=fleet_problems(now, workers, [], draw(NAMES)), batches=shown,
        batches_total=len(shown) + draw(COUNTS), unfinished=draw(COUNTS), apis=apis, workers=workers,
        redis=replace(REDIS, used_bytes=draw(COUNTS), max_bytes=draw(COUNTS)),
    )  # fmt: skip


@given(fleets(), st.integers(20, 220), st.none() | st.integers(1, 70))
@settings(max_examples=60)
def test_no_line_is_wider_than_the_terminal(fleet, width, height):
    """Whatever names and numbers there are: no line is too wide, none too many, and none steers the terminal."""
    lines = fleet_screen(fleet, Console(width=width, file=io.StringIO()), AT, height=height)
    assert all(line.cell_len <= width for line in lines)
    assert all(line.plain.isprintable() for line in lines)
    assert height is None or len(lines) <= height
    assert all(line.isprintable() for line in fleet_lines(fleet, AT))


@given(fleets())
@settings(max_examples=20)
def test_json_has_all_of_it(fleet):
    """What is printed as JSON reads back as the same."""
    assert msgspec.json.decode(msgspec.json.encode(fleet), type=FleetNow) == fleet


def test_80_columns_and_24_lines_have_what_matters():
    """Over ssh: every id, what is done, what failed, how fast, how long still, and what limits it."""
    lines = screen()
    assert lines[0][10:] == "1 worker, 97.8 calls/s, 2 of 128 batches unfinished, Redis 12 MiB (2%)"
    row = line_with("0123456789ab", lines)
    for part in ("translate-c", "9.00M", "12.0M", "1,000", "12.3k/s", "4 min left"):
        assert part in row
    assert "limit openai 200000 tokens/minute" in lines[lines.index(row) + 1]
    assert "paused" in line_with("paused000000", lines)
    assert "done" in line_with("done00000000", lines)
    assert lines.index(row) < lines.index(line_with("done00000000", lines))
    row = line_with("openai  ", lines)
    for part in ("97.8/s", "97.8 %", "12", "3,030", "120 ms", "1.50 s", "17"):
        assert part in row
    assert "limit openai 100/second (100/second 97.8 %, 64 concurrent 18.7 %)" in lines[lines.index(row) + 1]
    row = line_with("node-1/4711", lines)
    for part in ("97.8/s", "81 us", "2.1 ms", "90 MiB"):
        assert part in row
    assert line_with("3/128 batches", lines)


@pytest.mark.parametrize("size", [(120, 40), (200, 50)])
def test_wide_terminals_use_the_room(size):
    """With room, numbers and names are in full, and what limits a batch stands beside it where it fits."""
    lines = screen(width=size[0], height=size[1])
    row = line_with("0123456789ab", lines)
    assert "translate-catalogue" in row
    assert size[0] < 200 or "9,000,000  12,000,000" in row
    assert size[0] < 200 or "limit openai 200000 tokens/minute" in row


def test_what_is_wrong_stands_first():
    """Redis away, then full, missing workers, workers that hold, pauses, breakers, keys: above all else."""
    down = replace(LANE, breaker="open", breaker_reason="connection refused", next_probe_s=20)
    holding = replace(WORKER, held="Redis is full", lanes=[replace(down, keys=[KeyStatus(name="spare", paused_s=60)])])
    paused = replace(api_now(OPENAI, holding), paused_s=None, pause_reason="maintenance", paused_by="anna@desk")
    problems = fleet_problems([paused], [holding], ["crm", "billing"], "Redis has 96% of its 512 MiB in use")
    kinds = ["redis_full", "no_worker", "held", "paused", "breaker_open", "key_aside"]
    assert [problem.what for problem in problems] == kinds
    now = replace(FLEET, away="Redis cannot be reached: refused", problems=problems)
    lines = screen(now, width=120, height=40, at=AT + timedelta(seconds=12))
    at = [
        lines.index(line_with(part, lines[:8]))
        for part in (
            "6 problems",
            "! Redis cannot be reached: refused; trying again. The figures are of",
            "! Redis has 96% of its 512 MiB in use",
            "! no worker serves billing: start one with `callmill worker`",
            "! worker node-1/4711 holds: Redis is full",
            "! openai is paused until resumed: maintenance (anna@desk)",
            "! openai is down, tried again in 20 s: connection refused",
            "! openai: 1 of 1 keys set aside: spare",
        )
    ]
    assert at == list(range(8))


def test_a_short_pause_is_no_problem():
    """A pause of a second after a 429 is how an API is paced, nothing for somebody to look at."""
    assert not fleet_problems([replace(api_now(OPENAI, WORKER), paused_s=1.0)], [WORKER], [], "")


def test_without_any_worker_that_is_the_problem():
    """No worker at all is one problem with its remedy, however many APIs wait."""
    (problem,) = fleet_problems([], [], ["crm", "openai"], "")
    assert problem.text == "no worker runs: start one with `callmill worker`"


def test_old_figures_are_dimmed_and_said_to_be_old():
    """While Redis is away, the last figures stay, dimmed, below the line that says since when."""
    console = Console(width=80, file=io.StringIO())
    lines = fleet_screen(replace(FLEET, away="Redis cannot be reached"), console, AT, height=24)
    row = next(line for line in lines if "0123456789ab" in line.plain)
    assert any(span.style == "dim" and (span.start, span.end) == (0, len(row)) for span in row.spans)
    assert "The figures are of" in lines[1].plain


def test_few_lines_go_to_what_matters_most():
    """Where not all fits, each table has its share, what runs or stands comes first, headings say of how many."""
    ended = [replace(DONE, id=f"old-{n}") for n in range(40)]
    quiet = [api_view(replace(api_now(replace(OPENAI, name=f"api-{n}")), workers=1), "nothing to do") for n in range(9)]
    stopped = replace(api_now(OPENAI, WORKER), api="stopped", paused_s=60.0)
    workers = [replace(WORKER, pid=n) for n in range(9)] + [replace(WORKER, pid=9999, draining=True)]
    now = replace(
        FLEET, batches=[*ended, PAUSED, BATCH], apis=[*quiet, API, api_view(stopped, "paused")], workers=workers
    )
    lines = screen(now)
    assert len(lines) == 24
    for heading in (r"^\d+/128 batches", r"^\d+/11 APIs", r"^\d+/10 workers"):
        assert any(re.search(heading, line) for line in lines)
    for part in ("0123456789ab", "paused000000", "stopped  ", "openai  ", "node-1/9999"):
        assert line_with(part, lines)
    assert line_with("draining: finishes what it has", lines)


def test_nothing_yet_says_what_to_do():
    """Without batches, APIs and workers each table says so in a line."""
    lines = screen(replace(FLEET, batches=[], batches_total=0, unfinished=0, apis=[], workers=[]))
    for part in ("no batch yet: submit one with", "no APIs yet: add [apis.NAME]", "no worker"):
        assert any(line.startswith(part) for line in lines)


def test_class_is_shown_where_it_is_not_the_usual_one():
    """Priority and tenant of a batch stand with it once they matter."""
    assert not any("normal" in line for line in screen())
    urgent = replace(DONE, tenant="acme")
    assert any("normal/acme" in line for line in screen(replace(FLEET, batches=[urgent])))


@given(st.text())
def test_names_cannot_steer_a_terminal(name):
    """What is shown of a name has no control code, and a name without any is shown as it is."""
    assert printable(name).isprintable()
    assert len(printable(name)) == len(name)


def test_plain_terminals():
    """A bar tells what failed without colour, and all of the screen can be told in ASCII."""
    drawn = bar(20, succeeded=50, failed=1, total=100)
    assert drawn.plain == "█" * 9 + "▒" + "░" * 10
    assert in_ascii(drawn).plain == "#" * 9 + "x" + "." * 10
    lines = fleet_screen(replace(FLEET, batches=[replace(BATCH, name="übersetzung…")]), Console(width=80), AT)
    assert all(in_ascii(line).plain.isascii() for line in lines)


@given(st.integers(0, 10**15), st.integers(0, 10**15), st.integers(0, 10**15), st.integers(1, 40))
def test_bar(succeeded, failed, total, width):
    """A bar has its width, is full only when all is done, and shows failures once something is."""
    drawn = bar(width, succeeded=succeeded, failed=failed, total=total).plain
    assert len(drawn) == width
    assert ("░" not in drawn) == (0 < total <= succeeded + failed)
    assert "▒" not in drawn or failed


@given(st.integers(0, 10**15 - 1))
def test_short_counts(count):
    """A short count has six characters at most, and never says more than there is, nor much less."""
    shown = short_count(count)
    number, unit = (shown[:-1], shown[-1]) if shown[-1].isalpha() else (shown, "")
    told = float(number.replace(",", "")) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[unit]
    assert len(shown) <= 6
    assert count * 0.99 <= told <= count * (1 + 1e-9)


@pytest.mark.parametrize(
    ("value", "text"), [(0.2, "0 s"), (59, "59 s"), (200, "3 min"), (7500, "2 h"), (200_000, "2 d")]
)
def test_short_times(value, text):
    """A short time is in its largest unit."""
    assert short_time(value) == text


def test_lines_for_a_pipe():
    """Each line stands for itself, with its time: a sum, problems, unfinished batches, APIs, workers."""
    now = replace(FLEET, problems=fleet_problems([], [], [], ""))
    lines = [line[21:] for line in fleet_lines(now, AT)]
    assert [line.split("  ")[0] for line in lines] == ["all", "problem", "batch", "batch", "API", "worker"]
    assert "0123456789ab translate-catalogue: running, 9,000,000 of 12,000,000 done, 1,000 failed" in lines[3]
    assert "limit openai 100/second" in lines[4]
    assert "81 us of CPU per call, loop lag 2.1 ms" in lines[5]


def test_lines_come_now_and_then():
    """A pipe gets its lines every few seconds, and one at once when Redis goes away and when it is back."""
    file = io.StringIO()
    away = replace(FLEET, away="Redis cannot be reached")
    with LinesDisplay(Console(file=file)) as display:
        for now in (FLEET, FLEET, away, away, FLEET):
            display.show(now)
    kinds = [line[21:].split("  ")[0] for line in file.getvalue().splitlines()]
    block = ["all", "batch", "batch", "API", "worker"]
    assert kinds == [*block, "problem", *block]


def test_where_a_screen_is_drawn(monkeypatch):
    """The whole terminal is taken where it can be steered; else lines come."""
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(display_for(Console(force_terminal=True), as_json=False), ScreenDisplay)
    assert isinstance(display_for(Console(file=io.StringIO()), as_json=False), LinesDisplay)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(display_for(Console(force_terminal=True), as_json=False), LinesDisplay)


def test_another_size_is_drawn_at_once(monkeypatch):
    """When the window changes its size, what was read last is drawn again, in the new size."""
    monkeypatch.setenv("TERM", "xterm")
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system=None, width=80, height=24)
    with ScreenDisplay(console) as display:
        display.resized()  # nothing was read yet
        display.show(FLEET)
        console.width, console.height = 50, 9
        display.resized()
    *_, first, second = re.sub(r"\x1b\[(?!H)[0-9;?]*[A-Za-z]", "", file.getvalue()).split("\x1b[H")
    assert [{len(line) for line in frame.split("\n")} for frame in (first, second)] == [{80}, {50}]
    assert [len(frame.split("\n")) for frame in (first, second)] == [24, 9]
