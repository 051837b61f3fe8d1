"""The containers as docker-compose.yml runs them: built from the checkout, brought up, put to work, taken down."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import uuid
from base64 import b64encode
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from local_nodes import free_port, until

pytestmark = pytest.mark.docker

ROOT = Path(__file__).parents[2]
JOBS = len((ROOT / "config/demo/calls.jsonl").read_text().splitlines())
SIGN_IN = "someone:secret"


@pytest.fixture(scope="module")
def compose_command():
    """Return the command of Compose, the plug-in or the older program; skip where no engine answers."""
    try:
        subprocess.run(["docker", "info"], capture_output=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("no Docker engine answers")
    plug_in = subprocess.run(["docker", "compose", "version"], capture_output=True, timeout=20, check=False)
    if plug_in.returncode and shutil.which("docker-compose") is None:
        pytest.skip("there is a Docker engine but no Compose")
    return ["docker-compose"] if plug_in.returncode else ["docker", "compose"]


class Project:
    """One run of docker-compose.yml under a name of its own."""

    def __init__(self, command: list[str]) -> None:
        self.name = f"callmilltest{uuid.uuid4().hex[:8]}"
        self.port = free_port()
        self._command = command
        hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        self.environment = {
            **os.environ,
            "COMPOSE_PROJECT_NAME": self.name,
            "CALLMILL_IMAGE": self.name,
            "CALLMILL_APIS_FILE": "./config/demo/apis.toml",
            "CALLMILL_DASHBOARD_AUTH": SIGN_IN,
            "CALLMILL_DASHBOARD_PORT": str(self.port),
            "CALLMILL_NOFILE": str(65536 if hard_limit == resource.RLIM_INFINITY else min(65536, hard_limit)),
        }

    def run(self, *arguments: str, timeout_s: float = 120, without: str = "") -> subprocess.CompletedProcess[str]:
        """Run Compose, the demo included; ``without`` names a variable to leave out."""
        environment = {name: value for name, value in self.environment.items() if name != without}
        command = [*self._command, "--profile", "demo", *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def containers(self, service: str) -> list[dict]:
        """Return what the engine knows of a service's containers."""
        ids = self.run("ps", "-a", "-q", service).stdout.split()
        shown = subprocess.run(["docker", "inspect", *ids], capture_output=True, text=True, timeout=20, check=True)
        return json.loads(shown.stdout)

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


@pytest.fixture(scope="module")
def project(compose_command):
    """Build the image and bring everything up with two workers; take all of it down at the end."""
    project = Project(compose_command)
    try:
        built = project.run("build", timeout_s=900)
        assert built.returncode == 0, built.stderr[-3000:]
        up = project.run("up", "-d", "--scale", "worker=2", timeout_s=180)
        assert up.returncode == 0, up.stderr[-3000:]
        yield project
    finally:
        project.run("down", "--volumes", "--timeout", "45", timeout_s=180)
        subprocess.run(["docker", "rmi", project.name], capture_output=True, timeout=60, check=False)


def test_demo_has_every_outcome(project):
    """The demo's batch ends with exit code 0, every job succeeded, and the API never had to answer 429."""
    submit = until(
        lambda: next((c for c in project.containers("submit") if c["State"]["Status"] == "exited"), None),
        timeout_s=120,
        what="the batch is over",
    )
    report = project.run("logs", "submit").stdout
    assert submit["State"]["ExitCode"] == 0, report
    assert re.search(rf"jobs +{JOBS}: {JOBS} succeeded, 0 failed", report), report
    assert re.search(r"\b0 answered 429", report), report


def test_dashboard_wants_the_password(project):
    """The dashboard's port is published on this machine only, and its pages want the password."""
    until(lambda: project.containers("dashboard")[0]["State"]["Health"]["Status"] == "healthy", timeout_s=90)
    assert project.page(sign_in="someone:wrong") == 401
    assert project.page(sign_in=SIGN_IN) == 200
    bindings = project.containers("dashboard")[0]["HostConfig"]["PortBindings"]
    assert [binding["HostIp"] for bound in bindings.values() for binding in bound] == ["127.0.0.1"]


def test_workers_are_healthy_and_end_when_asked(project):
    """Both workers report as healthy, run without root, and a stop ends each with exit code 0 and not by force."""
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
    assert project.run("stop", "worker").returncode == 0
    assert [worker["State"]["ExitCode"] for worker in project.containers("worker")] == [0, 0]


def test_nothing_starts_without_a_password(compose_command):
    """Without the dashboard's password Compose refuses before anything starts, and says what to do."""
    refused = Project(compose_command).run("config", without="CALLMILL_DASHBOARD_AUTH")
    assert refused.returncode != 0
    assert "copy .env.example to .env" in refused.stderr
