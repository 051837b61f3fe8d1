"""The dashboard on a real server, with a real worker and real calls, over HTTP."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import Request, urlopen

import pytest
from dashboard_process import DashboardProcess
from local_nodes import WorkerProcess, until, write_profiles

from callmill.config.embedded_server import start
from callmill.config.settings import Settings
from callmill.dashboard.task_texts import COLUMNS
from callmill.simulator.latency import parse_latency
from callmill.simulator.options import SimulatorOptions
from callmill.simulator.process import SimulatorProcess

SIGN_IN = "someone:a, long one"
JOBS = 250
BATCH = "<i>import</i> · rows"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of everything that this module starts."""
    return tmp_path_factory.mktemp("dashboard")


@pytest.fixture(scope="module")
def server(folder):
    """Run an embedded server, which has a password."""
    server = start(Settings(redis_url=None, state_dir=folder / "state"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def dashboard(folder, server):  # noqa: ARG001 - it must run
    """Run the dashboard that asks for a password, so that its API answers, too."""
    node = DashboardProcess(folder, {"state_dir": folder / "state"}, "--basic-auth", SIGN_IN).start()
    node.ready()
    yield node
    node.teardown()


@pytest.fixture(scope="module")
def worker(folder, server, dashboard):
    """Run a worker on a simulator; the dashboard, which runs already, sees its events."""
    options = SimulatorOptions(latency=parse_latency("20ms"), error_rate=0.1, error_statuses=(400,), seed=1)
    with SimulatorProcess(options) as simulator:
        apis = write_profiles(folder / "apis.toml", {"crm": [f'base_url = "{simulator.url}"']})
        node = WorkerProcess(folder, server.url, apis, {}).start()
        node.ready()
        until(lambda: get(dashboard, "/workers?json=1").json["data"], what="the dashboard knows the worker")
        yield node
        node.teardown()


@pytest.fixture(scope="module")
def counts(folder, server, worker):  # noqa: ARG001 - it does the batch
    """Run a batch whose name is no harmless word, and return how many of its jobs succeeded and failed."""
    lines = (json.dumps({"custom_id": str(n), "method": "GET", "url": f"/rows/{n}"}) for n in range(JOBS))
    (folder / "calls.jsonl").write_text("\n".join(lines))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "callmill.cli",
            "run",
            "calls.jsonl",
            "-o",
            "out.jsonl",
            "--name",
            "<i>import</i> · rows",
        ],
        cwd=folder,
        env={**os.environ, "CALLMILL_REDIS_URL": server.url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    outcomes = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert len(outcomes) == JOBS, done.stderr
    failed = sum(outcome["error"] is not None or outcome["response"]["status_code"] >= 400 for outcome in outcomes)
    return [JOBS - failed, failed]


class Answer:
    """What the dashboard answered."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        self.text = text

    @property
    def json(self):
        """The answer, parsed."""
        return json.loads(self.text)


def get(dashboard, path, *, sign_in=SIGN_IN, method="GET"):
    """Ask the dashboard."""
    request = Request(dashboard.url + path, method=method)  # noqa: S310 - http
    if sign_in:
        request.add_header("Authorization", "Basic " + base64.b64encode(sign_in.encode()).decode())
    try:
        with urlopen(request, timeout=10) as answer:  # noqa: S310 - http
            return Answer(answer.status, answer.read().decode())
    except HTTPError as error:
        with error:
            return Answer(error.code, error.read().decode())


def tasks(dashboard):
    """Return the rows of the tasks page, as the page itself asks for them."""
    columns = {f"columns[{n}][data]": name for n, name in enumerate(COLUMNS.split(","))}
    order = {"order[0][column]": COLUMNS.split(",").index("received"), "order[0][dir]": "asc"}
    return get(
        dashboard, "/tasks/datatable?" + urlencode({"draw": 1, "start": 0, "length": 100, **order, **columns})
    ).json["data"]


def finished_tasks(dashboard):
    """Return the rows of the tasks page once every chunk has its result; events come a moment after the facts."""
    rows = until(
        lambda: rows if (rows := tasks(dashboard)) and all(row["state"] == "SUCCESS" for row in rows) else None,
        what="every chunk shows its result",
    )
    return {row["args"]: row for row in rows}


def test_chunks_say_which_jobs_they_carry(dashboard, counts):  # noqa: ARG001 - the batch
    """The task list shows every chunk by its batch's name, its API and its jobs, which are all jobs of the batch."""
    assert sorted(finished_tasks(dashboard)) == [
        f"{BATCH} · crm · jobs 0-99",
        f"{BATCH} · crm · jobs 100-199",
        f"{BATCH} · crm · jobs 200-249",
    ]


def test_chunks_say_what_came_of_them(dashboard, counts):
    """The task list shows each chunk's result as a plain sentence, and the results add up to the batch's counts."""
    results = [row["result"] for row in finished_tasks(dashboard).values()]
    shown = [re.fullmatch(r"(\d+) ok, (\d+) failed, p50 \d+ ms", result).groups() for result in results]
    assert [sum(int(count) for count in column) for column in zip(*shown, strict=True)] == counts
    assert min(counts) > 0


def test_task_page_escapes_names(dashboard, counts):  # noqa: ARG001 - the batch
    """A task's own page shows label and result, the batch's name as text and not as markup."""
    row = next(iter(finished_tasks(dashboard).values()))
    page = get(dashboard, "/task/" + quote(row["uuid"]))
    assert page.status == 200
    assert "&lt;i&gt;import&lt;/i&gt; · rows · crm · jobs " in page.text
    assert f">{row['result']}<" in page.text
    assert "<i>import" not in page.text


def test_no_page_shows_the_password_of_redis(dashboard, server, worker, counts):  # noqa: ARG001 - something to show
    """Every page and every answer of the API is there, and in none of them stands the password of Redis."""
    password = urlsplit(server.url).password
    node = get(dashboard, "/workers?json=1").json["data"][0]["hostname"]
    uuid = next(iter(finished_tasks(dashboard).values()))["uuid"]
    pages = ["/", "/workers", "/workers?json=1", f"/worker/{node}", "/tasks", f"/task/{quote(uuid)}", "/broker"]
    api = ["/api/workers?refresh=1", "/api/tasks", f"/api/task/info/{quote(uuid)}", "/api/queues/length"]
    for path in [*pages, *api, "/metrics", "/healthcheck"]:
        answer = get(dashboard, path)
        assert (path, answer.status) == (path, 200)
        assert password not in answer.text, path
    assert "redis://" in get(dashboard, "/broker").text
    assert "result_backend" in get(dashboard, f"/worker/{node}").text
    assert password not in dashboard.logs()


def test_operations_are_off(dashboard, worker):
    """Nobody stops a worker or sends a task through a dashboard, signed in or not."""
    node = get(dashboard, "/workers?json=1").json["data"][0]["hostname"]
    for path in (f"worker/shutdown/{node}", f"worker/pool/grow/{node}", "task/send-task/x", "task/revoke/x"):
        assert get(dashboard, f"/api/{path}", method="POST").status == 404
    assert get(dashboard, "/api/task/result/x").status == 404
    assert worker.status == "running"


@pytest.mark.parametrize("sign_in", [None, "someone:wrong", ":", "someone:a", " long one"])
def test_sign_in_is_wanted(dashboard, sign_in):
    """With authentication set, whoever does not sign in properly sees no page; a comma does not cut a password."""
    assert get(dashboard, "/", sign_in=sign_in).status == 401
    assert get(dashboard, "/metrics", sign_in=sign_in).status == 401


def test_a_password_is_made_up_on_request(folder, server, monkeypatch):  # noqa: ARG001 - it must run
    """Where an empty variable is all that is said of who may sign in, a password is made up, printed, and wanted."""
    monkeypatch.setenv("FLOWER_BASIC_AUTH", "")
    node = DashboardProcess(folder, {"state_dir": folder / "state"}, "--make-sign-in", "--address=0.0.0.0").start()
    try:
        node.ready()
        user, password = until(lambda: re.findall(r"Sign in as (\S+) with (\S+);", node.logs()))[0]
        assert len(password) >= 16
        assert get(node, "/", sign_in=f"{user}:").status == 401
        assert get(node, "/", sign_in=f"{user}:{password}").status == 200
    finally:
        node.teardown()


def test_listens_on_this_machine_only(folder, server):  # noqa: ARG001 - it must run
    """Without options the dashboard listens on 127.0.0.1 and on nothing else."""
    node = DashboardProcess(folder, {"state_dir": folder / "state"}).start()
    try:
        node.ready()
        assert listeners(urlsplit(node.url).port) == ["0100007F"]
        assert get(node, "/", sign_in=None).status == 200
    finally:
        node.teardown()
    assert node.process.returncode == 0


class CeleryDashboard(DashboardProcess):
    """The dashboard as Celery people start it."""

    def command(self) -> list[str]:
        """Return the command line."""
        celery = [sys.executable, "-m", "celery", "-A", "callmill.config.celery"]
        return [*celery, "callmill-flower", "--port", "0", "--", "--read_only=true", "--url_prefix=ops"]


def test_celery_starts_it_too(folder, server):  # noqa: ARG001 - it must run
    """`celery callmill-flower` is the same dashboard, with Flower's options; a read-only one has no buttons."""
    node = CeleryDashboard(folder, {"state_dir": folder / "state"}).start()
    try:
        node.ready()
        assert node.url.endswith("/ops/")
        page = get(node, "batch/some-id", sign_in=None)
        assert page.status == 200
        assert "data-action=" not in page.text
        assert "read-only" in page.text
    finally:
        node.teardown()
    assert node.process.returncode == 0


def test_celery_starts_it_for_callmill_only():
    """`celery callmill-flower` for another app says which one is meant."""
    done = subprocess.run(
        [sys.executable, "-m", "celery", "callmill-flower"], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 2
    assert "-A callmill.config.celery" in done.stderr


def listeners(port):
    """Return the addresses on which the kernel has listeners at the port, as it writes them."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    local = [row[1].split(":") for row in rows if row[3] == "0A"]
    return [address for address, hex_port in local if int(hex_port, 16) == port]


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        (["--address", "0.0.0.0"], {}, "needs authentication"),
        ([], {"FLOWER_ADDRESS": "0.0.0.0"}, "needs authentication"),
        (["--address", "0.0.0.0"], {"FLOWER_BASIC_AUTH": ":"}, "USER:PASSWORD"),
        (["--", "--no_such_option=1"], {}, "no option of Flower"),
        ([], {"FLOWER_PORT": "many"}, "option of Flower"),
    ],
)
def test_refuses_what_would_open_the_door(folder, server, arguments, environment, says):  # noqa: ARG001 - it must run
    """The dashboard does not start where others could open it unasked, or with an option that it cannot follow."""
    variables = {**os.environ, "CALLMILL_STATE_DIR": str(folder / "state"), **environment}
    done = subprocess.run(
        [sys.executable, "-m", "callmill.dashboard", *arguments],
        env=variables,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert says in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_without_redis_it_says_so(tmp_path):
    """Without any Redis the dashboard ends at once and names both remedies."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("CALLMILL_")}
    done = subprocess.run(
        [sys.executable, "-m", "callmill.dashboard"],
        env={**variables, "CALLMILL_STATE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert "CALLMILL_REDIS_URL" in done.stderr
    assert "callmill up" in done.stderr
