"""When a task is due, by the database's clock, and what is due next."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import text

from lilota_async.storage.database import Database
from lilota_async.storage.store import Store
from tests.storage.support import NAMES, claim, insert, new_task, raw, row_of, transacting

pytestmark = pytest.mark.anyio


async def next_due(database: Database, store: Store, *names: str) -> float | None:
    """Seconds until the next of these names."""
    async with transacting(database) as connection:
        return (await store.seconds_to_next(connection, names or NAMES))[0]


async def test_run_at_is_kept(database: Database, store: Store) -> None:
    """The time is absolute, with microseconds; one in the past is due at once."""
    at = datetime(2124, 2, 29, 23, 59, 59, 123456, tzinfo=UTC)
    late = new_task(run_at=at)
    due = new_task(run_at=datetime(1970, 1, 1, tzinfo=UTC))
    await insert(database, store, [late, due])
    assert (await row_of(database, late.id)).run_at == at
    assert [task.attempt.id for task in await claim(database, store)] == [due.id]


async def test_delay_counts_from_the_database_clock(database: Database, store: Store) -> None:
    """A delayed row is due that long after it was made."""
    task = new_task(delay_seconds=90.5)
    await insert(database, store, [task])
    row = await row_of(database, task.id)
    assert abs((row.run_at - row.created_at).total_seconds() - 90.5) < 0.01


async def test_the_next_due_of_many(database: Database, store: Store) -> None:
    """Whatever the priority, the name, the key: the earliest in the future, of these names."""
    assert await next_due(database, store) is None
    began = time.monotonic()
    await insert(
        database,
        store,
        [
            new_task(delay_seconds=-60),
            new_task(delay_seconds=300),
            new_task(delay_seconds=200, priority=-7),
            new_task(delay_seconds=250, priority=2**31 - 1),
            new_task("other", delay_seconds=100, concurrency_key="k"),
            new_task("other", delay_seconds=150),
            new_task("stranger", delay_seconds=50),
        ],
    )
    found = [
        await next_due(database, store, *names)
        for names in [("add",), ("other",), ("add", "other"), ("Add",), ("stranger",)]
    ]
    passed = time.monotonic() - began + 0.1  # the two clocks may differ by a little
    for seconds, delay in zip(found, (200, 100, 100, None, 50), strict=True):
        assert (seconds is None) == (delay is None)
        assert seconds is None or delay is None or delay - passed < seconds <= delay


async def test_what_has_just_become_due(database: Database, store: Store) -> None:
    """It counts as well: a claim that came a moment before has not seen it."""
    async with transacting(database) as connection:  # a commit may take its time
        await store.insert(connection, [new_task("other", delay_seconds=-60), new_task()])
        assert await store.seconds_to_next(connection, ["add"]) == (None, True)
        assert await store.seconds_to_next(connection, ["other"]) == (None, False)
        assert await store.seconds_to_next(connection, []) == (None, False)


async def test_looking_ahead_reads_few_rows(database: Database, store: Store) -> None:
    """Of twenty thousand rows that wait, due and not, it reads one for each name and priority."""
    if database.dialect != "postgresql":
        pytest.skip("the plan is read on PostgreSQL; SQLite and MariaDB are told the index")
    await raw(
        database,
        "INSERT INTO lilota_task (id, name, status, priority, created_at, run_at,"
        " progress_percentage, attempts, max_attempts, interruptions)"
        " SELECT gen_random_uuid(), CASE WHEN n % 2 = 0 THEN 'add' ELSE 'other' END, 'pending',"
        " n % 3, now(), now() + make_interval(secs => n - 10000), 0, 0, 1, 0"
        " FROM generate_series(1, 20000) AS n",
    )
    statement: Any = store._next_due
    async with transacting(database) as connection:
        await store.prepare(connection)  # a reserved connection's, which is dropped after the test
        plan = await connection.execute(
            text(f"EXPLAIN (ANALYZE, BUFFERS) {statement.element.text}").bindparams(
                *statement.element._bindparams.values()
            ),
            {"names": ["add", "other"]},
        )
        lines = "\n".join(row[0] for row in plan.all())
    assert "Seq Scan" not in lines
    assert "Sort" not in lines
    assert "ix_lilota_task_pending_name" in lines
    assert max(map(int, re.findall(r"rows=(\d+) loops", lines))) <= 20
