"""Nodes: heartbeats, and what becomes of the tasks of a node that is gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC
from uuid import UUID

import pytest
from msgspec.structs import replace

from lilota_async.models import TaskId, TaskStatus
from lilota_async.storage.database import Database
from lilota_async.storage.stats import read_stats
from lilota_async.storage.store import Store
from lilota_async.storage.transitions import Finish, LostTask, Renewal, Requeue
from tests.storage.support import (
    NAMES,
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


async def adopt(
    database: Database,
    store: Store,
    node_id: UUID = OTHER_NODE,
    names: Sequence[str] = NAMES,
    limit: int = 100,
) -> list[LostTask]:
    """Adopt in a transaction."""
    async with transacting(database) as connection:
        return await store.adopt(connection, node_id, names, limit)


async def test_a_node_whose_row_was_edited(database: Database, store: Store) -> None:
    """It is told with a lease that no node can have, and may be removed."""
    await register(database, store, NODE)
    odd = {"sqlite": "'abc'", "postgresql": "'NaN'"}.get(database.dialect, "-1")
    await raw(database, f"UPDATE lilota_node SET lease_seconds = {odd}")
    async with transacting(database) as connection:
        (node,) = await store.nodes(connection)
        assert node.lease_seconds <= 0
        await store.remove_node(connection, NODE, silent_for=30.0)
        assert len(await store.nodes(connection)) == 1
        await store.remove_node(connection, NODE, silent_for=0.0)
        assert await store.nodes(connection) == []


async def test_a_node_that_was_seen_at_no_time(database: Database, store: Store) -> None:
    """Heartbeats and stats go on, in which it is not live."""
    if database.dialect == "mariadb":
        pytest.skip("it takes no such time")
    await register(database, store, NODE)
    odd = "'infinity'" if database.dialect == "postgresql" else "'x'"
    await raw(database, f"UPDATE lilota_node SET last_seen_at = {odd}")
    await register(database, store, OTHER_NODE)
    async with transacting(database) as connection:
        assert {node.id: node.silent_seconds for node in await store.nodes(connection)}[NODE] == 0
        assert (await store.renew(connection, OTHER_NODE, ["add"])).is_known
    stats = await read_stats(database, [])
    assert {node.id: node.is_live for node in stats.nodes} == {NODE: False, OTHER_NODE: True}


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
    before = time.monotonic()
    async with transacting(database) as connection:
        assert await store.heartbeat(connection, NODE)
    assert await silence() < time.monotonic() - before + 0.1  # it was 0.2 s more


async def test_a_renewal_tells_of_the_others(database: Database, store: Store) -> None:
    """Whether the node is known still, who else there is, and whether tasks have lost theirs."""
    await register(database, store, NODE)
    await register(database, store, OTHER_NODE)
    await claim_new(database, store)

    async def renew(names: tuple[str, ...] = ("add",)) -> Renewal:
        async with transacting(database) as connection:
            return await store.renew(connection, OTHER_NODE, names)

    renewal = await renew()
    assert {node.id for node in renewal.nodes} == {NODE, OTHER_NODE}
    assert (renewal.is_known, renewal.has_lost) == (True, False)
    assert max(node.silent_seconds for node in renewal.nodes) < 5
    async with transacting(database) as connection:
        await store.remove_node(connection, NODE)
    assert (await renew()).has_lost
    assert not (await renew(("other",))).has_lost
    async with transacting(database) as connection:
        await store.remove_node(connection, OTHER_NODE)
    assert not (await renew()).is_known


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


async def test_adopt_takes_the_tasks_of_a_removed_node(database: Database, store: Store) -> None:
    """They run on in the name of the new owner, an interruption counted; others stay."""
    await register(database, store, OTHER_NODE)
    await register(database, store, NODE)
    attempt = (await claim_new(database, store)).attempt
    assert await adopt(database, store) == []
    async with transacting(database) as connection:
        await store.request_cancel(connection, attempt.id)
        await store.remove_node(connection, NODE)

    (lost,) = await adopt(database, store)

    assert lost.attempt == replace(attempt, node_id=OTHER_NODE)
    assert (lost.name, lost.interruptions, lost.is_cancel_requested) == ("add", 1, True)
    row = await row_of(database, attempt.id)
    assert (row.status, row.attempts, row.interruptions) == (TaskStatus.RUNNING, 1, 1)
    assert row.locked_by == OTHER_NODE
    assert await adopt(database, store) == []
    async with transacting(database) as connection:
        old = Finish(attempt=attempt, status=TaskStatus.COMPLETED)
        new = Requeue(attempt=lost.attempt)
        assert await store.finish(connection, [old]) == [False]
        assert await store.requeue(connection, [new]) == [True]


async def test_adopt_finds_tasks_without_a_node(database: Database, store: Store) -> None:
    """Rows of nobody, and of nodes that nobody remembers; by name, and so many at most."""
    await register(database, store, OTHER_NODE)
    forgotten = (await claim_new(database, store)).attempt
    unowned = (await claim_new(database, store)).attempt
    key = store.dialect.key(unowned.id)
    await raw(database, "UPDATE lilota_task SET locked_by = NULL WHERE id = :id", id=key)
    assert await adopt(database, store, names=("Add", "add ")) == []
    first = await adopt(database, store, limit=1)
    second = await adopt(database, store)
    assert [task.attempt.id for task in (*first, *second)] == [forgotten.id, unowned.id]


async def test_concurrent_adoptions_share_the_rows(database: Database, store: Store) -> None:
    """Each row is adopted once, whoever does it."""
    nodes = [TaskId() for _ in range(4)]
    for node_id in nodes:
        await register(database, store, node_id)
    await insert(database, store, [new_task() for _ in range(20)])
    claimed = await claim(database, store, 20)
    groups = await asyncio.gather(*(adopt(database, store, node_id) for node_id in nodes))
    # Rows that another one holds are skipped; whoever looks next finds those left over.
    groups.append(await adopt(database, store, nodes[0]))
    ids = [task.attempt.id for group in groups for task in group]
    assert sorted(ids) == sorted(task.attempt.id for task in claimed)
    rows = await raw(database, "SELECT DISTINCT interruptions, status FROM lilota_task")
    assert [tuple(row) for row in rows] == [(1, "running")]


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
