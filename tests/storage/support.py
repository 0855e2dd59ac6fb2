"""Short ways to rows and transitions, for the tests of the storage."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import anyio
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.pool import QueuePool

from lilota_async.models import Task, TaskId
from lilota_async.storage.database import Database, transaction
from lilota_async.storage.queries import get_task
from lilota_async.storage.store import Store
from lilota_async.storage.transitions import (
    Claim,
    ClaimedTask,
    Finish,
    NewTask,
    NodeRecord,
    Requeue,
    Written,
)
from lilota_async.storage.writer import Writer

NODE: TaskId[Any] = TaskId("01939e4a-0000-7000-8000-00000000000a")
OTHER_NODE: TaskId[Any] = TaskId("01939e4a-0000-7000-8000-00000000000b")
NAMES = ("add", "Add", "other")


@asynccontextmanager
async def transacting(database: Database) -> AsyncIterator[AsyncConnection]:
    """A connection in a transaction."""
    async with database.connect() as connection, transaction(connection):
        yield connection


def ended(writer: Writer, end: Finish | Requeue) -> asyncio.Future[Written]:
    """Write the end of an attempt; the future is whether it was written."""
    future: asyncio.Future[Written] = asyncio.get_running_loop().create_future()

    def told(_about: None, written: Written, error: Exception | None) -> None:
        if error is None:
            future.set_result(written)
        else:
            future.set_exception(error)

    writer.end(end, told)
    return future


def checked_out(database: Database) -> int:
    """How many connections of the pool are in use."""
    engine = database._pooled
    assert engine is not None
    assert isinstance(engine.pool, QueuePool)
    return engine.pool.checkedout()


async def held_by(gate: threading.Event, seconds: float = 10.0) -> None:
    """Wait for the gate where a store's method waits: on the loop or in a connection's thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        gate.wait(seconds)
    else:
        await asyncio.to_thread(gate.wait, seconds)


def new_task(name: str = "add", **values: Any) -> NewTask:
    """A task with an id of its own."""
    return NewTask(id=TaskId(), name=name, **values)


def node_record(node_id: UUID = NODE) -> NodeRecord:
    """A node as it registers."""
    return NodeRecord(
        id=node_id,
        machine="boot",
        host="host",
        pid=100,
        pid_started=200,
        lease_seconds=30.0,
        slots=2,
        version="1",
    )


async def insert(database: Database, store: Store, tasks: Iterable[NewTask]) -> None:
    """Insert in a transaction."""
    async with transacting(database) as connection:
        await store.insert(connection, list(tasks))


async def claim(
    database: Database, store: Store, count: int = 10, node_id: UUID = NODE, **values: Any
) -> list[ClaimedTask]:
    """Claim in a transaction, for pids from 1 on."""
    pids = tuple(range(1, count + 1))
    request = Claim(node_id=node_id, names=values.pop("names", NAMES), pids=pids, **values)
    async with transacting(database) as connection:
        return await store.claim(connection, request)


async def claim_new(
    database: Database, store: Store, name: str = "add", **values: Any
) -> ClaimedTask:
    """Insert one task and claim it."""
    await insert(database, store, [new_task(name, **values)])
    (claimed,) = await claim(database, store)
    return claimed


async def row_of(database: Database, task_id: UUID) -> Task:
    """The row, which must be there."""
    task = await get_task(database, task_id)
    assert task is not None
    return task


async def raw(database: Database, statement: str, **parameters: Any) -> list[Any]:
    """Rows of a statement as the driver gives them."""
    async with database.connect() as connection:
        result = await connection.execute(text(statement), parameters)
        return list(result.all()) if result.returns_rows else []


async def kill_others(database: Database) -> None:
    """End all other connections to this database, at the server."""
    if database.dialect == "sqlite":
        pytest.skip("SQLite has no server")
    if database.dialect == "postgresql":
        await raw(
            database,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        return
    others = await raw(
        database,
        "SELECT id FROM information_schema.processlist"
        " WHERE db = DATABASE() AND id <> CONNECTION_ID()",
    )
    for (number,) in others:
        await raw(database, f"KILL CONNECTION {int(number)}")


async def eventually(condition: Callable[[], Awaitable[bool]], seconds: float = 5.0) -> None:
    """Wait until the condition holds, or fail after so many seconds."""
    with anyio.fail_after(seconds):
        while not await condition():
            await asyncio.sleep(0.01)
