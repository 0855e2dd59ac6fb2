"""What goes to asyncpg itself: when it does, its errors, and what it does to the connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest
from sqlalchemy import TextClause
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from lilota_async.errors import SchemaMissing, StoreError
from lilota_async.models import Task, TaskId, TaskStatus
from lilota_async.storage import postgresql_sql as sql
from lilota_async.storage.database import Database, begin, rollback, transaction
from lilota_async.storage.failures import is_conflict, is_disconnect, is_missing_table
from lilota_async.storage.migrate import migrate
from lilota_async.storage.notifications import Notifications
from lilota_async.storage.queries import get_task, get_tasks
from lilota_async.storage.store import Store
from lilota_async.storage.stores import create_store
from lilota_async.storage.transitions import Attempt, Claim, Cost, Finish, NewTask, Report, Requeue
from lilota_async.storage.writer import Writer
from tests.api.support import until
from tests.databases import Servers
from tests.storage.support import NODE, ended, new_task, raw, row_of, transacting

pytestmark = pytest.mark.anyio

ASYNCPG, PSYCOPG = "postgresql+asyncpg", "postgresql+psycopg"
WHEN = datetime(2020, 2, 3, 4, 5, 6, 789, tzinfo=UTC)
CLAIM_ONE = Claim(node_id=NODE, names=("add",), pids=(1,))
ANSWERS = [True, True, True, True, False]
STATEMENTS = (
    *(sql.INSERT, sql.INSERT_ONE, sql.CLAIM, sql.FINISH, sql.FINISH_ONE, sql.FINISHED),
    *(sql.REQUEUE, sql.REPORT),
)


@pytest.fixture(params=[ASYNCPG])
def database_url(request: pytest.FixtureRequest, servers: Servers, tmp_path: Path) -> str:
    """A database of asyncpg's."""
    return servers.database(request.param, tmp_path)


@asynccontextmanager
async def opened(database: Database) -> AsyncIterator[Database]:
    """Open and migrate it, and close it in the end."""
    await database.open()
    try:
        await migrate(database)
        yield database
    finally:
        await database.close()


async def run_one(writer: Writer) -> list[Any]:
    """One task through every statement; what the ends of its attempts were answered."""
    await asyncio.gather(*(writer.insert([new_task("other")]) for _ in range(2)))
    await writer.insert([new_task()])
    (first,) = (await writer.claim(lambda: CLAIM_ONE)).tasks
    answers = [await ended(writer, Requeue(attempt=first.attempt))]
    (second,) = (await writer.claim(lambda: CLAIM_ONE)).tasks
    answers.append(await writer.report(Report(attempt=second.attempt, progress=50)))
    done = Finish(attempt=second.attempt, status=TaskStatus.COMPLETED, output="1")
    fenced = Finish(attempt=first.attempt, status=TaskStatus.COMPLETED, output="1")
    answers.append(await ended(writer, done))
    answers += await asyncio.gather(ended(writer, done), ended(writer, fenced))
    return answers


@pytest.fixture
def through_sqlalchemy(monkeypatch: pytest.MonkeyPatch) -> list[TextClause]:
    """Those of the statements that SQLAlchemy is asked to run."""
    seen: list[TextClause] = []
    execute = AsyncConnection.execute

    async def spy(self: AsyncConnection, statement: Any, *arguments: Any, **options: Any) -> Any:
        if any(statement is each for each in STATEMENTS):
            seen.append(statement)
        return await execute(self, statement, *arguments, **options)

    monkeypatch.setattr(AsyncConnection, "execute", spy)
    return seen


async def test_sqlalchemy_is_not_asked(
    writer: Writer, through_sqlalchemy: list[TextClause]
) -> None:
    """With asyncpg, what each task needs goes past it."""
    assert await run_one(writer) == ANSWERS
    assert through_sqlalchemy == []


@pytest.mark.parametrize("database_url", [PSYCOPG], indirect=True)
async def test_psycopg_is_asked_by_sqlalchemy(
    writer: Writer, through_sqlalchemy: list[TextClause]
) -> None:
    """With another driver, everything goes through it, to the same end."""
    assert await run_one(writer) == ANSWERS
    assert set(through_sqlalchemy) == set(STATEMENTS)


async def test_an_engine_of_the_application(
    database_url: str, through_sqlalchemy: list[TextClause]
) -> None:
    """It gains as well."""
    engine = create_async_engine(database_url)
    database = Database(engine=engine)
    async with opened(database), Writer(database, create_store(database)) as writer:
        assert await run_one(writer) == ANSWERS
    await engine.dispose()
    assert through_sqlalchemy == []


async def test_a_transaction_of_sqlalchemy_keeps_its_rows(database: Database, store: Store) -> None:
    """Where SQLAlchemy begins transactions, a first statement is not committed by itself."""
    engine = create_async_engine(database.url)
    async with engine.connect() as connection:
        await store.insert(connection, [new_task()])
        await connection.rollback()
    assert await get_tasks(database) == []
    async with engine.begin() as connection:
        await store.insert(connection, [new_task()])
    assert len(await get_tasks(database)) == 1
    await engine.dispose()


async def test_a_transaction_of_ours_keeps_its_rows(database: Database, store: Store) -> None:
    """BEGIN through SQLAlchemy holds for what goes past it."""
    async with database.connect() as connection:
        await begin(connection)
        await store.insert(connection, [new_task()])
        await rollback(connection)
    assert await get_tasks(database) == []


@pytest.mark.parametrize(
    ("database_url", "values"),
    [
        (ASYNCPG, {"name": None, "input": "s3cret"}),
        (PSYCOPG, {"name": None, "input": "s3cret"}),
        (ASYNCPG, {"input": "s3cret\0"}),
        (ASYNCPG, {"input": "s3cret\ud800"}),
        (ASYNCPG, {"input": "s3cret", "priority": 2**40}),
        (ASYNCPG, {"priority": "s3cret"}),
    ],
    indirect=["database_url"],
)
async def test_what_is_refused_is_not_told(
    database: Database, writer: Writer, values: dict[str, Any]
) -> None:
    """A value that the server or the driver refuses fails alone, and no message quotes it."""
    refused = NewTask(**{"id": TaskId(), "name": "add", **values})
    good = new_task()
    connection = await writer._link.connect()
    answers = await asyncio.gather(
        writer.insert([refused]), writer.insert([good]), return_exceptions=True
    )
    assert type(answers[0]) is StoreError
    assert "s3cret" not in str(answers[0])
    assert str(2**40) not in str(answers[0])
    assert answers[1] == set()
    assert [task.id for task in await get_tasks(database)] == [good.id]
    assert not connection.invalidated


async def test_a_missing_table(database: Database, writer: Writer) -> None:
    """It is told what to do."""
    await raw(database, "DROP TABLE lilota_task CASCADE")
    with pytest.raises(SchemaMissing):
        await writer.insert([new_task()])


async def test_errors_are_understood(database: Database, store: Store) -> None:
    """A lock that somebody else has is a conflict, and no table is none."""
    task = new_task()
    async with database.connect() as connection, database.connect() as other:
        await connection.exec_driver_sql("SET lock_timeout = '20ms'")
        async with transaction(other):
            await store.insert(other, [task])
            with pytest.raises(DBAPIError) as caught:
                await store.insert(connection, [task])
        assert is_conflict(caught.value)
        assert not is_disconnect(caught.value)
        await connection.exec_driver_sql("DROP TABLE lilota_task CASCADE")
        with pytest.raises(DBAPIError) as caught:
            await store.insert(connection, [task])
        assert is_missing_table(caught.value)
        assert not is_conflict(caught.value)
        await connection.invalidate()  # it has a setting


async def test_a_closed_connection_is_given_up(database: Database, store: Store) -> None:
    """One that the server ended counts as broken, and as the database's being away."""
    async with database.connect() as connection:
        pid = (await connection.exec_driver_sql("SELECT pg_backend_pid()")).scalar()
        await raw(database, f"SELECT pg_terminate_backend({pid}, 5000)")
        await until(lambda: store.is_closed(connection), "the driver's hearing of it", 5.0)
        with pytest.raises(DBAPIError) as caught:
            await store.insert(connection, [new_task()])
        assert is_disconnect(caught.value)
        assert caught.value.connection_invalidated
        assert connection.invalidated


async def test_a_cancelled_statement_gives_the_connection_up(
    database: Database, store: Store
) -> None:
    """Nobody gets a connection on which the server may still be at work."""
    task = new_task()
    async with database.connect() as connection, transacting(database) as other:
        await store.insert(other, [task])
        with anyio.move_on_after(0.1) as scope:
            await store.insert(connection, [task])
        assert scope.cancelled_caught
        assert connection.invalidated
    assert await get_task(database, task.id) is not None


async def test_a_claim_outlives_a_migration(database: Database, writer: Writer) -> None:
    """A node goes on when another process changes the columns that a statement returns."""
    await writer.insert([new_task(), new_task()])
    assert len((await writer.claim(lambda: CLAIM_ONE)).tasks) == 1
    await raw(database, "ALTER TABLE lilota_task ADD COLUMN extra text")
    await raw(database, "ALTER TABLE lilota_task ALTER COLUMN tags TYPE varchar(5000)")
    assert len((await writer.claim(lambda: CLAIM_ONE)).tasks) == 1
    assert await run_one(writer) == ANSWERS


@pytest.mark.parametrize(
    ("query", "most_prepared"),
    [
        ("statement_cache_size=0&prepared_statement_cache_size=0", 0),
        ("statement_cache_size=0", 0),
        ("prepared_statement_cache_size=0", len(STATEMENTS)),
        ("statement_cache_size=1", 1),
    ],
)
async def test_the_cache_of_statements_is_asyncpgs(
    database_url: str, query: str, most_prepared: int
) -> None:
    """Behind a pooler that knows no prepared statements it is off, and nothing is prepared."""
    database = Database(f"{database_url}?{query}")
    async with opened(database), Writer(database, create_store(database)) as writer:
        for _ in range(2):
            assert await run_one(writer) == ANSWERS
        connection = await writer._link.connect()
        driver: Any = (await connection.get_raw_connection()).driver_connection
        prepared = await driver.fetchval(
            "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%unnest(%'"
        )
        assert prepared <= most_prepared


def test_every_statement_is_kept_prepared() -> None:
    """asyncpg does not cache larger ones than 15 KiB."""
    assert max(len(str(statement)) for statement in STATEMENTS) < 12 * 1024


async def test_one_row_is_written_like_many(database: Database, writer: Writer) -> None:
    """It has a statement of its own, and every value arrives in the same column."""
    values: dict[str, Any] = {
        "priority": 3, "input": '{"a":1}', "max_attempts": 4, "timeout_seconds": 5.5,
        "tags": '["x"]', "node_id": NODE, "pid": 7,
        "nominal_time": WHEN, "run_at": WHEN, "unique_seconds": 60.0,
    }  # fmt: skip
    one, *many = (
        new_task(**values, unique_key=f"key {number}", concurrency_key=f"group {number}")
        for number in range(3)
    )
    await writer.insert([one])
    assert await writer.insert(many) == set()
    cost = Cost(cpu_seconds=0.5, peak_memory_bytes=2**40, log="said")
    ends = [
        Finish(
            attempt=Attempt(id=task.id, number=1, node_id=NODE),
            status=TaskStatus.FAILED, progress=40, output="1", exception="2",
            cost=cost,
        )
        for task in (one, *many)
    ]  # fmt: skip
    assert await ended(writer, ends[0])
    assert all(await asyncio.gather(*(ended(writer, end) for end in ends[1:])))
    first, *others = [await row_of(database, task.id) for task in (one, *many)]
    assert (first.name, first.priority, first.input, first.max_attempts) == ("add", 3, {"a": 1}, 4)
    assert (first.timeout_seconds, first.tags, first.unique_key) == (5.5, ["x"], "key 0")
    assert (first.concurrency_key, first.locked_by, first.pid) == ("group 0", NODE, 7)
    assert (first.nominal_time, first.run_at, first.attempts) == (WHEN, WHEN, 1)
    assert (first.output, first.exception) == (1, 2)
    assert (first.cpu_seconds, first.peak_memory_bytes, first.log) == (0.5, 2**40, "said")
    differ = {
        *("id", "unique_key", "concurrency_key"),
        *("unique_until", "created_at", "start_date_time", "end_date_time"),
    }
    for column in (each.key for each in Task.__table__.columns):
        expected = getattr(first, column)
        if column in differ:
            assert all(type(getattr(each, column)) is type(expected) for each in others), column
        else:
            assert [getattr(each, column) for each in others] == [expected] * 2, column


@pytest.mark.parametrize("others", [0, 1])
async def test_what_is_not_inserted_is_told(
    database: Database, writer: Writer, store: Store, others: int
) -> None:
    """One alone and one of several: a key or an id that is taken, and a name that is paused."""

    async def refused(task: NewTask) -> set[TaskId[Any]]:
        return await writer.insert([task, *(new_task() for _ in range(others))])

    first = new_task(unique_key="key")
    assert await refused(first) == set()
    second = new_task(unique_key="key")
    assert await refused(second) == {second.id}
    assert await refused(first) == {first.id}
    third = new_task("paused", node_id=NODE, pid=1)
    assert await refused(third) == set()
    await raw(database, "INSERT INTO lilota_limit (name, paused_at) VALUES ('paused', now())")
    assert await refused(third) == set()  # written before
    fourth = new_task("paused", node_id=NODE, pid=1)
    assert await refused(fourth) == {fourth.id}
    assert await get_task(database, fourth.id) is None
    assert await refused(new_task("paused")) == set()


async def test_other_nodes_hear_of_one_row(
    database: Database, writer: Writer, store: Store
) -> None:
    """With listeners it is announced."""
    heard = asyncio.Event()
    notifications = Notifications(
        database, "other", lambda _: heard.set(), on_up=heard.set, on_down=lambda: None
    )
    notifications.start()
    with anyio.fail_after(5):
        await heard.wait()
        heard.clear()
        store.has_listeners = True
        await writer.insert([new_task()])
        await heard.wait()
    await notifications.close()
