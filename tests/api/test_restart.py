"""An application that is killed: what it leaves behind, and what the next start() does."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from lilota_async import Task, TaskStatus
from tests.api.crashing_app import PROCESSES, TASKS
from tests.api.support import DEADLINE, MakeLilota, is_gone, marked, row, session, until
from tests.api.tasks import add, echo, hold_counted

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]
ROOT = Path(__file__).parents[2]


async def _killed_application(url: str, directory: Path) -> list[int]:
    """Run the application until its processes are busy, kill it; the PIDs of its processes."""
    application = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.api.crashing_app", url, str(directory), cwd=ROOT
    )
    try:
        await marked(directory, "scheduled")
        await until(lambda: len(_started(directory)) == PROCESSES, "the start of the tasks")
    finally:
        application.kill()
        await application.wait()
    return [int(mark.read_text()) for mark in _started(directory)]


def _started(directory: Path) -> list[Path]:
    return list(directory.glob("*/attempt-1"))


async def test_a_killed_application(
    make_lilota: MakeLilota, directory: Path, fast_database_url: str
) -> None:
    """Its task processes die with it, and the next start() runs everything it had accepted."""
    pids = await _killed_application(fast_database_url, directory)
    await until(lambda: all(map(is_gone, pids)), "the end of the task processes")

    lilota = make_lilota(hold_counted, db_url=fast_database_url, number_of_processes=2)
    before = await lilota.get_all_tasks()
    assert len(before) == TASKS
    interrupted = {task.id for task in before if task.status == "running"}
    assert len(interrupted) == PROCESSES
    assert {task.pid for task in before if task.id in interrupted} == set(pids)
    for number in range(TASKS):
        (directory / str(number) / "release").touch()
    async with lilota:
        for task in before:
            await lilota.wait(task.id, DEADLINE)
    for task in await lilota.get_all_tasks():
        times = 2 if task.id in interrupted else 1
        assert (task.status, task.output, task.attempts) == ("completed", times, times)
        assert task.interruptions == times - 1


async def test_a_living_node_keeps_its_tasks(make_lilota: MakeLilota, directory: Path) -> None:
    """A second application that starts takes nothing from one that lives."""
    first = make_lilota(hold_counted)
    async with first:
        task_id = await first.schedule(hold_counted, str(directory))
        await marked(directory, "attempt-1")
        async with make_lilota(hold_counted, echo) as second:
            assert await second.result(await second.schedule(echo, 1), DEADLINE) == 1
            assert (await row(second, task_id)).attempts == 1
            (directory / "release").touch()
            assert await second.result(task_id, DEADLINE) == 1
    assert (await row(first, task_id)).interruptions == 0


async def test_rows_by_hand(make_lilota: MakeLilota, fast_database_url: str) -> None:
    """Rows that the application itself has inserted run, pending or left running by nobody."""
    lilota = make_lilota(echo, db_url=fast_database_url)
    async with lilota:
        pass
    async with session(fast_database_url) as own:
        by_hand = [
            Task(name="echo", input={"a": [1, None]}),
            Task(name="echo", input="again", status=TaskStatus.RUNNING, attempts=3),
        ]
        own.add_all(by_hand)
        await own.commit()
        ids: list[Any] = [task.id for task in by_hand]
    async with lilota:
        assert await lilota.result(ids[0], DEADLINE) == {"a": [1, None]}
        assert await lilota.result(ids[1], DEADLINE) == "again"
    assert [(await row(lilota, task_id)).attempts for task_id in ids] == [1, 4]


async def test_an_input_by_hand_that_does_not_fit(
    make_lilota: MakeLilota, fast_database_url: str
) -> None:
    """A row whose input does not fit its model fails, and says at what place."""
    lilota = make_lilota(add, db_url=fast_database_url)
    async with lilota:
        pass
    async with session(fast_database_url) as own:
        by_hand = [Task(name="add", input={"a": 1, "b": "2"}), Task(name="add")]
        own.add_all(by_hand)
        await own.commit()
        ids: list[Any] = [task.id for task in by_hand]
    async with lilota:
        tasks = [await lilota.wait(task_id, DEADLINE) for task_id in ids]
    assert [task.status for task in tasks] == ["failed", "failed"]
    assert "$.b" in (tasks[0].exception or {})["message"]
