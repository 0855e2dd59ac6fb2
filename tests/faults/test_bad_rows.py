"""Rows that somebody has edited into nonsense: none of them stops the node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from lilota_async import Lilota, Task, TaskId
from tests.api.tasks import add, echo
from tests.faults.history import Tables

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
DEADLINE = 20.0


@asynccontextmanager
async def _running(url: str, **options: Any) -> AsyncIterator[Lilota]:
    lilota = Lilota(url, number_of_processes=1, lease=1.0, grace=0.2, **options)
    for function in (echo, add):
        lilota.register(function)
    async with asyncio.timeout(DEADLINE), lilota:
        yield lilota


async def _insert(url: str, **values: Any) -> TaskId[Any]:
    """A pending row of `echo`, some of whose columns have these values; the tables are there."""
    task_id: TaskId[Any] = TaskId()
    columns = {
        "id": task_id.hex,
        "name": "echo",
        "status": "pending",
        "priority": 0,
        "created_at": "2026-01-01 00:00:00.000000",
        "run_at": "2026-01-01 00:00:00.000000",
        "progress_percentage": 0,
        "input": "1",
        "attempts": 0,
        "max_attempts": 1,
        "interruptions": 0,
        **values,
    }
    texts = ", ".join(_literal(value) for value in columns.values())
    statement = f"INSERT INTO lilota_task ({', '.join(columns)}) VALUES ({texts})"
    await asyncio.to_thread(Tables(url).fetch, statement)
    return task_id


def _literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return f"x'{value.hex()}'"
    return str(value) if isinstance(value, int | float) else "'" + str(value) + "'"


async def _lives(lilota: Lilota) -> None:
    """It still takes and runs tasks."""
    for value in range(3):
        assert await lilota.result(await lilota.schedule(echo, value), 5.0) == value


async def _final(lilota: Lilota, task_id: TaskId[Any]) -> Task:
    return await lilota.wait(task_id, 5.0)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The URL of a new SQLite file."""
    return f"sqlite+aiosqlite:///{tmp_path / 'lilota.db'}"


@pytest.fixture
async def url(fast_database_url: str) -> str:
    """A database with the tables."""
    async with Lilota(fast_database_url, number_of_processes=0):
        pass
    return fast_database_url


UNREADABLE: tuple[dict[str, Any], ...] = (
    {"input": "{broken"},
    {"input": ""},
    {"input": "[" * 5000},
    {"name": "add", "input": '{"a": 1}'},
    {"name": "add", "input": '"text"'},
    {"name": "add"},
    {"checkpoint": "{broken"},
)
IRRELEVANT: tuple[dict[str, Any], ...] = (
    {"tags": "{broken"},
    {"tags": '{"a": 1}'},
    {"failures": "[broken"},
    {"failures": '"text"'},
    {"exception": "{broken"},
    {"output": "{broken"},
    {"log": "x" * 100},
    {"priority": -5},
    {"progress_percentage": 4000},
    {"attempts": -3},
    {"interruptions": -1},
    {"max_attempts": 2**31 - 1},
    {"timeout_seconds": 1e300},
    {"pid": -1},
    {"end_date_time": "2020-01-01 00:00:00.000000"},
    {"cancel_requested_at": "2020-01-01 00:00:00.000000"},
)
UNCLAIMABLE: tuple[dict[str, Any], ...] = (
    {"status": "sleeping"},
    {"status": ""},
    {"name": "nobody"},
    {"name": "ECHO"},
    {"name": "echo "},
    {"attempts": 2**31 - 1},
    {"status": "running", "name": "nobody"},
    {"status": "running", "interruptions": 2**31 - 1},
)
# Any value in any column, and the status that the row has in the end.
ONLY_IN_SQLITE: tuple[tuple[dict[str, Any], str], ...] = (
    ({"id": "not an id"}, "failed"),
    ({"id": "0197AAAA00007000800000000000000A"}, "failed"),
    ({"id": "01939e4a-0000-7000-8000-00000000000a"}, "failed"),
    ({"id": "02", "status": "running"}, "running"),
    ({"attempts": "many"}, "pending"),
    ({"status": "running", "attempts": "many"}, "running"),
    ({"input": b"\xff\x00"}, "failed"),
    ({"max_attempts": "many", "name": "add"}, "failed"),
    ({"timeout_seconds": "soon"}, "completed"),
    ({"tags": b"\xff"}, "completed"),
    ({"run_at": "soon"}, "pending"),
)


async def test_inputs_that_cannot_be_read(url: str) -> None:
    """Each such task fails, with the reason in its row."""
    ids = [await _insert(url, **values) for values in UNREADABLE]
    async with _running(url) as lilota:
        tasks = [await _final(lilota, task_id) for task_id in ids]
        await _lives(lilota)
    assert {str(task.status) for task in tasks} == {"failed"}
    assert {(task.exception or {})["kind"] for task in tasks} == {"error"}
    assert all((task.exception or {})["message"] for task in tasks)


async def test_columns_that_do_not_matter(url: str) -> None:
    """What a task does not need may be broken: it runs, and can be looked at."""
    ids = [await _insert(url, **values) for values in IRRELEVANT]
    async with _running(url) as lilota:
        tasks = [await _final(lilota, task_id) for task_id in ids]
        await _lives(lilota)
        assert set(ids) <= {task.id for task in await lilota.get_all_tasks()}
    assert [(str(task.status), task.output) for task in tasks] == [("completed", 1)] * len(ids)


async def test_a_timeout_that_has_passed_already(url: str) -> None:
    """The task is stopped, unless it is quicker than that."""
    task_id = await _insert(url, timeout_seconds=-1.0)
    async with _running(url) as lilota:
        task = await _final(lilota, task_id)
        await _lives(lilota)
    assert task.status == "completed" or (task.exception or {})["kind"] == "timeout"


async def test_rows_that_nobody_can_run(url: str) -> None:
    """They stay as they are, can be looked at, and are in nobody's way."""
    ids = [await _insert(url, **values) for values in UNCLAIMABLE]
    async with _running(url) as lilota:
        await _lives(lilota)
        await asyncio.sleep(0.5)  # more than a heartbeat
        for task_id, values in zip(ids, UNCLAIMABLE, strict=True):
            task = await lilota.get_task_by_id(task_id)
            assert task is not None
            assert task.status == values.get("status", "pending")
            assert task.attempts == values.get("attempts", 0)
        assert set(ids) <= {task.id for task in await lilota.get_all_tasks()}


async def test_a_status_that_turns_to_nonsense(url: str) -> None:
    """Whoever waits for that task or for others goes on waiting, until it is one again."""
    async with _running(url) as lilota:
        task_id = await _insert(url, name="nobody")
        waiting = asyncio.ensure_future(lilota.wait(task_id))
        other_id = await _insert(url, name="nobody")
        other = asyncio.ensure_future(lilota.wait(other_id))
        tables = Tables(url)

        async def set_status(each: TaskId[Any], status: str) -> None:
            statement = f"UPDATE lilota_task SET status = '{status}' WHERE id = '{each.hex}'"
            await asyncio.to_thread(tables.fetch, statement)

        await asyncio.sleep(0.1)
        await set_status(task_id, "sleeping")
        await asyncio.sleep(1.2)  # longer than a poll
        await set_status(other_id, "failed")
        assert (await other).status == "failed"
        assert not waiting.done()
        await set_status(task_id, "cancelled")
        assert (await waiting).status == "cancelled"


async def test_a_running_row_with_everything_broken(url: str) -> None:
    """A row that nobody runs is taken over, whatever is in the columns that do not matter."""
    task_id = await _insert(
        url,
        status="running",
        attempts=5,
        tags="{",
        failures="{",
        checkpoint=None,
        max_attempts=2**31 - 1,
        pid=-7,
        locked_by=TaskId().hex,
    )
    async with _running(url) as lilota:
        task = await _final(lilota, task_id)
    assert (task.status, task.attempts, task.interruptions) == ("completed", 6, 1)


async def test_a_result_that_the_database_refuses(url: str) -> None:
    """The task fails with what the database said, instead of running for ever."""
    tables = Tables(url)
    refusal = (
        "CREATE TRIGGER refuse BEFORE UPDATE ON lilota_task WHEN NEW.output = '13'"
        " BEGIN SELECT RAISE(ABORT, 'no thirteens'); END"
        if tables.is_sqlite
        else "ALTER TABLE lilota_task ADD CONSTRAINT no_thirteens CHECK (output <> '13')"
    )
    await asyncio.to_thread(tables.fetch, refusal)
    async with _running(url) as lilota:
        ids = [await lilota.schedule(echo, value) for value in (12, 13, 14)]
        tasks = [await _final(lilota, task_id) for task_id in ids]
        await _lives(lilota)
    assert [str(task.status) for task in tasks] == ["completed", "failed", "completed"]
    assert "thirteens" in (tasks[1].exception or {})["message"]


async def test_what_only_sqlite_keeps(sqlite_url: str) -> None:
    """Each row fails or stays where it is, and the node lives on beside them."""
    async with Lilota(sqlite_url, number_of_processes=0):
        pass
    ends = {}
    for values, status in ONLY_IN_SQLITE:
        task_id = await _insert(sqlite_url, **values)
        ends[values.get("id", task_id.hex)] = status
    statement = "SELECT id, status, exception FROM lilota_task"
    async with _running(sqlite_url) as lilota:
        await _lives(lilota)
        await asyncio.sleep(0.5)  # more than a heartbeat
        await _lives(lilota)
        rows = {row[0]: row[1:] for row in Tables(sqlite_url).fetch(statement)}
    for key, status in ends.items():
        assert rows[key][0] == status, (key, rows[key])
        assert status != "failed" or "message" in rows[key][1]
