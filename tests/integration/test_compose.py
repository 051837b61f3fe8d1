"""The containers as docker-compose.yml runs them: brought up, put to work, scaled under load, taken down."""

from __future__ import annotations

import json
import os
import re
import subprocess
import uuid
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from container_nodes import compose_or_skip, engine_or_skip
from local_nodes import free_port, until

pytestmark = pytest.mark.docker

ROOT = Path(__file__).parents[2]
JOBS = len((ROOT / "config/demo/calls.jsonl").read_text().splitlines())
SCALED_JOBS, SCALED_LIMIT = 20_000, "500/second"
SERVED_LIMIT = "550/second"
"""What the server enforces: a tenth more, for containers that start by the half-dozen stall a small machine."""


@pytest.fixture(scope="module")
def compose_command() -> list[str]:
    """Return the command of Compose; skip where it is missing or no engine answers."""
    engine_or_skip()
    return compose_or_skip()


class Project:
    """One run of docker-compose.yml, the demo included, under a name of its own."""

    def __init__(self, command: Sequence[str], image: str, files: Sequence[Path] = ()) -> None:
        self.name = f"callmilltest{uuid.uuid4().hex[:8]}"
        self.port = free_port()
        given = [argument for file in ("docker-compose.yml", *files) for argument in ("-f", str(file))]
        self._command = [*command, *given, "--profile", "demo"]
        # Nothing of the shell's: what a stranger has who cloned this.
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("CALLMILL_")} | {
            "COMPOSE_PROJECT_NAME": self.name,
            "CALLMILL_IMAGE": image,
            "CALLMILL_DASHBOARD_PORT": str(self.port),
        }

    def run(self, *arguments: str, timeout_s: float = 180) -> str:
        """Run Compose; fail where it fails; return its output."""
        ran = subprocess.run(
            [*self._command, *arguments],
            cwd=ROOT,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr[-3000:]
        return ran.stdout

    def set(self, variables: Mapping[str, str]) -> None:
        """Set variables of the compose file."""
        self._environment |= variables

    def scale(self, workers: int) -> None:
        """Have so many workers, everything else as it is."""
        self.run("up", "-d", "--no-recreate", "--scale", f"worker={workers}")

    def containers(self, service: str) -> list[dict]:
        """Return what the engine knows of a service's containers."""
        ids = self.run("ps", "-a", "-q", service).split()
        shown = subprocess.run(["docker", "inspect", *ids], capture_output=True, text=True, timeout=20, check=True)
        return json.loads(shown.stdout)

    def exit_code(self, service: str, timeout_s: float) -> int:
        """Wait until a service's one container has ended, and return its exit code."""
        (container,) = self.run("ps", "-a", "-q", service).split()
        waited = subprocess.run(
            ["docker", "wait", container], capture_output=True, text=True, timeout=timeout_s, check=True
        )
        return int(waited.stdout)

    def page(self, *, sign_in: str) -> int:
        """Ask for the dashboard's first page and return the status."""
        request = Request(f"http://127.0.0.1:{self.port}/")
        request.add_header("Authorization", "Basic " + b64encode(sign_in.encode()).decode())
        try:
            with urlopen(request, timeout=10) as answer:  # noqa: S310 - http
                return answer.status
        except HTTPError as error:
            with error:
                return error.code


@contextmanager
def brought_up(project: Project, workers: int) -> Iterator[Project]:
    """Bring everything up with so many workers; take all of it down at the end."""
    try:
        project.scale(workers)
        yield project
    finally:
        project.run("down", "--volumes", "--timeout", "45")


@pytest.fixture(scope="module")
def project(compose_command, image) -> Iterator[Project]:
    """Run the demo on two workers."""
    with brought_up(Project(compose_command, image), workers=2) as project:
        yield project


def test_demo_has_every_outcome(project):
    """The demo's batch ends with exit code 0, every job succeeded, and the API never had to answer 429."""
    code = project.exit_code("submit", timeout_s=120)
    report = project.run("logs", "submit")
    assert code == 0, report
    assert re.search(rf"jobs +{JOBS}: {JOBS} succeeded, 0 failed", report), report
    assert re.search(r"\b0 answered 429", report), report


def test_redis_wants_a_password_that_was_made_up(project):
    """Without the password Redis answers nobody, and the password is on no command line."""
    redis = project.containers("redis")[0]["Id"]

    def within(*command: str) -> str:
        ran = subprocess.run(
            ["docker", "exec", redis, *command], capture_output=True, text=True, timeout=20, check=False
        )
        return ran.stdout + ran.stderr

    password = within("cat", "/run/callmill/redis-password").strip()
    assert re.fullmatch(r"[0-9a-f]{64}", password)
    assert "NOAUTH" in within("redis-cli", "PING")
    assert "PONG" in within("env", f"REDISCLI_AUTH={password}", "redis-cli", "PING")
    assert password not in within("cat", "/proc/1/cmdline")


def test_dashboard_wants_the_password(project):
    """The dashboard's port is published on this machine only, and its pages want the password that its log shows."""
    until(lambda: project.containers("dashboard")[0]["State"]["Health"]["Status"] == "healthy", timeout_s=90)
    made = re.search(r"Sign in as (\S+) with (\S+);", project.run("logs", "dashboard"))
    assert made is not None
    assert project.page(sign_in=f"{made[1]}:wrong") == 401
    assert project.page(sign_in=f"{made[1]}:{made[2]}") == 200
    bindings = project.containers("dashboard")[0]["HostConfig"]["PortBindings"]
    assert [binding["HostIp"] for bound in bindings.values() for binding in bound] == ["127.0.0.1"]


def test_workers_are_healthy_and_end_when_asked(project):
    """Both workers report as healthy, run without root on a read-only disk, and a stop ends each with exit code 0."""
    workers = until(
        lambda: (
            found
            if (found := project.containers("worker"))
            and all(container["State"]["Health"]["Status"] == "healthy" for container in found)
            else None
        ),
        timeout_s=90,
        what="both workers are healthy",
    )
    assert [worker["Config"]["User"] for worker in workers] == ["callmill", "callmill"]
    assert [worker["HostConfig"]["ReadonlyRootfs"] for worker in workers] == [True, True]
    project.run("stop", "worker")
    assert [worker["State"]["ExitCode"] for worker in project.containers("worker")] == [0, 0]


def test_scaling_under_load_loses_and_repeats_nothing(compose_command, image, tmp_path):
    """20,000 calls on four workers, then one, then six: each job is called once, and no limit is broken."""
    port = free_port()
    (tmp_path / "calls.jsonl").write_text(
        "".join(f'{{"custom_id":"{n}","method":"POST","url":"/{n}","body":{n}}}\n' for n in range(SCALED_JOBS))
    )
    demo = (ROOT / "config/demo/apis.toml").read_text()
    (tmp_path / "apis.toml").write_text(demo.replace("100/second", SCALED_LIMIT))
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o777)  # the container's user has no name here
    (tmp_path / "scaled.yml").write_text(
        dedent(f"""
            services:
              simulator:
                command: [simulate, --host=0.0.0.0, --limit={SERVED_LIMIT}, --latency=50ms-150ms]
                ports: ["127.0.0.1:{port}:8800"]
              submit:
                command: [run, /calls.jsonl, --output=/out/outcomes.jsonl, --name=scaled]
                volumes:
                  - {tmp_path}/calls.jsonl:/calls.jsonl:ro
                  - {tmp_path}/out:/out
                  - {tmp_path}/apis.toml:/etc/callmill/apis.toml:ro
        """)
    )
    project = Project(compose_command, image, [tmp_path / "scaled.yml"])
    project.set({"CALLMILL_APIS_FILE": f"{tmp_path}/apis.toml"})

    def accepted() -> int:
        with urlopen(f"http://127.0.0.1:{port}/stats", timeout=10) as answer:
            stats = json.load(answer)
        assert stats["rejected"] == 0
        return stats["accepted"]

    with brought_up(project, workers=4):
        until(lambda: accepted() >= SCALED_JOBS / 5, 90, "a fifth is done")
        project.scale(1)
        until(lambda: accepted() >= SCALED_JOBS / 2, 90, "half is done")
        project.scale(6)
        assert project.exit_code("submit", timeout_s=120) == 0, project.run("logs", "submit", "worker")
        assert accepted() == SCALED_JOBS
    outcomes = [json.loads(line) for line in (tmp_path / "out/outcomes.jsonl").read_text().splitlines()]
    assert Counter(outcome["custom_id"] for outcome in outcomes) == {str(n): 1 for n in range(SCALED_JOBS)}
    assert all(outcome["response"]["status_code"] == 200 for outcome in outcomes)
