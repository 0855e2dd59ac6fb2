"""Checkpoints: what the next attempt is handed, whatever ended the last one."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lilota_async import Retry, Task
from tests.api import work
from tests.api.support import DEADLINE, MakeLilota, marked, row, row_when, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
AT_ONCE = Retry(max_attempts=2, delay=0)


@pytest.mark.parametrize("how", ["exception", "timeout", "memory", "SIGKILL", "SIGSEGV", "exit"])
async def test_the_last_one_survives(
    make_lilota: MakeLilota, fast_database_url: str, how: str
) -> None:
    """The latest is handed to the next attempt, though it was made just before the end."""
    lilota = make_lilota(db_url=fast_database_url)
    lilota.register(
        retry=AT_ONCE,
        timeout=1.5 if how == "timeout" else None,
        max_memory="300MiB" if how == "memory" else None,
    )(work.checkpoint_and_end)
    async with lilota, asyncio.timeout(DEADLINE):
        task_id = await lilota.schedule(work.checkpoint_and_end, how)
        assert await lilota.result(task_id) == {"step": 3, "how": how}
        task = await row(lilota, task_id)
    assert task.attempts == 2
    assert [failure["kind"] for failure in task.failures or []] == [
        {"exception": "error", "timeout": "timeout", "memory": "memory"}.get(how, "crash")
    ]


async def test_many_deaths_at_once_lose_none(make_lilota: MakeLilota) -> None:
    """However the writes of checkpoints and ends fall together."""
    lilota = make_lilota(number_of_processes=2)
    lilota.register(retry=AT_ONCE)(work.checkpoint_and_end)
    async with lilota, asyncio.timeout(DEADLINE):
        ids = await lilota.schedule_many(work.checkpoint_and_end, ["exception", "SIGKILL"] * 5)
        for task_id in ids:
            assert (await lilota.result(task_id))["step"] == 3


def _is_at_its_end(task: Task) -> bool:
    return task.checkpoint is not None and task.checkpoint["step"] == 3


async def test_a_cancelled_task_goes_on_where_it_was(make_lilota: MakeLilota) -> None:
    """retry() after cancel() hands it out as well; stop() and start() do."""
    lilota = make_lilota(work.checkpoint_and_end)
    async with lilota, asyncio.timeout(DEADLINE):
        task_id = await lilota.schedule(work.checkpoint_and_end, "sleep")
        await row_when(lilota, task_id, _is_at_its_end)
        assert await lilota.cancel(task_id)
        assert await lilota.retry(task_id)
        assert (await lilota.result(task_id))["step"] == 3
        assert (await row(lilota, task_id)).cancel_requested_at is None
        stopped = await lilota.schedule(work.checkpoint_and_end, "sleep")
        await row_when(lilota, stopped, _is_at_its_end)
        await lilota.stop(drain=False, timeout=0)
    async with lilota, asyncio.timeout(DEADLINE):
        assert (await lilota.result(stopped))["step"] == 3


async def test_many_checkpoints(make_lilota: MakeLilota) -> None:
    """Ten thousand are no burden, and the last one is on the row."""
    lilota = make_lilota(work.count)
    async with lilota, asyncio.timeout(DEADLINE):
        task_id = await lilota.schedule(work.count, 10_000)
        assert await lilota.result(task_id) == {"first": 0, "attempt": 1}
        assert (await row(lilota, task_id)).checkpoint == 10_000
        await lilota.retry(task_id)
        assert await lilota.result(task_id) == {"first": 10_000, "attempt": 2}


@pytest.mark.parametrize("kind", ["large", "nan", "object", "zero"])
async def test_what_is_no_checkpoint(make_lilota: MakeLilota, kind: str) -> None:
    """It is the task's mistake, said where it was made; the one before it stays."""
    lilota = make_lilota(work.checkpoint_what_is_none)
    async with lilota, asyncio.timeout(DEADLINE):
        task = await lilota.wait(await lilota.schedule(work.checkpoint_what_is_none, kind))
    assert task.exception is not None
    assert (task.status, task.exception["kind"]) == ("failed", "error")
    assert "checkpoint_what_is_none" in task.exception["traceback"]
    assert task.checkpoint == {"good": 1}


APPLICATION = """
import asyncio, sys
from lilota_async import Lilota
from tests.api import work

async def main():
    lilota = Lilota(sys.argv[1], number_of_processes=1)
    lilota.register(work.checkpoint_and_hold)
    async with lilota:
        await lilota.schedule(work.checkpoint_and_hold, sys.argv[2])
        await asyncio.sleep(600)

if __name__ == "__main__":
    asyncio.run(main())
"""


async def test_the_death_of_the_application(
    make_lilota: MakeLilota, directory: Path, tmp_path: Path, sqlite_url: str
) -> None:
    """What was written before `kill -9` is what the next application goes on with."""
    script = tmp_path / "application.py"
    script.write_text(APPLICATION)
    application = subprocess.Popen(
        [sys.executable, str(script), sqlite_url, str(directory)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    lilota = make_lilota(work.checkpoint_and_hold)
    try:
        await marked(directory, "attempt-1")
        [task] = await lilota.get_all_tasks()
        await row_when(lilota, task.id, lambda task: task.checkpoint is not None)
    finally:
        application.send_signal(signal.SIGKILL)
        application.wait()
    await until(lambda: application.poll() is not None, "the end of the application")
    async with lilota, asyncio.timeout(DEADLINE):
        assert await lilota.result(task.id) == {"step": 7}
        assert (await row(lilota, task.id)).attempts == 2
