"""PostgreSQL keeps plans: they must hold when the table has grown, or be made anew."""

from __future__ import annotations

import re

import pytest
from sqlalchemy import TextClause
from sqlalchemy.ext.asyncio import AsyncConnection

from lilota_async.models.values import TaskId
from lilota_async.storage import kept_plans
from lilota_async.storage import postgresql_sql as sql
from lilota_async.storage.database import Database
from lilota_async.storage.migrate import migrate
from lilota_async.storage.reader import TaskReader
from lilota_async.storage.store import Store
from lilota_async.storage.stores import create_store
from lilota_async.storage.writer import Writer
from tests.storage.plans import Recorded, recording
from tests.storage.support import raw, transacting

pytestmark = pytest.mark.anyio
STATEMENTS = (
    sql.CLAIM,
    sql.FINISH,
    sql.FINISH_ONE,
    sql.FINISH_AWAITED,
    sql.FINISH_ONE_AWAITED,
    sql.FINISH_ONE_AND_CLAIM,
    sql.FINISHED,
    sql.REQUEUE,
    sql.REPORT,
)


@pytest.mark.parametrize("rows", [0, 1, 20, 2000])
async def test_a_batch_goes_by_the_primary_key(rows: int, postgresql_url: str) -> None:
    """The plan of a table that was nearly empty is still in use when it is large."""
    database = Database(postgresql_url)
    await migrate(database)
    await raw(
        database,
        "INSERT INTO lilota_task (id, name, status, priority, created_at, run_at,"
        " progress_percentage, attempts, max_attempts, interruptions)"
        " SELECT gen_random_uuid(), 'add', 'running', 0, now(), now(), 0, 1, 1, 0"
        f" FROM generate_series(1, {rows})",
    )
    await raw(database, "ANALYZE lilota_task")
    async with transacting(database) as connection:
        await create_store(database).prepare(connection)
        for statement in STATEMENTS:
            plan = await _generic_plan(connection, statement)
            scans = re.findall(r"Index Scan using (\w+) on lilota_task task .*\n\s*(.*)", plan)
            assert scans, plan
            assert all(condition.startswith("Index Cond: (id = ") for _, condition in scans), plan
            assert "Seq Scan on lilota_task" not in plan
            if rows > 1:  # of one row all indexes are alike
                assert {index for index, _ in scans} == {"lilota_task_pkey"}


@pytest.mark.parametrize(("slow", "times"), [(-1.0, 1), (60.0, 0)])
async def test_plans_are_made_anew_after_something_slow(
    slow: float,
    times: int,
    database: Database,
    store: Store,
    writer: Writer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They may be of a table that was nearly empty; and so not again for a while."""
    monkeypatch.setattr(kept_plans, "_SLOW_SECONDS", slow)
    monkeypatch.setattr(kept_plans, "_KEPT_SECONDS", 60.0)
    reader = TaskReader(database)
    with recording(database) as recorded:
        for _ in range(3):
            await writer.execute(store.clock)
        of_writer = _dropped(recorded)
        for _ in range(3):
            assert await reader.read(TaskId()) is None
        of_reader = _dropped(recorded) - of_writer
    await reader.close()
    keeps_plans = database.dialect == "postgresql"
    assert (of_writer, of_reader) == ((times, times) if keeps_plans else (0, 0))


def _dropped(recorded: Recorded) -> int:
    return [statement for statement, _ in recorded.statements].count("DISCARD PLANS")


async def _generic_plan(c: AsyncConnection, statement: TextClause) -> str:
    """The plan for values of any kind, as it is kept."""
    text = str(statement.compile(dialect=c.dialect))
    names = dict.fromkeys(re.findall(r"%\((\w+)\)s|\$(\d+)", text))
    numbers = {a or b: number for number, (a, b) in enumerate(names, start=1)}
    text = re.sub(r"%\((\w+)\)s|\$(\d+)", lambda m: f"${numbers[m[1] or m[2]]}", text)
    await c.exec_driver_sql(f"PREPARE kept AS {text.replace('%%', '%')}")
    nulls = ", ".join(["NULL"] * len(numbers))
    rows = (await c.exec_driver_sql(f"EXPLAIN EXECUTE kept ({nulls})")).all()
    await c.exec_driver_sql("DEALLOCATE kept")
    return "\n".join(row[0] for row in rows)
