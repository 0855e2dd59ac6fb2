"""Ends of attempts that somebody waits for, and those that come with the next claim."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import inspect

from lilota_async.models import Task, TaskStatus
from lilota_async.storage.database import Database
from lilota_async.storage.store import Store
from lilota_async.storage.transitions import Attempt, Claim, Finish, LimitedClaim, Report, Requeue
from lilota_async.storage.writer import Writer
from tests.storage.support import (
    NODE,
    OTHER_NODE,
    claim,
    ended,
    insert,
    new_task,
    row_of,
    transacting,
)

pytestmark = pytest.mark.anyio
ONE_MORE = Claim(node_id=NODE, names=("add",), pids=(7,))


def completed(attempt: Attempt, *, is_awaited: bool = True) -> Finish:
    return Finish(
        attempt=attempt,
        status=TaskStatus.COMPLETED,
        output='{"sum":5}',
        progress=100,
        is_awaited=is_awaited,
    )


async def running(database: Database, store: Store, count: int = 1) -> list[Attempt]:
    """So many attempts."""
    await insert(database, store, [new_task(tags='["x"]') for _ in range(count)])
    return [task.attempt for task in await claim(database, store)]


@pytest.mark.parametrize("count", [1, 3])
async def test_the_end_that_is_awaited_comes_with_the_row(
    count: int, database: Database, store: Store
) -> None:
    """PostgreSQL gives it in the same statement; each copy is as if it had been read."""
    attempts = await running(database, store, count)
    finishes = [completed(attempt, is_awaited=attempt is attempts[-1]) for attempt in attempts]
    async with transacting(database) as connection:
        *others, last = await store.finish(connection, finishes)
    assert others == [True] * (count - 1)
    if database.dialect != "postgresql":
        assert last is True
        return
    assert callable(last)
    copy, read = last(), await row_of(database, attempts[-1].id)
    for column in Task.__table__.columns:
        assert getattr(copy, column.key) == getattr(read, column.key), column
    assert inspect(copy).detached
    assert last() is not copy


async def test_an_awaited_end_is_fenced(database: Database, store: Store) -> None:
    """It is False for another node's, alone and in a batch, and nothing is written."""
    first, second = await running(database, store, 2)
    late = completed(replace(first, node_id=OTHER_NODE))
    async with transacting(database) as connection:
        assert await store.finish(connection, [late]) == [False]
        written = await store.finish(connection, [late, completed(second)])
    assert [bool(each) for each in written] == [False, True]
    assert (await row_of(database, first.id)).status is TaskStatus.RUNNING


async def test_an_awaited_end_that_is_written_again(database: Database, store: Store) -> None:
    """After a lost answer it is no failure."""
    (attempt,) = await running(database, store)
    for _ in range(2):
        async with transacting(database) as connection:
            assert all(await store.finish(connection, [completed(attempt)]))


@pytest.mark.parametrize("is_awaited", [False, True])
async def test_one_ends_and_the_next_begins(
    is_awaited: bool, database: Database, store: Store
) -> None:
    """In one call: the end is written, and what is claimed is as from a claim alone."""
    (attempt,) = await running(database, store)
    later, first = new_task(input="2"), new_task(input="1", priority=1, tags='["y"]')
    await insert(database, store, [later, first])
    both = replace(ONE_MORE, pids=(7, 8, 9))
    async with transacting(database) as connection:
        written, tasks = await store.finish_and_claim(
            connection, completed(attempt, is_awaited=is_awaited), both
        )
    assert written
    assert callable(written) is (is_awaited and database.dialect == "postgresql")
    assert (await row_of(database, attempt.id)).output == {"sum": 5}
    rows = [await row_of(database, task.attempt.id) for task in tasks]
    assert [(row.id, task.input, row.pid) for row, task in zip(rows, tasks, strict=True)] == [
        (first.id, "1", 7),
        (later.id, "2", 8),
    ]
    assert tasks[0].attempt == Attempt(id=first.id, number=1, node_id=NODE)
    assert (tasks[0].tags, tasks[0].max_attempts) == ('["y"]', 1)
    row = await row_of(database, first.id)
    assert (row.status, row.attempts, row.pid) == (TaskStatus.RUNNING, 1, 7)


async def test_a_claim_beside_an_end_that_is_fenced_off(database: Database, store: Store) -> None:
    """What is claimed is there all the same; and so it is beside an end from before."""
    (attempt,) = await running(database, store)
    lost, again = completed(replace(attempt, number=9)), completed(attempt)
    for finish, counts in ((lost, False), (again, True), (again, True)):
        await insert(database, store, [new_task()])
        async with transacting(database) as connection:
            written, tasks = await store.finish_and_claim(connection, finish, ONE_MORE)
        assert bool(written) is counts
        assert len(tasks) == 1


async def test_an_end_beside_a_claim_that_finds_nothing(database: Database, store: Store) -> None:
    """It is written."""
    (attempt,) = await running(database, store)
    async with transacting(database) as connection:
        written, tasks = await store.finish_and_claim(connection, completed(attempt), ONE_MORE)
    assert written
    assert tasks == []
    assert (await row_of(database, attempt.id)).status is TaskStatus.COMPLETED


@pytest.mark.parametrize("limited", [False, True])
async def test_a_lone_end_and_a_claim_share_a_flush(
    limited: bool, database: Database, store: Store, writer: Writer
) -> None:
    """So that one commit ends a task and begins the next, within limits as well."""
    request = LimitedClaim(claim=ONE_MORE) if limited else ONE_MORE
    for _ in range(3):  # whosever turn it is
        (attempt,) = await running(database, store)
        task = new_task()
        await writer.insert([task])
        before = writer.flushes
        claiming = asyncio.create_task(writer.claim(lambda: request))
        assert await ended(writer, completed(attempt))
        assert [each.attempt.id for each in (await claiming).tasks] == [task.id]
        assert writer.flushes == before + 1
        await ended(writer, completed(Attempt(id=task.id, number=1, node_id=NODE)))


async def test_a_report_is_written_before_the_end_of_its_attempt(
    database: Database, store: Store, writer: Writer
) -> None:
    """Beside a claim as well, whosever turn it is: afterwards it would be fenced off."""
    first, *attempts = await running(database, store, 4)
    assert await ended(writer, completed(first))
    for checkpoint, attempt in zip(("1", "2", "3"), attempts, strict=True):
        claiming = asyncio.create_task(writer.claim(lambda: ONE_MORE))
        reporting = writer.report(Report(attempt=attempt, checkpoint=checkpoint))
        assert await ended(writer, completed(attempt))
        assert await reporting
        await claiming
        assert (await row_of(database, attempt.id)).checkpoint == int(checkpoint)


async def test_what_else_waits_has_its_turn_beside_ends_and_claims(
    database: Database, store: Store, writer: Writer
) -> None:
    """A node on which tasks end and begin all the time still looks, and puts back."""
    attempts = await running(database, store, 9)
    back = ended(writer, Requeue(attempt=attempts.pop(), counted=False))
    looking = asyncio.ensure_future(writer.execute(store.clock, in_transaction=False))
    writing = asyncio.ensure_future(writer.execute(store.clock))
    for turn, attempt in enumerate(attempts):
        if turn == 4:
            assert back.done()
            assert looking.done()
            assert writing.done()
        claiming = asyncio.create_task(writer.claim(lambda: ONE_MORE))
        assert await ended(writer, completed(attempt))
        await claiming


async def test_an_end_that_the_database_refuses_beside_a_claim(
    database: Database, store: Store, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim is not lost with it."""
    (attempt,) = await running(database, store)
    task = new_task()
    await writer.insert([task])

    async def refuse(*_arguments: Any) -> Any:
        raise ValueError("refused")

    monkeypatch.setattr(store, "finish", refuse)
    monkeypatch.setattr(store, "finish_and_claim", refuse)
    claiming = asyncio.create_task(writer.claim(lambda: ONE_MORE))
    with pytest.raises(ValueError, match="refused"):
        await ended(writer, completed(attempt))
    assert [each.attempt.id for each in (await claiming).tasks] == [task.id]


async def test_values_that_rows_share_and_values_that_they_do_not(
    database: Database, store: Store
) -> None:
    """In one batch: what is the same in all of them, in some of them, or in none."""
    tasks = [
        new_task(priority=3, tags=tags, timeout_seconds=2.0, input=content)
        for tags, content in ((None, "1"), ('["x"]', "1"), (None, "1"))
    ]
    await insert(database, store, tasks)
    rows = [await row_of(database, task.id) for task in tasks]
    assert [(row.priority, row.tags, row.timeout_seconds, row.input) for row in rows] == [
        (3, None, 2.0, 1),
        (3, ["x"], 2.0, 1),
        (3, None, 2.0, 1),
    ]
    attempts = [task.attempt for task in await claim(database, store)]
    ends = [
        replace(completed(attempt, is_awaited=False), progress=progress, exception=exception)
        for attempt, progress, exception in zip(
            attempts, (None, 40, None), (None, None, '{"kind":"error"}'), strict=True
        )
    ]
    async with transacting(database) as connection:
        assert list(await store.finish(connection, ends)) == [True] * 3
    rows = [await row_of(database, attempt.id) for attempt in attempts]
    assert [(row.progress_percentage, row.exception, row.output) for row in rows] == [
        (0, None, {"sum": 5}),
        (40, None, {"sum": 5}),
        (0, {"kind": "error"}, {"sum": 5}),
    ]
