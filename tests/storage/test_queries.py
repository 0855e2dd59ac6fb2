"""Reading: detached objects, pages, states, and what cannot be read."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from lilota_async.errors import SchemaMissing, StoreUnavailable, TaskIsRunning
from lilota_async.models import TaskId, TaskStatus
from lilota_async.storage.database import Database
from lilota_async.storage.queries import (
    Selection,
    delete_task,
    get_states,
    get_task,
    get_tasks,
    listing,
)
from lilota_async.storage.reading import by_index
from lilota_async.storage.store import Store
from tests.storage.plans import reads_whole_table, recording
from tests.storage.support import checked_out, claim, eventually, insert, new_task, raw, row_of

pytestmark = pytest.mark.anyio
YESTERDAY = datetime.now(UTC) - timedelta(days=1)
TOMORROW = YESTERDAY + timedelta(days=2)


async def test_no_row_is_none(database: Database) -> None:
    """An id that was never scheduled has no task and no state."""
    assert await get_task(database, TaskId()) is None
    assert await get_tasks(database) == []
    assert await get_states(database, [TaskId()]) == {}
    assert await get_states(database, []) == {}


async def test_tasks_come_from_old_to_new(database: Database, store: Store) -> None:
    """More than a page of them, in pages of the caller, and by status and name."""
    tasks = [new_task("other" if number % 2 else "add") for number in range(600)]
    await insert(database, store, tasks)
    await claim(database, store, 100, names=("other",))
    ids = [task.id for task in tasks]

    assert [task.id for task in await get_tasks(database)] == ids
    page = await get_tasks(database, limit=300)
    assert [task.id for task in page] == ids[:300]
    assert [task.id for task in await get_tasks(database, after=page[-1].id)] == ids[300:]
    assert [task.id for task in await get_tasks(database, Selection(name="add"))] == ids[::2]
    running = await get_tasks(database, Selection(status=TaskStatus.RUNNING), limit=1000)
    assert len(running) == 100
    assert await get_tasks(database, limit=0) == []
    assert await get_tasks(database, Selection(name="ADD")) == []
    assert await get_tasks(database, Selection(name="add ")) == []


async def test_a_long_list_is_one_statement(database: Database, store: Store) -> None:
    """Each page would sort all that is pending; and the event loop has turns all the while."""
    tasks = [new_task() for _ in range(1000)]
    await insert(database, store, tasks)
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    others = asyncio.create_task(take_turns())
    with recording(database) as recorded:
        listed = await get_tasks(database, Selection(status=TaskStatus.PENDING))
    others.cancel()
    assert [task.id for task in listed] == [task.id for task in tasks]
    assert sum(sql.startswith("SELECT") for sql, _ in recorded.statements) == 1
    assert turns > 4


@pytest.mark.parametrize("status", [s for s in TaskStatus if s is not TaskStatus.COMPLETED])
async def test_listing_reads_no_completed_rows(
    database: Database, store: Store, status: TaskStatus
) -> None:
    """Tasks of any other status are listed by an index that has no completed ones."""
    wanted = [new_task() for _ in range(3)]
    done = [new_task() for _ in range(2000)]
    await insert(database, store, [*wanted[:1], *done, *wanted[1:]])
    await raw(database, "UPDATE lilota_task SET status = 'completed'")
    for task in wanted:
        key = store.dialect.key(task.id)
        await raw(database, f"UPDATE lilota_task SET status = '{status}' WHERE id = :id", id=key)
    if database.dialect == "postgresql":
        await raw(database, "ANALYZE lilota_task")
    listed = await get_tasks(database, Selection(status=status, name="add"), limit=10)
    assert [task.id for task in listed] == [task.id for task in wanted]
    page = await get_tasks(database, Selection(status=status), after=wanted[0].id)
    assert [task.id for task in page] == [task.id for task in wanted[1:]]
    statement = listing(database.dialect, status, wanted[0].id).limit(10)
    async with database.connect() as connection:
        compiled = statement.compile(
            dialect=connection.dialect, compile_kwargs={"literal_binds": True}
        )
        explain = "EXPLAIN QUERY PLAN" if database.dialect == "sqlite" else "EXPLAIN"
        plan = (await connection.exec_driver_sql(f"{explain} {compiled}")).all()
    used = "\n".join(str(tuple(row)) for row in plan)
    unsuccessful = status in (TaskStatus.FAILED, TaskStatus.CANCELLED)
    index = "unsuccessful" if unsuccessful else status.value
    if database.dialect == "mariadb":
        index = "pending"
    assert f"ix_lilota_task_{index}" in used


async def test_states_of_many_tasks(database: Database, store: Store) -> None:
    """Status and progress by id, for more ids than one statement takes."""
    tasks = [new_task() for _ in range(700)]
    await insert(database, store, tasks)
    (claimed,) = await claim(database, store, 1)
    await raw(database, "UPDATE lilota_task SET progress_percentage = 7 WHERE status = 'running'")
    states = await get_states(database, [task.id for task in tasks])
    assert len(states) == 700
    assert states[claimed.attempt.id] == (TaskStatus.RUNNING, 7)
    assert states[tasks[-1].id] == (TaskStatus.PENDING, 0)


async def test_nonsense_in_a_row_is_readable(database: Database, store: Store) -> None:
    """What somebody edited by hand comes back as its text and breaks nothing."""
    task = new_task(input="1")
    await insert(database, store, [task])
    await raw(database, "UPDATE lilota_task SET status = 'paused', input = '{broken', tags = ''")
    row = await row_of(database, task.id)
    assert str(row.status) == "paused"
    assert row.input == "{broken"
    assert str(row.tags) == ""
    assert await claim(database, store) == []
    assert await get_states(database, [task.id]) == {task.id: ("paused", 0)}


async def test_delete_of_a_task(database: Database, store: Store) -> None:
    """Without a writer too; a running one is refused, and nothing is no error."""
    running, pending = new_task(), new_task("unclaimed")
    await insert(database, store, [running, pending])
    await claim(database, store)
    with pytest.raises(TaskIsRunning):
        await delete_task(database, running.id)
    assert await delete_task(database, pending.id)
    assert not await delete_task(database, pending.id)


async def test_no_tables_are_a_clear_error(empty_database_url: str) -> None:
    """Reading before the first start() says so, also when nothing is open."""
    database = Database(empty_database_url)
    with pytest.raises(SchemaMissing, match="start"):
        await get_task(database, TaskId())


async def test_reading_works_when_closed(database: Database, store: Store) -> None:
    """After close() a connection is made for each read, and nothing of it stays."""
    task = new_task()
    await insert(database, store, [task])
    await database.close()
    try:
        assert (await row_of(database, task.id)).name == "add"
    finally:
        await database.open()


async def test_an_unreachable_database_is_unavailable() -> None:
    """The error names the place, and never the password."""
    for scheme in ("postgresql", "postgresql+psycopg", "mysql"):
        database = Database(f"{scheme}://user:s3cret@127.0.0.1:1/none")
        assert "s3cret" not in repr(database)
        with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:1") as caught:
            await get_task(database, TaskId())
        assert "s3cret" not in str(caught.value)


async def test_cancelled_reads_leak_no_connection(database: Database, store: Store) -> None:
    """Wherever a read is cancelled, its connection goes back or away."""
    await insert(database, store, [new_task() for _ in range(50)])
    for offset in range(60):
        read = asyncio.create_task(get_tasks(database))
        for _ in range(offset):
            await asyncio.sleep(0)
        read.cancel()
        await asyncio.wait([read])

    async def all_back() -> bool:
        return checked_out(database) == 0

    await eventually(all_back)
    assert len(await get_tasks(database)) == 50


@pytest.mark.parametrize(
    ("selection", "index"),
    [
        (Selection(), None),
        (Selection(tags=("x",)), None),
        (Selection(name="add"), "name"),
        (Selection(name="add", status=TaskStatus.COMPLETED, tags=("x",)), "name"),
        (Selection(name="other", status=TaskStatus.PENDING), "pending"),
        (Selection(name="other", status=TaskStatus.RUNNING), "running"),
        (Selection(name="other", status=TaskStatus.CANCELLED), "unsuccessful"),
        (Selection(created_after=YESTERDAY), None),
        (Selection(created_after=YESTERDAY, created_before=TOMORROW), None),
        (Selection(created_before=TOMORROW, status=TaskStatus.FAILED), "unsuccessful"),
        (Selection(created_after=YESTERDAY, status=TaskStatus.PENDING), "pending"),
    ],
)
async def test_every_filter_goes_by_an_index(
    database: Database, store: Store, selection: Selection, index: str | None
) -> None:
    """By the primary key or one of the others, after statistics of a full queue too."""
    await insert(database, store, [new_task("other") for _ in range(2000)])
    await insert(database, store, [new_task() for _ in range(5)])
    if database.dialect == "postgresql":
        await raw(database, "ANALYZE lilota_task")
    await raw(database, "UPDATE lilota_task SET status = 'completed'")
    with recording(database) as recorded:
        await get_tasks(database, selection, after=TaskId(UUID(int=0)), limit=10)
        async with by_index(database) as connection:
            recorded.statements[:] = [each for each in recorded.statements if "ORDER" in each[0]]
            (plan,) = await recorded.plans(connection)
    assert not reads_whole_table(plan)
    if database.dialect == "postgresql":
        assert f"ix_lilota_task_{index}" in plan if index else "lilota_task_pkey" in plan
    if database.dialect == "sqlite":
        assert f"ix_lilota_task_{index}" in plan if index else "autoindex_lilota_task_1" in plan
