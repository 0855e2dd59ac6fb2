"""Scripts that end without stop(), that are interrupted, or that fork."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.api.support import is_gone

pytestmark = pytest.mark.timeout(90)

ROOT = Path(__file__).parents[2]
PATIENCE = 30.0

APPLICATION = """
import asyncio, os, signal, sys
from lilota_async import Lilota
from lilota_async.errors import ConfigurationError
from tests.api import tasks

lilota = Lilota(sys.argv[1], number_of_processes=2)
lilota.register(tasks.spin)
lilota.register(tasks.swallow)

async def main():
    await lilota.start()
    {body}

if __name__ == "__main__":
    # A shell has what it runs in the background ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    asyncio.run(main())
    print("the end")
"""
RUN_ON = """
    await lilota.schedule(tasks.spin, sys.argv[2])
    await lilota.schedule(tasks.swallow, sys.argv[2] + "/other")
    while not os.path.exists(sys.argv[2] + "/started"): await asyncio.sleep(0.01)
    while not os.path.exists(sys.argv[2] + "/other/started"): await asyncio.sleep(0.01)
"""
WAIT = """
    try:
        await asyncio.sleep(600)
    finally:
        await lilota.stop(drain=False, timeout=0)
"""
FORK = """
    child = os.fork()
    if child == 0:
        for call in (lilota.schedule(tasks.spin, "x"), lilota.stop()):
            try:
                await call
            except ConfigurationError as error:
                print(error, flush=True)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    await lilota.stop()
"""


@contextmanager
def _application(tmp_path: Path, body: str) -> Iterator[subprocess.Popen[str]]:
    (tmp_path / "marks" / "other").mkdir(parents=True)
    script = tmp_path / "application.py"
    script.write_text(APPLICATION.format(body=body))
    with subprocess.Popen(
        [sys.executable, str(script), f"sqlite:///{tmp_path / 'lilota.db'}", f"{tmp_path}/marks"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as application:
        try:
            yield application
        finally:
            application.kill()


def _pids(tmp_path: Path) -> list[int]:
    return [int(mark.read_text()) for mark in (tmp_path / "marks").rglob("started")]


def test_the_end_of_a_script_without_stop(tmp_path: Path) -> None:
    """It waits for nobody, and nothing of it is left."""
    with _application(tmp_path, RUN_ON) as application:
        output, errors = application.communicate(timeout=PATIENCE)
    assert (application.returncode, output) == (0, "the end\n"), errors
    assert "Traceback" not in errors
    assert len(_pids(tmp_path)) == 2
    assert all(map(is_gone, _pids(tmp_path)))


def test_ctrl_c(tmp_path: Path) -> None:
    """The terminal signals all of the group: one traceback, the application's, and a clean stop."""
    with _application(tmp_path, RUN_ON + WAIT) as application:
        ends = time.monotonic() + PATIENCE
        while len(_pids(tmp_path)) < 2:
            assert time.monotonic() < ends
            time.sleep(0.01)
        os.killpg(application.pid, signal.SIGINT)
        _, errors = application.communicate(timeout=PATIENCE)
    assert application.returncode == -signal.SIGINT
    assert errors.count("Traceback") <= 2, errors  # one, with the cancelled wait as its context
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert all(map(is_gone, _pids(tmp_path)))


def test_a_fork_of_a_started_application(tmp_path: Path) -> None:
    """It cannot share what was started, and says so; the original goes on."""
    with _application(tmp_path, FORK) as application:
        output, errors = application.communicate(timeout=PATIENCE)
    assert application.returncode == 0, errors
    lines = output.splitlines()
    assert lines[2:] == ["0", "the end"]
    assert all("start it in each worker process" in line for line in lines[:2])
