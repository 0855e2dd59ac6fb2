"""get_task_by_id(), get_all_tasks(), delete_task_by_id(), and the rows for the users' own SQL."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import create_async_engine

from lilota_async import Lilota, Task, TaskId, TaskStatus
from lilota_async.errors import ConfigurationError, SchemaMissing, TaskIsRunning, TaskNotFound
from tests.api.support import DEADLINE, MakeLilota, marked, row, session, until
from tests.api.tasks import echo, fail, hold, nothing

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


async def _finished(lilota: Lilota, number: int) -> list[TaskId[Any]]:
    """Ids of tasks that have ended: `echo`s, each third one failed instead."""
    ids: list[TaskId[Any]] = []
    for each in range(number):
        if each % 3 == 2:
            ids.append(await lilota.schedule(fail, str(each)))
        else:
            ids.append(await lilota.schedule(echo, each))
    for task_id in ids:
        await lilota.wait(task_id, DEADLINE)
    return ids


async def test_an_id_that_is_not_there(make_lilota: MakeLilota) -> None:
    """An unknown id has no row and nothing to delete."""
    lilota = make_lilota(nothing, number_of_processes=0)
    async with lilota:
        for unknown in (TaskId[Any](), uuid4()):
            assert await lilota.get_task_by_id(unknown) is None
            assert not await lilota.delete_task_by_id(unknown)


@pytest.mark.parametrize("value", ["01939e4a-7d1c-7000-8000-000000000000", 5, None])
async def test_what_is_no_id(make_lilota: MakeLilota, value: Any) -> None:
    """A text is no id; the error says how to make one of it."""
    lilota = make_lilota(nothing, number_of_processes=0)
    async with lilota:
        for method in (
            lilota.get_task_by_id,
            lilota.delete_task_by_id,
            lilota.cancel,
            lilota.retry,
            lilota.wait,
            lilota.result,
        ):
            with pytest.raises(ConfigurationError, match=r"TaskId\(text\)"):
                await method(value)


async def test_what_cannot_be_waited_for(make_lilota: MakeLilota) -> None:
    """A position that is no text, and a time without an end, are refused."""
    wrong: Any
    async with make_lilota(nothing, number_of_processes=0) as lilota:
        task_id = await lilota.schedule(nothing)
        for wrong in (5, b"1-running-0-0", ["1"]):
            with pytest.raises(ConfigurationError, match="after must be the position of an event"):
                await anext(lilota.watch(task_id, after=wrong))
        for call in (lilota.wait, lilota.result, lilota.cancel):
            with pytest.raises(ConfigurationError, match="timeout must be 0 s or more, and finite"):
                await call(task_id, timeout=10**400)
        with pytest.raises(ConfigurationError, match="drain must be True or False"):
            await lilota.stop(wrong)
        assert lilota.is_running


async def test_listing(make_lilota: MakeLilota, fast_database_url: str) -> None:
    """All tasks, by status, by name, and page by page, always from old to new."""
    lilota = make_lilota(echo, fail, db_url=fast_database_url)
    async with lilota:
        ids = await _finished(lilota, 9)
        listed = await lilota.get_all_tasks()
        assert [task.id for task in listed] == ids
        failed = await lilota.get_all_tasks(status="failed")
        assert [task.id for task in failed] == ids[2::3]
        assert await lilota.get_all_tasks(status=TaskStatus.FAILED, name="echo") == []
        assert len(await lilota.get_all_tasks(name="echo")) == 6
        assert len(await lilota.get_all_tasks(name="nobody")) == 0
        pages: list[TaskId[Any]] = []
        while page := await lilota.get_all_tasks(limit=4, after=pages[-1] if pages else None):
            assert len(page) <= 4
            pages += [task.id for task in page]
        assert pages == ids
        assert await lilota.get_all_tasks(limit=0) == []


async def test_what_cannot_be_listed(make_lilota: MakeLilota) -> None:
    """A status that does not exist is refused with those that do."""
    lilota = make_lilota(nothing, number_of_processes=0)
    async with lilota:
        with pytest.raises(ConfigurationError, match="pending, running, completed"):
            await lilota.get_all_tasks(status="done")
        options: Any
        for options in ({"limit": -1}, {"limit": "3"}, {"limit": 10**400}, {"after": "first"}):
            with pytest.raises(ConfigurationError, match=r"limit|TaskId\(text\)"):
                await lilota.get_all_tasks(**options)


@pytest.mark.parametrize("name", [5, "", b"echo", ["echo"], echo, "a\0b", "\ud800", "x" * 201])
async def test_names_that_no_task_has(
    make_lilota: MakeLilota, fast_database_url: str, name: Any
) -> None:
    """They are refused before the database is asked."""
    async with make_lilota(db_url=fast_database_url, number_of_processes=0) as lilota:
        for call in (lilota.get_all_tasks(name=name), lilota.prune(0, name=name)):
            with pytest.raises(ConfigurationError, match="name"):
                await call


EAST, WEST = timezone(timedelta(hours=14)), timezone(timedelta(hours=-12))


@pytest.mark.parametrize("zone", [UTC, EAST, WEST], ids=str)
async def test_times_at_the_ends(
    make_lilota: MakeLilota, fast_database_url: str, zone: timezone
) -> None:
    """The first and the last time that there are stand for before and after all tasks."""
    first, last = datetime.min.replace(tzinfo=zone), datetime.max.replace(tzinfo=zone)
    async with make_lilota(nothing, db_url=fast_database_url, number_of_processes=0) as lilota:
        await lilota.schedule(nothing)
        assert len(await lilota.get_all_tasks(created_after=first, created_before=last)) == 1
        assert await lilota.get_all_tasks(created_after=last) == []
        assert await lilota.get_all_tasks(created_before=first) == []


class Nowhere(tzinfo):
    """A timezone that does not say which."""

    def utcoffset(self, _time: datetime | None) -> None:
        return None

    dst = tzname = utcoffset


async def test_times_without_an_offset(make_lilota: MakeLilota) -> None:
    """They are refused, as those without a timezone."""
    async with make_lilota(nothing, number_of_processes=0) as lilota:
        for time in (datetime(2030, 1, 1), datetime(2030, 1, 1, tzinfo=Nowhere())):
            with pytest.raises(ConfigurationError, match="created_after must be a datetime with"):
                await lilota.get_all_tasks(created_after=time)


async def test_looking_makes_no_file(tmp_path: Path) -> None:
    """A mistyped path is told, and nothing is there afterwards."""
    lilota = Lilota(f"sqlite:///{tmp_path / 'mistyped.db'}")
    for call in (lilota.get_all_tasks(), lilota.get_task_by_id(TaskId()), lilota.prune(0)):
        with pytest.raises(SchemaMissing, match="there is no such file; check the path"):
            await call
    assert list(tmp_path.iterdir()) == []


async def test_reading_after_stop_and_before_start(
    make_lilota: MakeLilota, fast_database_url: str
) -> None:
    """Reading and deleting need no running lilota: not after stop(), not before start()."""
    lilota = make_lilota(echo, fail, db_url=fast_database_url)
    async with lilota:
        ids = await _finished(lilota, 3)
    other = make_lilota(db_url=fast_database_url)
    for reader in (lilota, other):
        assert (await row(reader, ids[0])).output == 0
        assert len(await reader.get_all_tasks()) == 3
    assert await other.delete_task_by_id(ids[0])
    assert not await lilota.delete_task_by_id(ids[0])


async def test_reading_a_database_without_tables(
    make_lilota: MakeLilota, empty_database_url: str
) -> None:
    """A database that lilota has never seen says that it has no tables."""
    lilota = make_lilota(db_url=empty_database_url)
    with pytest.raises(SchemaMissing, match=r"start\(\)|migrate"):
        await lilota.get_all_tasks()


async def test_reading_on_several_loops(sqlite_url: str) -> None:
    """A stopped Lilota can be read from a new event loop, as scripts do."""

    def run() -> None:
        async def schedule() -> TaskId[Any]:
            async with lilota:
                return await lilota.schedule(echo, 5)

        task_id = asyncio.run(schedule())
        for _ in range(2):
            task = asyncio.run(lilota.get_task_by_id(task_id))
            assert task is not None
            assert task.output == 5
        assert asyncio.run(schedule()) != task_id

    lilota = Lilota(sqlite_url, number_of_processes=1)
    lilota.register(echo)
    await asyncio.to_thread(run)


async def test_the_row_needs_no_connection(make_lilota: MakeLilota) -> None:
    """A Task is detached: its attributes and its text work after everything is closed."""
    lilota = make_lilota(echo)
    async with lilota:
        task = await lilota.wait(await lilota.schedule(echo, 1), DEADLINE)
    assert repr(task).startswith(f"<Task 'echo' id={task.id} status=completed")
    assert task.failures is None
    assert task.log is None


async def test_tasks_in_a_session_of_the_user(
    make_lilota: MakeLilota, fast_database_url: str
) -> None:
    """Task is a mapped class: the users' own SELECTs find the same rows."""
    lilota = make_lilota(echo, fail, db_url=fast_database_url)
    async with lilota:
        ids = await _finished(lilota, 3)
        async with session(fast_database_url) as own:
            statement = select(Task).where(Task.status == TaskStatus.COMPLETED).order_by(Task.id)
            tasks = (await own.scalars(statement)).all()
    assert [task.id for task in tasks] == ids[:2]
    assert all(type(task.id) is TaskId for task in tasks)


async def test_engine_of_the_application(make_lilota: MakeLilota, fast_database_url: str) -> None:
    """An engine that is given is used and not disposed."""
    engine = create_async_engine(fast_database_url)
    lilota = make_lilota(echo, engine=engine)
    async with lilota:
        task_id = await lilota.schedule(echo, [1, 2])
        assert await lilota.result(task_id, DEADLINE) == [1, 2]
        assert len(await lilota.get_all_tasks(status="completed")) == 1
    async with engine.connect() as connection:
        status = await connection.exec_driver_sql("SELECT status FROM lilota_task")
        assert status.scalars().all() == ["completed"]
    await engine.dispose()


async def test_deleting(make_lilota: MakeLilota, directory: Path) -> None:
    """A running task is not deleted; pending and final ones are, once."""
    lilota = make_lilota(hold, echo)
    async with lilota:
        running = await lilota.schedule(hold, str(directory))
        await marked(directory)
        pending = await lilota.schedule(echo, 1)
        with pytest.raises(TaskIsRunning, match="cancel it or wait for it first"):
            await lilota.delete_task_by_id(running)
        assert await lilota.delete_task_by_id(pending)
        (directory / "release").touch()
        assert await lilota.result(running, DEADLINE) == "released"
        assert await lilota.delete_task_by_id(running)
        assert not await lilota.delete_task_by_id(running)
    assert await lilota.get_all_tasks() == []


async def test_one_that_is_deleted_here(
    make_lilota: MakeLilota, fast_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for it hears of that at once, and not from a poll."""
    for name in ("FIRST_POLL_SECONDS", "ALONE_POLL_SECONDS", "LAST_POLL_SECONDS"):
        monkeypatch.setattr(f"lilota_async.engine.events.{name}", 10 * DEADLINE)
    async with make_lilota(echo, db_url=fast_database_url) as lilota:
        assert lilota._node is not None
        events = lilota._node.events
        task_id = await lilota.schedule(echo, 1, delay=3600)
        waiting = asyncio.ensure_future(lilota.wait(task_id))
        await until(lambda: events.is_watched(task_id), "somebody who waits")
        assert await lilota.delete_task_by_id(task_id)
        with pytest.raises(TaskNotFound):
            await asyncio.wait_for(waiting, DEADLINE)


async def test_many_are_deleted_at_once(make_lilota: MakeLilota, database_url: str) -> None:
    """However many ask for it, each is answered for itself."""
    async with make_lilota(echo, db_url=database_url) as lilota:
        ids = await lilota.schedule_many(echo, range(2000), delay=3600)
        async with asyncio.timeout(DEADLINE):
            deleted = await asyncio.gather(*map(lilota.delete_task_by_id, [*ids, *ids[:10]]))
        assert deleted == [True] * 2000 + [False] * 10
        assert await lilota.get_all_tasks() == []
