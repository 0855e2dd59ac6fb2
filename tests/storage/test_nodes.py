"""Nodes: heartbeats, and what becomes of the tasks of a node that is gone."""

from __future__ import annotations

import asyncio
from datetime import UTC
from uuid import UUID

import pytest

from lilota_async.models import TaskId, TaskStatus
from lilota_async.storage.database import Database
from lilota_async.storage.store import Store
from tests.storage.support import (
    NODE,
    OTHER_NODE,
    claim,
    claim_new,
    eventually,
    insert,
    new_task,
    node_record,
    raw,
    row_of,
    transacting,
)

pytestmark = pytest.mark.anyio


async def register(database: Database, store: Store, node_id: UUID) -> None:
    """Register a node."""
    async with transacting(database) as connection:
        await store.register_node(connection, node_record(node_id))


async def take_over(database: Database, store: Store, *dead: UUID) -> int:
    """Take over in a transaction."""
    async with transacting(database) as connection:
        return await store.take_over(connection, dead)


async def test_a_node_is_known_until_it_is_removed(database: Database, store: Store) -> None:
    """It registers, twice without harm, is seen, and goes."""
    await register(database, store, NODE)
    await register(database, store, NODE)
    async with transacting(database) as connection:
        (node,) = await store.nodes(connection)
        assert (node.id, node.machine, node.pid, node.pid_started) == (NODE, "boot", 100, 200)
        assert 0 <= node.silent_seconds < 5
        assert await store.heartbeat(connection, NODE)
        await store.remove_node(connection, NODE)
        assert await store.nodes(connection) == []
        assert not await store.heartbeat(connection, NODE)


async def test_a_heartbeat_ends_the_silence(database: Database, store: Store) -> None:
    """The silence grows by the clock of the database, and a heartbeat ends it."""
    await register(database, store, NODE)

    async def silence() -> float:
        async with database.connect() as connection:
            (node,) = await store.nodes(connection)
            return node.silent_seconds

    async def has_grown() -> bool:
        return await silence() > 0.2

    await eventually(has_grown)
    async with transacting(database) as connection:
        assert await store.heartbeat(connection, NODE)
    assert await silence() < 0.2


async def test_the_clock_is_that_of_the_rows(database: Database, store: Store) -> None:
    """Aware UTC, and comparable with what the rows say."""
    async with database.connect() as connection:
        before = await store.clock(connection)
    task = new_task()
    await insert(database, store, [task])
    async with database.connect() as connection:
        after = await store.clock(connection)
    assert before.tzinfo is UTC
    assert before <= (await row_of(database, task.id)).created_at <= after


async def test_take_over_requeues_the_tasks_of_the_dead(database: Database, store: Store) -> None:
    """They are pending, with an interruption counted; those of the living stay."""
    for node_id in (NODE, OTHER_NODE):
        await register(database, store, node_id)
    lost = (await claim_new(database, store)).attempt
    kept_task = new_task()
    await insert(database, store, [kept_task])
    await claim(database, store, node_id=OTHER_NODE)

    assert await take_over(database, store, NODE) == 1

    row = await row_of(database, lost.id)
    assert (row.status, row.attempts, row.interruptions) == (TaskStatus.PENDING, 1, 1)
    assert (row.locked_by, row.pid) == (None, None)
    assert (await row_of(database, kept_task.id)).status == TaskStatus.RUNNING
    async with database.connect() as connection:
        assert [node.id for node in await store.nodes(connection)] == [OTHER_NODE]


async def test_take_over_finds_tasks_without_a_node(database: Database, store: Store) -> None:
    """Running rows of nobody, and of nodes that nobody remembers, are requeued too."""
    forgotten = (await claim_new(database, store)).attempt
    unowned = (await claim_new(database, store)).attempt
    key = store.dialect.key(unowned.id)
    await raw(database, "UPDATE lilota_task SET locked_by = NULL WHERE id = :id", id=key)
    assert await take_over(database, store) == 2
    assert await take_over(database, store) == 0
    for attempt in (forgotten, unowned):
        assert (await row_of(database, attempt.id)).interruptions == 1


async def test_concurrent_take_overs_share_the_rows(database: Database, store: Store) -> None:
    """Each row is requeued once, whoever does it."""
    await register(database, store, NODE)
    await insert(database, store, [new_task() for _ in range(20)])
    assert len(await claim(database, store, 20)) == 20
    counts = await asyncio.gather(*(take_over(database, store, NODE) for _ in range(4)))
    assert sum(counts) == 20
    rows = await raw(database, "SELECT DISTINCT interruptions, status FROM lilota_task")
    assert [tuple(row) for row in rows] == [(1, "pending")]


async def test_release_of_what_the_node_does_not_know(database: Database, store: Store) -> None:
    """A claim whose answer was lost goes back uncounted; known rows and others stay."""
    await insert(database, store, [new_task() for _ in range(3)])
    known, *lost = await claim(database, store, 3)
    foreign = new_task()
    await insert(database, store, [foreign])
    await claim(database, store, node_id=OTHER_NODE)

    async with transacting(database) as connection:
        released = await store.release_unknown(connection, NODE, [known.attempt.id, TaskId()])

    assert released == 2
    for task in lost:
        row = await row_of(database, task.attempt.id)
        assert (row.status, row.attempts, row.locked_by) == (TaskStatus.PENDING, 0, None)
    assert (await row_of(database, known.attempt.id)).attempts == 1
    assert (await row_of(database, foreign.id)).status == TaskStatus.RUNNING
