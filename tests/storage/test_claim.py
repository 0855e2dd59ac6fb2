"""pending -> running."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import TextClause, text

from lilota_async.models import TaskId, TaskStatus
from lilota_async.storage.database import Database
from lilota_async.storage.postgresql_sql import AWAITED, CLAIM, FINISH_ONE_AND_CLAIM
from lilota_async.storage.store import Store
from lilota_async.storage.transitions import Claim, ClaimedTask
from tests.storage.support import (
    NODE,
    OTHER_NODE,
    claim,
    insert,
    new_task,
    raw,
    row_of,
    transacting,
)

pytestmark = pytest.mark.anyio


async def test_claim_makes_the_row_running(database: Database, store: Store) -> None:
    """The n-th task gets the n-th pid, and the row says whose attempt it is."""
    task = new_task(input='{"a":1}', timeout_seconds=2.5, tags='["x"]', max_attempts=3)
    await insert(database, store, [task])

    (claimed,) = await claim(database, store)

    assert claimed.attempt.id == task.id
    assert claimed.attempt.number == 1
    assert claimed.attempt.node_id == NODE
    assert (claimed.name, claimed.input) == ("add", '{"a":1}')
    assert (claimed.max_attempts, claimed.timeout_seconds, claimed.tags) == (3, 2.5, '["x"]')
    row = await row_of(database, task.id)
    assert (row.status, row.attempts, row.pid) == (TaskStatus.RUNNING, 1, 1)
    assert row.locked_by == NODE
    assert row.start_date_time is not None
    assert row.end_date_time is None


async def test_claim_follows_priority_then_due_time_then_id(
    database: Database, store: Store
) -> None:
    """Higher priority first, then what is due for longer, then the older id."""
    moment = datetime.now(UTC) - timedelta(seconds=1)
    first, second, late, urgent = (
        new_task(run_at=moment),
        new_task(run_at=moment),
        new_task(delay_seconds=-60.0),
        new_task(priority=5),
    )
    await insert(database, store, [second, first, late, urgent])

    claimed = await claim(database, store)

    assert [task.attempt.id for task in claimed] == [urgent.id, late.id, first.id, second.id]
    rows = [await row_of(database, task.attempt.id) for task in claimed]
    assert [row.pid for row in rows] == [1, 2, 3, 4]


async def test_claim_takes_at_most_one_task_per_pid(database: Database, store: Store) -> None:
    """Two pids get two of three tasks, and the next claim gets the third."""
    await insert(database, store, [new_task() for _ in range(3)])
    assert len(await claim(database, store, 2)) == 2
    assert len(await claim(database, store, 2)) == 1
    assert await claim(database, store, 2) == []


async def test_claim_leaves_other_names_alone(database: Database, store: Store) -> None:
    """Only names that the node knows are claimed, byte for byte."""
    await insert(database, store, [new_task("Add"), new_task("unknown"), new_task("add ")])
    assert await claim(database, store, names=("add",)) == []
    assert await claim(database, store, names=()) == []
    assert [task.name for task in await claim(database, store, names=("Add", "add"))] == ["Add"]


async def test_claim_leaves_what_is_not_due(database: Database, store: Store) -> None:
    """A delayed task waits for its time."""
    await insert(database, store, [new_task(delay_seconds=60.0)])
    assert await claim(database, store) == []


async def test_claim_can_be_bounded_by_creation(database: Database, store: Store) -> None:
    """`created_before` leaves newer rows, in whatever timezone it is given."""
    await insert(database, store, [new_task()])
    now = datetime.now(UTC)
    assert await claim(database, store, created_before=now - timedelta(hours=1)) == []
    assert len(await claim(database, store, created_before=now + timedelta(hours=1))) == 1


async def test_claim_resets_what_the_last_attempt_left(database: Database, store: Store) -> None:
    """Progress, end and a request to cancel belong to the attempt before."""
    task = new_task()
    await insert(database, store, [task])
    await raw(
        database,
        "UPDATE lilota_task SET progress_percentage = 50, end_date_time = run_at,"
        " cancel_requested_at = run_at",
    )
    await claim(database, store)
    row = await row_of(database, task.id)
    assert (row.progress_percentage, row.end_date_time, row.cancel_requested_at) == (0, None, None)


async def test_concurrent_claims_are_disjoint(database: Database, store: Store) -> None:
    """Nodes that claim at the same time share the tasks without waiting or overlapping."""
    tasks = [new_task() for _ in range(40)]
    await insert(database, store, tasks)

    async def claim_all(node: int) -> list[ClaimedTask]:
        taken: list[ClaimedTask] = []
        while claimed := await claim(database, store, 3, OTHER_NODE if node % 2 else NODE):
            taken += claimed
        return taken

    groups = await asyncio.gather(*(claim_all(node) for node in range(4)))

    ids = [task.attempt.id for group in groups for task in group]
    assert len(ids) == len(set(ids))
    # Rows that another one holds are skipped, so that a round may have found none.
    ids += [task.attempt.id for task in await claim(database, store, 40)]
    assert sorted(ids) == sorted(task.id for task in tasks)


async def test_an_open_claim_hides_its_rows(database: Database, store: Store) -> None:
    """A claim that is not committed yet neither blocks another one nor shares its rows."""
    if database.dialect == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    await insert(database, store, [new_task() for _ in range(4)])
    async with transacting(database) as connection:
        request = Claim(node_id=NODE, names=("add",), pids=(1, 2))
        first = await store.claim(connection, request)
        second = await claim(database, store, 4, OTHER_NODE)
    ids = {task.attempt.id for task in (*first, *second)}
    assert len(first) == 2
    assert len(second) == 2
    assert len(ids) == 4


async def test_claim_reads_the_index_of_pending_rows(database: Database, store: Store) -> None:
    """Twenty thousand finished rows weigh nothing, whatever the statistics were made of."""
    if database.dialect != "postgresql":
        pytest.skip("the plan is read on PostgreSQL; SQLite and MariaDB are told the index")
    await raw(
        database,
        "INSERT INTO lilota_task (id, name, status, priority, created_at, run_at,"
        " progress_percentage, attempts, max_attempts, interruptions)"
        " SELECT gen_random_uuid(), 'add', CASE WHEN n % 1000 = 0 THEN 'pending' ELSE"
        " 'completed' END, 0, now(), now(), 0, 0, 1, 0 FROM generate_series(1, 20000) AS n",
    )
    await raw(database, "ANALYZE lilota_task")
    pending = [new_task() for _ in range(3000)]
    await insert(database, store, pending)  # the statistics know of 20
    for statement in (CLAIM, FINISH_ONE_AND_CLAIM):
        lines = await _explained(database, store, "EXPLAIN", statement)
        assert "ix_lilota_task_pending" in lines
        assert "Seq Scan" not in lines
        assert "Sort" not in lines


async def test_what_is_not_due_yet_is_not_read_by_a_claim(database: Database, store: Store) -> None:
    """Fifty thousand reminders for tomorrow do not slow down what is due now."""
    if database.dialect != "postgresql":
        pytest.skip("the rows that are read are counted on PostgreSQL")
    await raw(
        database,
        "INSERT INTO lilota_task (id, name, status, priority, created_at, run_at,"
        " progress_percentage, attempts, max_attempts, interruptions)"
        " SELECT gen_random_uuid(), 'add', 'pending', n % 3, now(), now() + INTERVAL '1 day',"
        " 0, 0, 1, 0 FROM generate_series(1, 50000) AS n",
    )
    due = [new_task(priority=priority) for priority in (2, 0, 1, 2)]
    await insert(database, store, due)
    claimed = await claim(database, store, count=3)
    assert [task.attempt.id for task in claimed] == [due[0].id, due[3].id, due[2].id]
    lines = await _explained(database, store, "EXPLAIN (ANALYZE, BUFFERS)")
    pages = max(map(int, re.findall(r"shared hit=(\d+)", lines)))
    assert pages < 100, lines  # the index of them all has some hundreds


async def _explained(
    database: Database, store: Store, explain: str, statement: TextClause = CLAIM
) -> str:
    """The plan of a statement of PostgreSQL that claims, as the writer's connection has it."""
    end = dict.fromkeys(AWAITED) | {"id": TaskId(), "attempt": 1, "status": "completed"}
    async with transacting(database) as connection:
        await store.prepare(connection)  # a reserved connection's, which is dropped after the test
        plan = await connection.execute(
            text(f"{explain} {statement.text}"),
            end | {"names": ["add"], "pids": [1, 2], "node": NODE, "created_before": None},
        )
        return "\n".join(row[0] for row in plan.all())
