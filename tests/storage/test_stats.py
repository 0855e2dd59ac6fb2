"""What stats() reads, and by which indexes."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from lilota_async.models import TaskStatus
from lilota_async.storage.database import Database
from lilota_async.storage.stats import read_stats, read_throughput
from lilota_async.storage.store import Store
from lilota_async.storage.transitions import Finish
from tests.storage.plans import reads_whole_table, recording
from tests.storage.support import (
    NODE,
    OTHER_NODE,
    claim,
    insert,
    new_task,
    node_record,
    raw,
    transacting,
)

pytestmark = pytest.mark.anyio


async def _finish(database: Database, store: Store, status: TaskStatus, count: int) -> None:
    await insert(database, store, [new_task() for _ in range(count)])
    claimed = await claim(database, store, count)
    async with transacting(database) as connection:
        ends = [Finish(attempt=task.attempt, status=status) for task in claimed]
        assert all(await store.finish(connection, ends))


async def test_each_name_and_each_node(database: Database, store: Store) -> None:
    """Counts, ages and durations by name; nodes with what they run; names without one."""
    await _finish(database, store, TaskStatus.COMPLETED, 20)
    await _finish(database, store, TaskStatus.FAILED, 3)
    await _finish(database, store, TaskStatus.CANCELLED, 2)
    await insert(database, store, [new_task("other") for _ in range(4)])
    await claim(database, store, 1)
    late = [new_task(delay_seconds=-60.0), new_task(delay_seconds=1000.0), new_task()]
    await insert(database, store, late)
    record = replace(node_record(), names=("add", "Add"))
    async with transacting(database) as connection:
        await store.register_node(connection, record)
        await store.register_node(connection, replace(node_record(OTHER_NODE), names=("other",)))
    await raw(
        database,
        "UPDATE lilota_node SET last_seen_at = started_at - INTERVAL '1' HOUR WHERE id = :id"
        if database.dialect != "sqlite"
        else "UPDATE lilota_node SET last_seen_at = '2020-01-01 00:00:00.000000' WHERE id = :id",
        id=store.dialect.key(OTHER_NODE),
    )

    stats = await read_stats(database, ["mine"])

    assert set(stats.names) == {"add", "Add", "other", "mine"}
    add = stats.names["add"]
    assert (add.pending, add.due, add.running, add.failed) == (3, 2, 0, 3)
    assert add.oldest_pending_seconds is not None
    assert 60 <= add.oldest_pending_seconds < 90
    assert add.finished == 23
    assert add.throughput > 23 / 300
    assert add.p50_seconds is not None
    assert add.p95_seconds is not None
    assert 0 <= add.p50_seconds <= add.p95_seconds < 30
    assert add.wait_seconds == pytest.approx(2 / add.throughput)
    other = stats.names["other"]
    assert (other.pending, other.running, other.finished, other.throughput) == (3, 1, 0, 0)
    assert (other.p50_seconds, other.p95_seconds, other.wait_seconds) == (None, None, None)
    mine = stats.names["mine"]
    assert (mine.pending, mine.running, mine.failed, mine.wait_seconds) == (0, 0, 0, 0.0)
    assert mine.oldest_pending_seconds is None
    assert (stats.pending, stats.running) == (6, 1)
    live, silent = stats.nodes
    assert (live.id, live.host, live.pid, live.slots) == (NODE, "host", 100, 2)
    assert live.names == ("add", "Add")
    assert (live.is_live, silent.is_live) == (True, False)
    assert silent.seconds_since_seen > 3000
    assert stats.unclaimable == ("other",)


async def test_what_is_long_past_is_no_throughput(database: Database, store: Store) -> None:
    """Tasks that ended an hour ago tell durations and failures, and no throughput."""
    await _finish(database, store, TaskStatus.COMPLETED, 2)
    await _finish(database, store, TaskStatus.FAILED, 1)
    long_ago = "'2020-01-01 00:00:00.000000'"
    await raw(database, f"UPDATE lilota_task SET start_date_time = {long_ago}")
    await raw(database, f"UPDATE lilota_task SET end_date_time = {long_ago}")
    add = (await read_stats(database, [])).names["add"]
    assert (add.failed, add.finished, add.throughput) == (1, 0, 0.0)
    assert (add.p50_seconds, add.p95_seconds) == (0.0, 0.0)
    assert await read_throughput(database, ["add", "other"]) == 0.0


async def test_an_empty_database(database: Database) -> None:
    """No rows, no nodes, no names."""
    stats = await read_stats(database, [])
    assert (dict(stats.names), stats.nodes, stats.unclaimable) == ({}, (), ())
    assert (stats.pending, stats.running) == (0, 0)


async def test_no_statement_goes_through_the_table(database: Database, store: Store) -> None:
    """Every read goes by an index, also after the statistics were taken of a full queue."""
    await insert(database, store, [new_task() for _ in range(3000)])
    if database.dialect == "postgresql":
        await raw(database, "ANALYZE lilota_task")
    await _finish(database, store, TaskStatus.COMPLETED, 2000)
    with recording(database) as recorded:
        await read_stats(database, ["add"])
        async with transacting(database) as connection:
            if database.dialect == "postgresql":
                await connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            plans = await recorded.plans(connection)
    tasks = [plan for plan in plans if "lilota_task" in plan]
    assert len(tasks) >= 4
    assert not [plan for plan in tasks if reads_whole_table(plan)]
    for index in ("pending", "running", "name", "ended"):
        assert any(f"ix_lilota_task_{index}" in plan for plan in tasks), index


async def test_edited_times_break_nothing(database: Database, store: Store) -> None:
    """SQLite keeps any text for a time; what has one is counted, and tells no duration."""
    if database.dialect != "sqlite":
        pytest.skip("times are no text")
    await _finish(database, store, TaskStatus.COMPLETED, 2)
    await raw(database, "UPDATE lilota_task SET end_date_time = 'yesterday'")
    await insert(database, store, [new_task()])
    await raw(database, "UPDATE lilota_task SET run_at = '' WHERE status = 'pending'")
    add = (await read_stats(database, [])).names["add"]
    assert (add.pending, add.oldest_pending_seconds, add.p50_seconds) == (1, None, None)
