"""How applications end: in order under load, through uvicorn, and by SIGKILL."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from tests.apps import free_port, serving
from tests.faults.conftest import MakeRun
from tests.faults.harness import wait_until
from tests.faults.history import Tables
from tests.faults.replica import Load

pytestmark = pytest.mark.timeout(90)
DEATH_SECONDS = 5.0  # a second, on a machine that has nothing else to do
BUSY = Load(tasks=None, pause=0.002, seconds=(0.005, 0.02), patient=0.5)
WEB = """
import os
from dataclasses import dataclass

from fastapi import FastAPI, Request

from lilota_async import Lilota

lilota = Lilota(os.environ["URL"], number_of_processes=1, stop_timeout=5.0)
app = FastAPI(lifespan=lilota.lifespan)


@dataclass
class Nap:
    seconds: float


@lilota.register
def nap(data: Nap) -> int:
    import time

    time.sleep(data.seconds)
    return os.getppid()


@app.get("/")
async def schedule(request: Request) -> str:
    return str(await request.state.lilota.schedule(nap, Nap(0.02)))
"""


@pytest.mark.parametrize(("drain", "timeout"), [(True, None), (False, 0.0)])
def test_stop_under_load(
    make_run: MakeRun, fast_database_url: str, drain: bool, timeout: float | None
) -> None:
    """A node that is stopped while it schedules and runs loses nothing, and leaves nothing."""
    run = make_run(fast_database_url)
    node = run.start(load=BUSY, drain=drain, stop_timeout=timeout)
    wait_until(lambda: run.started(60), "the start of its tasks")
    node.stop()
    assert "running" not in {row.status for row in run.tables.rows()}
    assert run.tables.fetch("SELECT count(*) FROM lilota_node")[0][0] == 0
    after = run.start().wait_until_ready()
    assert run.wait_for_rest()
    after.stop()
    assert {row.status for row in run.tables.rows()} == {"completed"}
    assert run.violations() == []


def test_uvicorn_with_two_workers(
    tmp_path: Path, fast_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM: both workers finish what runs, put back the rest, and leave no process."""
    (tmp_path / "web.py").write_text(WEB)
    monkeypatch.setenv("URL", fast_database_url)
    port = free_port()
    command = [
        "-m",
        "uvicorn",
        "--workers",
        "2",
        "--timeout-worker-healthcheck",
        "30",
        "--port",
        str(port),
        "web:app",
    ]
    tables = Tables(fast_database_url)
    with serving(command, tmp_path, port) as server:
        answered = 1
        nodes = "SELECT count(*) FROM lilota_node"
        wait_until(lambda: tables.fetch(nodes)[0][0] == 2, "the start of the second worker")
        for _ in range(60):
            server.client.get("/").raise_for_status()
            answered += 1
        server.stop()
    rows = tables.fetch("SELECT status, count(*) FROM lilota_task GROUP BY status")
    assert sum(row[1] for row in rows) == answered
    assert {row[0] for row in rows} <= {"completed", "pending"}
    assert tables.fetch("SELECT count(*) FROM lilota_node")[0][0] == 0


def _lives(process: psutil.Process) -> bool:
    """Whether it may still do something; a zombie only waits for whoever inherited it."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_kill_ends_all_of_its_processes(make_run: MakeRun, fast_database_url: str) -> None:
    """SIGKILL to the application: its task processes are gone soon, its rows taken."""
    run = make_run(fast_database_url)
    node = run.start(load=Load(tasks=2, holds=True, patient=1.0))  # they do not end by themselves
    wait_until(lambda: run.started(2), "the start of its tasks")
    family = [psutil.Process(pid) for pid in node.task_processes()]
    assert len(family) >= 2
    os.kill(node.pid, signal.SIGKILL)
    node.wait()
    wait_until(lambda: not any(map(_lives, family)), "the end of its processes", DEATH_SECONDS)
    run.release(2)
    after = run.start().wait_until_ready()
    assert run.wait_for_rest()
    after.stop()
    assert {(row.status, row.attempts, row.interruptions) for row in run.tables.rows()} == {
        ("completed", 2, 1)
    }
    assert run.violations() == []
