"""Unique keys, in the store: who has one, when it is free again, and races for it."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from lilota_async.errors import AlreadyScheduled, UniqueKeyTaken
from lilota_async.models import TaskId, TaskStatus
from lilota_async.options import OnConflict
from lilota_async.storage.database import Database
from lilota_async.storage.store import Store
from lilota_async.storage.stores import create_store
from lilota_async.storage.transitions import Finish, NewTask
from lilota_async.storage.writer import Writer
from tests.storage.support import claim, insert, new_task, raw, row_of, transacting

pytestmark = pytest.mark.anyio
_TIME_IS_OVER = "UPDATE lilota_task SET unique_until = created_at WHERE unique_until IS NOT NULL"


def keyed(key: str = "k", name: str = "add", **values: Any) -> NewTask:
    return new_task(name, unique_key=key, **values)


async def settle(
    database: Database, store: Store, task: NewTask, on_conflict: OnConflict = "return_existing"
) -> TaskId[Any] | None:
    async with transacting(database) as c:
        return await store.unique_keys.settle(c, task, on_conflict)


async def inserted(database: Database, store: Store, *tasks: NewTask) -> list[bool]:
    """Which of them were inserted."""
    async with transacting(database) as c:
        refused = await store.insert(c, tasks)
    return [task.id not in refused for task in tasks]


async def finish(database: Database, store: Store) -> None:
    (claimed,) = await claim(database, store)
    async with transacting(database) as c:
        await store.finish(c, [Finish(attempt=claimed.attempt, status=TaskStatus.COMPLETED)])


async def test_one_for_each_name_and_key(database: Database, store: Store) -> None:
    """The second of a key is left out of its batch, and nothing else is."""
    batch = [keyed("a"), new_task(), keyed("b"), keyed("a"), keyed("A"), keyed("a", "other")]
    assert await inserted(database, store, *batch) == [True, True, True, False, True, True]
    assert await inserted(database, store, keyed("b"), new_task()) == [False, True]
    assert len(await claim(database, store)) == 6


async def test_an_id_again(database: Database, store: Store) -> None:
    """A task that has its row already, final or not, is the one that was meant."""
    task = keyed()
    assert await inserted(database, store, task) == [True]
    await insert(database, store, [task])
    assert await settle(database, store, task, "reject") == task.id
    await finish(database, store)
    await insert(database, store, [task])
    assert await settle(database, store, task, "reject") == task.id
    assert len(await raw(database, "SELECT id FROM lilota_task")) == 1


async def test_a_key_is_free_when_its_task_is_final(database: Database, store: Store) -> None:
    """Pending and running it is taken, and after that no more."""
    first = keyed()
    assert await inserted(database, store, first) == [True]
    for expected in ("pending", "running"):
        assert await settle(database, store, keyed()) == first.id
        with pytest.raises(AlreadyScheduled, match=f"'k' already, and {expected}") as caught:
            await settle(database, store, keyed(), "reject")
        assert caught.value.task_id == first.id
        if expected == "pending":
            (running,) = await claim(database, store)
    async with transacting(database) as c:
        await store.finish(c, [Finish(attempt=running.attempt, status=TaskStatus.FAILED)])
    assert await settle(database, store, keyed()) is None
    assert await inserted(database, store, keyed()) == [True]


async def test_a_key_that_is_kept(database: Database, store: Store) -> None:
    """It is taken until its time is over, by the database's clock, though the task is final."""
    first = keyed(unique_seconds=3600.0)
    assert await inserted(database, store, first) == [True]
    row = await row_of(database, first.id)
    assert row.unique_until is not None
    assert abs((row.unique_until - row.created_at).total_seconds() - 3600) < 0.01
    await finish(database, store)
    assert await inserted(database, store, keyed()) == [False]
    assert await settle(database, store, keyed()) == first.id
    with pytest.raises(AlreadyScheduled, match="completed"):
        await settle(database, store, keyed(), "replace")
    await raw(database, _TIME_IS_OVER)
    assert await inserted(database, store, keyed()) == [False]
    assert await settle(database, store, keyed()) is None
    assert await inserted(database, store, keyed()) == [True]


async def test_time_alone_frees_no_key(database: Database, store: Store) -> None:
    """A task that is not final has its key, however long ago its time was over."""
    first = keyed(unique_seconds=0.0)
    assert await inserted(database, store, first) == [True]
    assert await settle(database, store, keyed()) == first.id
    await finish(database, store)
    assert await settle(database, store, keyed()) is None


async def test_replace(database: Database, store: Store) -> None:
    """The pending task keeps its id and is about something else from then on."""
    first = keyed(input="1", priority=1, timeout_seconds=1.0, tags='["a"]', delay_seconds=60.0)
    assert await inserted(database, store, first) == [True]
    other = keyed(input="2", priority=2, max_attempts=4, unique_seconds=60.0)
    assert await settle(database, store, other, "replace") == first.id
    row = await row_of(database, first.id)
    assert (row.input, row.priority, row.timeout_seconds, row.tags) == (2, 2, None, None)
    assert (row.max_attempts, row.status) == (4, "pending")
    assert row.unique_until is not None
    (running,) = await claim(database, store)
    assert running.input == "2"
    with pytest.raises(AlreadyScheduled, match="running"):
        await settle(database, store, other, "replace")


async def test_retry_of_a_task_whose_key_is_taken(database: Database, store: Store) -> None:
    """It says so, and changes nothing; when the key is free again it works."""
    first = keyed()
    assert await inserted(database, store, first) == [True]
    await finish(database, store)
    second = keyed(unique_seconds=3600.0)
    assert await inserted(database, store, second) == [True]
    async with transacting(database) as c:
        with pytest.raises(UniqueKeyTaken, match=str(second.id)):
            await store.retry(c, first.id, 1)
    assert (await row_of(database, first.id)).status == "completed"
    await finish(database, store)
    async with transacting(database) as c:
        with pytest.raises(UniqueKeyTaken):
            await store.retry(c, first.id, 1)
        assert await store.retry(c, second.id, 1)  # its own key
    await finish(database, store)
    await raw(database, _TIME_IS_OVER)
    async with transacting(database) as c:
        assert await store.retry(c, first.id, 1)


async def test_the_race_of_a_retry(database: Database, store: Store, writer: Writer) -> None:
    """Whoever is quicker has the key; the other one is told so, and not of a broken index."""
    for _ in range(10):
        await raw(database, "DELETE FROM lilota_task")
        first, second = keyed(), keyed()
        await insert(database, store, [first])
        await finish(database, store)
        async with Writer(database, create_store(database)) as other:
            refused, retried = await asyncio.gather(
                other.insert([second]),
                writer.execute(partial(store.retry, task_id=first.id, extra_attempts=1)),
                return_exceptions=True,
            )
        assert not isinstance(refused, BaseException)
        if refused:
            assert retried is True
        else:
            assert isinstance(retried, UniqueKeyTaken)


async def test_fifty_at_once_from_two_nodes(database: Database) -> None:
    """Of fifty callers over two writers one has the row for each key; no batch fails."""
    stores = [create_store(database), create_store(database)]
    async with Writer(database, stores[0]) as first, Writer(database, stores[1]) as second:
        for _ in range(5):
            tasks = [keyed(f"key {number % 5}") for number in range(50)]
            plain = [new_task() for _ in range(50)]
            refused = await asyncio.gather(
                *(
                    writer.insert([task])
                    for number, pair in enumerate(zip(tasks, plain, strict=True))
                    for writer, task in ((((first, second)[number % 2]), each) for each in pair)
                )
            )
            left_out = {task_id for ids in refused for task_id in ids}
            assert left_out < {task.id for task in tasks}
            assert len(left_out) == 45
            rows = await raw(database, "SELECT unique_key, COUNT(*) FROM lilota_task GROUP BY 1")
            found = {tuple(row) for row in rows}
            assert found == {(None, 50), *((f"key {number}", 1) for number in range(5))}
            await raw(database, "DELETE FROM lilota_task")


async def test_the_key_is_found_by_its_index(database: Database, store: Store) -> None:
    """On PostgreSQL too, where no hint names it."""
    if database.dialect != "postgresql":
        pytest.skip("SQLite and MariaDB are told the index")
    from sqlalchemy import text

    statement = store.unique_keys._statements["holder"].text
    async with transacting(database) as c:
        await store.prepare(c)  # a reserved connection's, which is dropped after the test
        plan = await c.execute(text(f"EXPLAIN {statement}"), {"name": "add", "key": "k"})
        lines = "\n".join(row[0] for row in plan.all())
    assert "ix_lilota_task_unique" in lines
    assert "Seq Scan" not in lines
