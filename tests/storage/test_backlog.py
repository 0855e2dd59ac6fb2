"""Bounded inserts: as many as there is room for, whoever else inserts at the same time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from lilota_async.errors import ScheduleUnknown
from lilota_async.models import TaskId
from lilota_async.storage.backlog import find_full
from lilota_async.storage.database import Database
from lilota_async.storage.queries import get_task
from lilota_async.storage.store import Store
from lilota_async.storage.stores import create_store
from lilota_async.storage.transitions import Bound, BoundedInsert, NewTask
from lilota_async.storage.writer import Writer
from tests.storage.plans import reads_whole_table, recording
from tests.storage.support import claim, held_by, insert, new_task, raw, transacting

pytestmark = pytest.mark.anyio
WHOLE = Bound(name=None, most=10)
OWN = Bound(name="add", most=3)


def _bounded(*bounds: Bound, name: str = "add", count: int = 1, more: int = 0) -> BoundedInsert:
    tasks = [new_task(name) for _ in range(count)]
    return BoundedInsert(tasks=tasks, bounds=bounds, more=more)


async def _pending(database: Database) -> int:
    counted = await raw(database, "SELECT COUNT(*) FROM lilota_task WHERE status = 'pending'")
    return int(counted[0][0])


async def test_the_bound_that_is_full(database: Database, store: Store, writer: Writer) -> None:
    """Each bound counts its own; what runs or has ended takes no room; nothing is written."""
    for _ in range(3):
        assert await writer.admit(_bounded(WHOLE, OWN)) == set()
    refused = _bounded(WHOLE, OWN)
    assert await writer.admit(refused) == OWN
    assert await get_task(database, refused.tasks[0].id) is None
    assert await writer.admit(_bounded(WHOLE, name="other", count=7)) == set()
    assert await writer.admit(_bounded(WHOLE, name="third")) == WHOLE
    assert await _pending(database) == 10
    await claim(database, store, 2, names=("add",))
    assert await writer.admit(_bounded(OWN, count=3)) == OWN
    assert await writer.admit(_bounded(OWN, count=1, more=2)) == OWN
    assert await writer.admit(_bounded(WHOLE, OWN, count=1, more=1)) == set()
    assert await writer.admit(_bounded(WHOLE, OWN, count=1)) == set()


async def test_a_row_that_is_there_is_not_refused(writer: Writer) -> None:
    """The answer of a COMMIT may have been lost: the same rows again are no new ones."""
    first = _bounded(OWN, count=3)
    assert await writer.admit(first) == set()
    assert await writer.admit(first) == set()
    assert await writer.admit(_bounded(OWN)) == OWN


async def test_two_writers_share_the_room(database: Database, store: Store) -> None:
    """50 callers on each of two connections: as many rows as there is room for, to the row."""
    async with (
        Writer(database, store) as one,
        Writer(database, create_store(database)) as other,
    ):
        for _ in range(5):
            await raw(database, "DELETE FROM lilota_task")
            inserts = [(each, _bounded(WHOLE)) for _ in range(50) for each in (one, other)]
            outcomes = await asyncio.gather(*(w.admit(each) for w, each in inserts))
            assert outcomes.count(set()) == WHOLE.most
            assert await _pending(database) == WHOLE.most


async def test_many_callers_share_a_flush(writer: Writer) -> None:
    """A hundred bounded inserts are a few commits."""
    before = writer.flushes
    bound = Bound(name=None, most=1000)
    await asyncio.gather(*(writer.admit(_bounded(bound)) for _ in range(100)))
    assert writer.flushes - before <= 3


async def test_a_broken_row_fails_its_own_caller(database: Database, writer: Writer) -> None:
    """A bounded insert that the database refuses takes nobody with it."""
    bound = Bound(name=None, most=1000)
    broken = BoundedInsert(tasks=[new_task(priority=2**70)], bounds=(bound,))
    good = [_bounded(bound) for _ in range(5)]
    outcomes = await asyncio.gather(
        *(writer.admit(each) for each in (*good[:2], broken, *good[2:])), return_exceptions=True
    )
    assert [isinstance(outcome, Exception) for outcome in outcomes].count(True) == 1
    assert await _pending(database) == 5


async def test_the_count_goes_by_the_index_of_pending_rows(
    database: Database, store: Store, writer: Writer
) -> None:
    """Finished rows cost a bounded insert nothing."""
    await insert(database, store, [new_task() for _ in range(2000)])
    if database.dialect == "postgresql":
        await raw(database, "ANALYZE lilota_task")
    await raw(database, "UPDATE lilota_task SET status = 'completed'")
    with recording(database) as recorded:
        await writer.admit(_bounded(WHOLE, OWN))
    async with database.connect() as connection:
        await store.prepare(connection)
        plans = await recorded.plans(connection)
        counts = [plan for plan in plans if "lilota_task" in plan and "pending" in plan]
        assert len(counts) >= 2
        assert not [plan for plan in counts if reads_whole_table(plan)]
        assert await find_full(store.dialect, connection, _bounded(WHOLE, OWN, count=3)) == OWN
        assert await find_full(store.dialect, connection, _bounded(WHOLE, OWN, count=2)) is None
        await connection.invalidate()


async def test_a_commit_in_doubt_tells_the_ids(
    database: Database, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the database hangs, the caller learns which ids to look up."""
    insert = store.insert

    async def hang(c: AsyncConnection, tasks: Sequence[NewTask]) -> set[TaskId[Any]]:
        await held_by(threading.Event(), seconds=2.0)
        return await insert(c, tasks)

    monkeypatch.setattr(store, "insert", hang)
    async with Writer(database, store, store_timeout=0.3) as writer:
        wanted = _bounded(OWN)
        with pytest.raises(ScheduleUnknown) as caught:
            await writer.admit(wanted)
        assert caught.value.task_id == wanted.tasks[0].id


async def test_who_waits_for_a_key_holds_nobody_up(database: Database, store: Store) -> None:
    """The application's open transaction has a unique key: only those wait who want that key."""
    if database.dialect != "postgresql":
        pytest.skip("SQLite has one writer at a time, and MariaDB locks the gap beside a key")
    keyed = BoundedInsert(tasks=[new_task(unique_key="k")], bounds=(WHOLE,))
    async with (
        Writer(database, store) as one,
        Writer(database, create_store(database)) as other,
        asyncio.timeout(10.0),
    ):
        async with transacting(database) as application:
            await store.insert(application, [new_task(unique_key="k")])
            waiting = asyncio.ensure_future(one.admit(keyed))
            for _ in range(5):
                assert await other.admit(_bounded(WHOLE)) == set()
            assert not waiting.done()
        assert await waiting == {keyed.tasks[0].id}


async def test_a_node_that_stands_still_holds_nobody_up_for_long(
    database: Database, store: Store, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been frozen with the lock: after a while the others count without it."""
    if store.dialect.lock_backlog is None:
        pytest.skip("SQLite has one writer at a time")
    monkeypatch.setattr("lilota_async.storage.backlog.LONGEST_WAIT", 0.05)
    async with asyncio.timeout(10.0), transacting(database) as frozen:
        assert (await frozen.execute(text(store.dialect.lock_backlog))).scalar()
        for _ in range(3):
            assert await writer.admit(_bounded(OWN)) == set()
        assert await writer.admit(_bounded(OWN)) == OWN
