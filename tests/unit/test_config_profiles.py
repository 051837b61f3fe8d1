"""API profiles from TOML."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from callmill.config.limit_spec import Enforcer, LimitSpec, Scope, Unit
from callmill.config.profiles import ApiProfile, Charge, ThrottlePolicy, Usage, find_profiles, load_profiles
from callmill.config.settings import Settings
from callmill.errors import ConfigurationError

ROOT = Path(__file__).parents[2]
FULL = """
[apis.openai]
base_url  = "https://API.openai.com/v1/"
auth      = { bearer = "env:OPENAI_API_KEY" }
limits    = ["500/minute", "200000 tokens/minute", "64 concurrent", "10000/day"]
enforcer  = "bucket"
burst     = 20
timeout   = 60
retry     = { attempts = 3, base = 1, cap = 30, statuses = [500] }
throttle  = { statuses = [403, 200], rate = { "/code" = ["x"] }, quota = { "/a/0~1b" = ["1", "y"] } }
usage     = "/usage/total_tokens"
transport = "requests"
session_factory = "mypackage.auth:session"
headers   = { X-Org = "env:ORG", Accept = "application/json" }
keep_headers = ["X-Request-Id"]
idempotency_header = false

[apis.local]
base_url = "http://127.0.0.1:8800"
allow_private_addresses = true
"""


@pytest.fixture
def load(tmp_path):
    """Load profiles from a text."""

    def _load(text: str) -> dict[str, ApiProfile]:
        path = tmp_path / "apis.toml"
        path.write_text(text)
        return load_profiles(path)

    return _load


@pytest.fixture
def problems(load):
    """Return the problems of a text, without the path before each."""

    def _problems(text: str) -> list[str]:
        with pytest.raises(ConfigurationError) as refusal:
            load(text)
        return [re.sub(r"^.*apis\.toml: ", "", line) for line in str(refusal.value).splitlines()]

    return _problems


@pytest.fixture
def problem_of(problems):
    """Return the one problem of a profile with the keys given."""

    def _problem_of(keys: str) -> str:
        (problem,) = problems(f'[apis.x]\nbase_url = "https://x.test"\n{keys}')
        return problem

    return _problem_of


def test_every_key_is_read(load):
    """A profile with every kind of key has the values that the file has."""
    profile = load(FULL)["openai"]
    assert (profile.name, profile.base_url) == ("openai", "https://api.openai.com/v1")
    assert [credential.bearer for credential in profile.auth] == ["env:OPENAI_API_KEY"]
    assert profile.limit_specs == (
        LimitSpec(500, Unit.REQUESTS, 60),
        LimitSpec(200_000, Unit.TOKENS, 60),
        LimitSpec(64, Unit.CONCURRENT, 0),
        LimitSpec(10_000, Unit.REQUESTS, 86400),
    )
    assert (profile.enforcer, profile.burst, profile.timeout) == (Enforcer.BUCKET, 20, 60)
    assert (profile.retry.attempts, profile.retry.base, profile.retry.statuses) == (3, 1, (500,))
    assert (profile.throttle.statuses, profile.throttle.concurrency) == ((403, 200), {})
    assert (profile.throttle.rate, profile.throttle.quota) == ({"/code": ["x"]}, {"/a/0~1b": ["1", "y"]})
    assert (profile.transport, profile.session_factory) == ("requests", "mypackage.auth:session")
    assert (profile.idempotency_header, profile.keep_headers) == (None, ["x-request-id"])


def test_costs_are_read(load):
    """Limits of models are parsed and hold for models; where the cost stands may be one pointer or a table."""
    profile = load("""
[apis.x]
base_url = "https://x.test"
limits = ["5/second", "5/second per key", "5/second per model"]
model = "/model"
models = { large = ["7/second", "100 input tokens/minute per model"] }
usage = { input = "/usage/in", output = "/usage/out" }
max_tokens = "/max_tokens"
charge = "admission"
cost = "mine:cost"
actual_cost = "mine:actual"
[apis.y]
base_url = "https://y.test"
usage = "/usage"
""")
    one, other = profile["x"], profile["y"]
    assert one.model_limit_specs == {
        "large": (
            LimitSpec(7, Unit.REQUESTS, 1, Scope.MODEL),
            LimitSpec(100, Unit.INPUT_TOKENS, 60, Scope.MODEL),
        )
    }
    assert (one.usage, other.usage) == (Usage(input="/usage/in", output="/usage/out"), Usage(total="/usage"))
    assert (one.charge, other.charge) == (Charge.ADMISSION, Charge.ACTUAL)
    assert (one.cost, one.actual_cost, one.max_tokens) == ("mine:cost", "mine:actual", "/max_tokens")
    facts = one.public_facts()
    assert (facts.model, facts.models) == (
        "/model",
        {"large": ("7/second per model", "100 input tokens/minute per model")},
    )
    assert (facts.usage, other.public_facts().usage) == (None, "/usage")


def test_defaults(load):
    """A profile with a base URL alone has the documented defaults."""
    profile = load(FULL)["local"]
    assert (profile.auth, profile.limits, profile.headers) == ([], [], {})
    assert (profile.enforcer, profile.burst, profile.timeout, profile.connect_timeout) == (Enforcer.UNKNOWN, 1, 60, 10)
    assert (profile.retry.attempts, profile.retry.base, profile.retry.cap) == (5, 0.5, 30)
    assert profile.retry.statuses == (408, 425, 500, 502, 503, 504, 529)
    assert profile.throttle == ThrottlePolicy(
        statuses=(), rate={}, quota={}, concurrency={}, max_refusals=10_000, max_wait=31 * 86_400
    )
    assert (profile.transport, profile.idempotency_header) == ("pyreqwest", "Idempotency-Key")
    assert profile.keep_headers == ["x-request-id", "request-id", "content-type"]
    assert (profile.max_response_bytes, profile.max_connections, profile.ca_file) == (8 * 1024 * 1024, 500, None)


def test_several_credentials(load):
    """A list of auth tables is a key pool, in the order written; a single table is a pool of one."""
    profile = load("""
        [apis.crm]
        base_url = "https://crm.test"
        auth = [
            { bearer = "env:A" },
            { header = { Authorization = "Token file:/run/secrets/b" } },
            { basic = ["me", "env:C"] },
        ]
    """)["crm"]
    assert [credential.model_dump(exclude_none=True, exclude_defaults=True) for credential in profile.auth] == [
        {"bearer": "env:A"},
        {"header": {"Authorization": "Token file:/run/secrets/b"}},
        {"basic": ["me", "env:C"]},
    ]


@pytest.mark.parametrize(
    "auth",
    [
        '{ bearer = "sk-hunter2" }',
        '{ bearer = "Bearer env:KEY" }',
        '{ header = { X-Key = "hunter2" } }',
        '{ basic = ["me", "hunter2"] }',
        '{ basic = ["hunter2", ""] }',
        '[{ bearer = "env:A" }, { bearer = "hunter2" }]',
    ],
)
def test_literal_secret_is_refused_unseen(problem_of, auth):
    """A secret written into the file is refused with the remedy, and the message does not repeat it."""
    problem = problem_of(f"auth = {auth}")
    assert problem.startswith("[apis.x] auth")
    assert '"env:NAME"' in problem
    assert "hunter2" not in problem


@pytest.mark.parametrize("name", ["Authorization", "x-api-key", "Cookie"])
def test_literal_secret_in_headers_is_refused(problem_of, name):
    """A static header that carries secrets by its nature takes a reference only."""
    assert problem_of(f'headers = {{ {name} = "hunter2" }}') == (
        f'[apis.x]: headers.{name} must refer to the secret as "env:NAME" or "file:/path"'
    )


@pytest.mark.parametrize(
    ("keys", "place", "remedy"),
    [
        ('limitz = ["5/second"]', "limitz", "did you mean 'limits'?"),
        ("retry = { attemps = 3 }", "retry.attemps", "did you mean 'attempts'?"),
        ('auth = { baerer = "env:A", bearer = "env:A" }', "auth.baerer", "did you mean 'bearer'?"),
        ("qqqq = 1", "qqqq", "known keys: account, actual_cost, allow_private_addresses"),
        ('limits = ["500/minut"]', "limits", "write '500/minute'"),
        ('limits = ["5/second", "6/s"]', "limits", "keep the one that holds"),
        ('limits = "5/second"', "limits", "valid list"),
        ('enforcer = "buckets"', "enforcer", "'sliding'"),
        ('burst = "20"', "burst", "valid integer"),
        ("timeout = 0", "timeout", "greater than 0"),
        ("timeout = inf", "timeout", "finite"),
        ("retry = { statuses = [200] }", "retry.statuses[0]", "greater than or equal to 300"),
        ("throttle = { statuses = [199] }", "throttle.statuses[0]", "greater than or equal to 200"),
        ("throttle = { statusses = [403] }", "throttle.statusses", "did you mean 'statuses'?"),
        ('throttle = { rate = { "/code" = [] } }', "throttle.rate./code", "at least 1 item"),
        ('throttle = { rate = { "/code" = [""] } }', "throttle.rate./code", "occurs in everything"),
        ('throttle = { quota = { "code" = ["x"] } }', "throttle.quota.code", "JSON pointer"),
        ("throttle = { statuses = [200] }", "throttle", "need a table"),
        ('limits = ["none", "5/second"]', "limits", "there is no limit"),
        ('auth = [{ bearer = "env:A", limits = ["none"] }, { bearer = "env:B" }]', "auth[0].limits", "whole API only"),
        ("throttle = { max_refusals = 0 }", "throttle.max_refusals", "greater than or equal to 1"),
        ("throttle = { max_refusals = 2.5 }", "throttle.max_refusals", "integer"),
        ("throttle = { max_wait = 0 }", "throttle.max_wait", "greater than 0"),
        ("throttle = { max_wait = inf }", "throttle.max_wait", "finite"),
        ('throttle = { max_wait = "31d" }', "throttle.max_wait", "number"),
        ('usage = "usage.total"', "usage", "/usage/total_tokens"),
        ('usage = { totl = "/n" }', "usage.totl", "did you mean 'total'?"),
        ('usage = { input = "/n" }', "usage", "both input and output"),
        ('usage = { total = "n" }', "usage.total", "JSON pointer"),
        ('model = "model"', "model", "JSON pointer"),
        ('models = { m = ["5/second", "6/s"] }', "models.m", "keep the one that holds"),
        ('models = { m = ["5/second per key"] }', "models.m", "whatever the key"),
        ('models = { m = ["auto"] }', "models.m", "whole API"),
        ('charge = "later"', "charge", "'admission'"),
        ('cost = "mypackage"', "cost", "module:callable"),
        ('limits = ["5/second per key", "6/s per key"]', "limits", "keep the one that holds"),
        ('transport = "httpx"', "transport", "'pyreqwest' or 'requests'"),
        ('transport = "requests"\nsession_factory = "auth.session"', "session_factory", "module:callable"),
        ("idempotency_header = true", "idempotency_header", "false to send none"),
        ('headers = { "a b" = "1" }', "headers.a b", "no header name"),
        ('headers = { A = "1\\r\\nB: 2" }', "headers.A", "control characters"),
        ("auth = {}", "auth", "exactly one of"),
        ('auth = { bearer = "env:A", basic = ["a", "env:B"] }', "auth", "exactly one of"),
        ('auth = [{ bearer = "env:A" }, 3]', "auth[1]", "valid dictionary"),
        ('name = "y"', "name", "remove the key"),
    ],
)
def test_problem_names_place_and_remedy(problem_of, keys, place, remedy):
    """A wrong key is one line that names its table and key and says what would be right."""
    problem = problem_of(keys)
    assert problem.startswith(f"[apis.x] {place}: ")
    assert remedy in problem


@pytest.mark.parametrize(
    ("keys", "remedy"),
    [
        ("burst = 20", 'enforcer = "bucket"'),
        ('session_factory = "a:b"', 'transport = "requests"'),
    ],
)
def test_keys_that_need_another(problem_of, keys, remedy):
    """A key that would have no effect without another one is refused, naming the other."""
    assert remedy in problem_of(keys)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("api.test", "absolute http or https"),
        ("ftp://api.test", "absolute http or https"),
        ("https://", "absolute http or https"),
        ("https://u:hunter2@api.test", "credentials"),
        ("https://api.test/?key=hunter2", "query"),
        ("https://api.test#", "fragment"),
        ("https://api.test:99999", "port"),
        ("https://api.test/v1/../v2", "dot segments"),
        ("https://api.test /", "white space"),
        ("https://äpi.test", "xn--"),
    ],
)
def test_wrong_base_url(problems, url, reason):
    """A base URL that could be misread is refused with the reason, and never shown: it may hold a secret."""
    (problem,) = problems(f'[apis.x]\nbase_url = "{url}"')
    assert problem.startswith("[apis.x] base_url: ")
    assert reason.lower() in problem.lower()
    assert "hunter2" not in problem


@pytest.mark.parametrize("host", ["127.0.0.1:8800", "localhost", "10.1.2.3", "169.254.169.254", "[::1]", "a.localhost"])
def test_private_address_must_be_allowed(problems, load, host):
    """A base URL that names a private address is refused until the profile allows these."""
    text = f'[apis.x]\nbase_url = "http://{host}"\n'
    (problem,) = problems(text)
    assert "allow_private_addresses = true" in problem
    assert load(f"{text}allow_private_addresses = true")["x"].covers(f"http://{host}/a")


def test_all_problems_at_once(problems):
    """All problems of all tables come in one error, one a line."""
    assert [
        problem.split(":")[0]
        for problem in problems("""
        [api.typo]
        [apis."a b"]
        [apis.one]
        limits = ["many"]
        [apis.two]
        base_url = "https://two.test"
        burst = 0
        timeout = "long"
    """)
    ] == ["[api]", "[apis.a b]", "[apis.one] base_url", "[apis.one] limits", "[apis.two] burst", "[apis.two] timeout"]


@pytest.mark.parametrize("name", ["a b", "-a", "_a", "ä", "a.b", ""])
def test_names_that_no_api_can_have(problems, name):
    """An API's name is letters, digits, '-' and '_': it becomes part of queue names and keys."""
    assert "an API's name is" in problems(f'[apis."{name}"]\nbase_url = "https://x.test"')[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[apis.x]\nbase_url = \n", r"is not TOML: .*line 2"),
        ('[apis.x]\nbase_url = "a"\nbase_url = "b"\n', r"is not TOML: .*line 3"),
        ("apis = 3", r"write \[apis\.NAME\]"),
        ("apis.x = 3", r"write \[apis\.NAME\]"),
    ],
)
def test_broken_file(load, text, message):
    """A file that is no table of tables is refused, with the line where TOML ends."""
    with pytest.raises(ConfigurationError, match=message):
        load(text)


def test_unreadable_file(tmp_path):
    """A missing file, a folder and a binary file are refused, naming the path."""
    with pytest.raises(ConfigurationError, match=r"none\.toml: there is no such file.*CALLMILL_APIS"):
        load_profiles(tmp_path / "none.toml")
    with pytest.raises(ConfigurationError, match=re.escape(f"{tmp_path}: cannot be read")):
        load_profiles(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        load_profiles(tmp_path / "binary.toml")


def test_where_profiles_are_found(tmp_path, monkeypatch):
    """The path that is set wins and must exist; else config/apis.toml, then ./apis.toml, else there are no profiles."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CALLMILL_APIS", raising=False)
    assert find_profiles(Settings()) is None
    Path("apis.toml").write_text('[apis.second]\nbase_url = "https://a.test"')
    assert list(find_profiles(Settings()) or ()) == ["second"]
    Path("config").mkdir()
    Path("config/apis.toml").write_text('[apis.first]\nbase_url = "https://a.test"')
    assert list(find_profiles(Settings()) or ()) == ["first"]
    with pytest.raises(ConfigurationError, match="there is no such file"):
        find_profiles(Settings(apis=tmp_path / "none.toml"))


def test_public_facts_have_no_secret_and_no_reference(load):
    """What leaves the worker names the API and its limits, and neither a credential nor where one is kept."""
    profile = load(FULL)["openai"]
    facts = profile.public_facts()
    assert (facts.name, facts.limits[1], facts.enforcer, facts.burst) == (
        "openai",
        "200000 tokens/minute",
        "bucket",
        20,
    )
    assert not any(word in repr(facts) for word in ("env:", "ORG", "KEY", "auth"))
    assert facts.covers("https://api.openai.com/v1/x") is profile.covers("https://api.openai.com/v1/x") is True
    assert facts.resolve("/x") == profile.resolve("/x") == "https://api.openai.com/v1/x"


def test_shipped_profiles_load_as_they_are():
    """The file as shipped needs no environment: only the simulator's profile is live."""
    assert list(load_profiles(ROOT / "config/apis.toml")) == ["local"]


def test_shipped_profiles_load_when_uncommented(load):
    """Every commented-out profile is right: taking the comment signs away gives a file that loads."""
    text = (ROOT / "config/apis.toml").read_text()
    live = load(re.sub(r"^# (?=\[apis\.|[a-z_][\w-]* *= )", "", text, flags=re.MULTILINE))
    assert set(live) == {
        *(
            "local",
            "openai",
            "azure",
            "anthropic",
            "groq",
            "github",
            "geocoding",
            "stripe",
            "shopify",
            "discord",
            "aws",
        ),
        *("unknown", "example"),
    }
    assert all(profile.limits or profile.models for name, profile in live.items() if name != "local")
    assert all(profile.auth or profile.session_factory for name, profile in live.items() if name != "local")
    assert set(live["openai"].models) == {"gpt-4o", "gpt-4o-mini"}


def test_weights_of_tenants(load, problems):
    """Tenants have weights; a name or a weight that cannot be one is refused."""
    table = '[apis.a]\nbase_url = "https://a.example"\ntenants = '
    assert load(table + "{ acme = 3, small = 0.5 }")["a"].tenants == {"acme": 3, "small": 0.5}
    for wrong in ('{ "a b" = 1 }', "{ acme = 0 }", '{ acme = "3" }'):
        (problem,) = problems(table + wrong)
        assert problem.startswith("[apis.a] tenants")


def test_a_file_that_is_nested_too_deeply_is_refused(problems):
    """Brackets without end are the file's problem, and no traceback."""
    assert problems("a = " + "[" * 5000) == ["is nested too deeply; profiles need three levels"]


@pytest.mark.parametrize("part", ["a.", "a . ", '"\\".b".', "'a'\t.", '"".'])
@pytest.mark.parametrize("before", ["x = 1\n", "x = 1\n[", "x = 1\ny = { z = 1, "])
def test_keys_without_end_are_refused_before_they_are_read(problems, part, before):
    """A key of very many parts, however written, is refused at once with its line: tomllib takes its square in time."""
    started_s = time.monotonic()
    (problem,) = problems(before + part * 100_000 + "a = 1")
    assert problem == f"line {1 + before.count(chr(10))}: a key of more than 16 parts; profiles need four"
    assert time.monotonic() - started_s < 1


def test_dots_that_separate_no_keys_are_taken(load):
    """Dots in values, comments and keys that are quoted make no long key."""
    dots = (
        "# "
        + "." * 100
        + '\n[apis.a]\nbase_url = "https://'
        + "a." * 100
        + 'b"\nmodels = { "'
        + "4." * 90
        + '" = [] }\n'
    )
    assert list(load(dots)) == ["a"]


def test_a_file_that_is_too_large_is_refused(problems):
    """A file beyond a million characters is not read on; nor is a number of thousands of digits."""
    assert problems("#" * (1 << 20) + "\n") == ["has more than 1,048,576 characters; a profile needs a few hundred"]
    (problem,) = problems("a = " + "1" * 5000)
    assert problem.startswith("holds what is no number here: ")
