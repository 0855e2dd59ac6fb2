"""The command line, run as a user would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lilota_async import Lilota
from lilota_async.cli import main
from tests.apps import START_SECONDS, environment, free_port, serving
from tests.web.tasks import bill

pytestmark = pytest.mark.anyio


async def make_tasks(url: str) -> str:
    """A database with one task, which is not run; returns its id."""
    lilota = Lilota(url, number_of_processes=0)
    lilota.register(bill)
    async with lilota:
        return str(await lilota.schedule(bill, {"amount": 4711}))


@pytest.mark.parametrize("options", [[], ["--hide-payloads"]])
async def test_dashboard(tmp_path: Path, options: list[str]) -> None:
    """It shows the tasks of a database to this machine, and to no name that leads to it."""
    url = f"sqlite:///{tmp_path / 'lilota.db'}"
    task_id = await make_tasks(url)
    port = free_port()
    command = ["-m", "lilota_async", "dashboard", "--db-url", url, "--port", str(port), *options]
    with serving(command, tmp_path, port) as server:
        client = server.client
        assert "Needs attention" in client.get("/").text
        task = client.get(f"/tasks/{task_id}", params={"show": "payloads"}).text
        assert ("4711" in task) is not bool(options)
        assert client.get("/static/dashboard.js").status_code == 200
        foreign = client.get("/", headers={"host": "evil.example"})
        assert foreign.status_code == 400


def test_without_a_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is said in a line."""
    monkeypatch.delenv("LILOTA_DB_URL", raising=False)
    assert main(["dashboard"]) == 2
    assert main(["dashboard", "--db-url", "nonsense"]) == 1
    url = f"sqlite:///{tmp_path / 'empty.db'}"
    done = subprocess.run(
        [sys.executable, "-m", "lilota_async", "dashboard", "--db-url", url, "--port", "0"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
    )
    assert done.returncode == 1
    assert "has no tables of lilota" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []  # a mistyped path makes no file


@pytest.mark.parametrize("port", ["65536", "99999", "-1", "x", "1.5", "", "9" * 5000])
def test_ports_that_are_none(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is wrong is said before anything is looked at."""
    with pytest.raises(SystemExit) as caught:
        main(["dashboard", f"--port={port}"])
    assert caught.value.code == 2
    assert "a port is a whole number from 0 to 65535" in capsys.readouterr().err
