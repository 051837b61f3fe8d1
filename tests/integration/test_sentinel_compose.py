"""docker-compose.sentinel.yml: the primary's container is killed under load."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from local_nodes import until
from test_compose import Project, brought_up, compose_command

__all__ = ["compose_command"]

pytestmark = [pytest.mark.docker, pytest.mark.chaos]

ROOT = Path(__file__).parents[2]
JOBS = 2000
WITH_PASSWORD = 'REDISCLI_AUTH=$(cat /run/callmill/redis-password) redis-cli "$0" "$@"'


def test_a_killed_primary_is_replaced_and_comes_back_as_a_replica(compose_command, image, tmp_path):
    """The batch ends with one outcome for each job and no 429; the old primary follows the new one when it is back."""
    lines = (f'{{"custom_id":"{n}","method":"POST","url":"/{n}","body":{n}}}\n' for n in range(JOBS))
    (tmp_path / "calls.jsonl").write_text("".join(lines))
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o777)  # the container's user has no name here
    (tmp_path / "batch.yml").write_text(
        "services:\n  submit:\n    command: [run, /calls.jsonl, --output=/out/outcomes.jsonl]\n"
        f"    volumes: ['{tmp_path}/calls.jsonl:/calls.jsonl:ro', '{tmp_path}/out:/out']\n"
    )
    project = Project(compose_command, image, [Path("docker-compose.sentinel.yml"), tmp_path / "batch.yml"])

    def ask(service: str, *command: str) -> str:
        ran = subprocess.run(
            ["docker", "exec", project.containers(service)[0]["Id"], "sh", "-c", WITH_PASSWORD, *command],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        return ran.stdout

    def outcomes() -> list[str]:
        path = tmp_path / "out/outcomes.jsonl"
        return [json.loads(line)["custom_id"] for line in path.read_text().splitlines()] if path.exists() else []

    with brought_up(project, workers=2):
        until(lambda: len(outcomes()) >= JOBS / 5, 90, "a fifth is done")
        project.run("kill", "redis")
        code = project.exit_code("submit", timeout_s=120)
        report = project.run("logs", "submit")
        assert code == 0, report
        assert " 0 answered 429" in report, report
        assert sorted(outcomes(), key=int) == [str(n) for n in range(JOBS)]
        project.run("up", "-d", "--no-recreate", "redis")
        until(lambda: "role:slave" in ask("redis", "INFO", "replication"), 60, "the old primary follows")
