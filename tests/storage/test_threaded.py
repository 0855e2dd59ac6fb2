"""The writer's connection to SQLite, which has a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from lilota_async.errors import StoreUnavailable
from lilota_async.storage.database import Database
from lilota_async.storage.threaded import in_one_go
from tests.storage.support import eventually


def new_database(directory: Path) -> Database:
    """One that is empty, and not open."""
    file = directory / "a.db"
    file.touch()
    return Database(f"sqlite:///{file}")


def threads() -> list[str]:
    """The threads of connections."""
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("lilota-connection")]


async def test_work_does_not_leave_the_thread(tmp_path: Path) -> None:
    """A whole coroutine runs there, and calls from outside go there and back."""
    connection = await new_database(tmp_path).acquire_own()

    async def work() -> str:
        await connection.exec_driver_sql("CREATE TABLE t (x)")
        await connection.exec_driver_sql("INSERT INTO t VALUES (1)")
        return threading.current_thread().name

    assert [await in_one_go(connection, work())] == threads()
    assert (await connection.exec_driver_sql("SELECT x FROM t")).scalars().all() == [1]
    await connection.close()
    assert threads() == []


async def test_nothing_else_can_be_awaited_there(tmp_path: Path) -> None:
    """There is no loop in the thread: who wants one gets an error, and the connection lives on."""
    connection = await new_database(tmp_path).acquire_own()
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def work() -> None:
        await never

    with pytest.raises(RuntimeError, match="awaited in its thread"):
        await in_one_go(connection, work())
    assert (await connection.exec_driver_sql("SELECT 1")).scalar() == 1
    await connection.close()


async def test_cancelled_work_ends_before_the_connection(tmp_path: Path) -> None:
    """The thread cannot be stopped in the middle, and closing waits for it."""
    connection = await new_database(tmp_path).acquire_own()
    begun, gate = threading.Event(), threading.Event()
    done = []

    async def work() -> None:
        begun.set()
        gate.wait(10.0)
        done.append((await connection.exec_driver_sql("SELECT 1")).scalar())

    async def has_begun() -> bool:
        return begun.is_set()

    call = asyncio.create_task(in_one_go(connection, work()))
    await eventually(has_begun)
    call.cancel()
    await asyncio.wait([call])
    gate.set()
    await connection.close()
    assert done == [1]
    assert threads() == []


async def test_a_connection_that_fails_leaves_no_thread(tmp_path: Path) -> None:
    """What is no database cannot be opened."""
    path = tmp_path / "a.db"
    path.write_bytes(b"no database " * 100)
    with pytest.raises(StoreUnavailable):
        await Database(f"sqlite:///{path}").acquire_own()

    async def no_thread() -> bool:
        return threads() == []

    await eventually(no_thread)
