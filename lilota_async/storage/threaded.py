"""A connection in a thread of its own, which a transaction does not leave until it has ended."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from sqlalchemy import Connection, CursorResult, Dialect, Engine, Executable
    from sqlalchemy.ext.asyncio import AsyncConnection

T = TypeVar("T")


class ThreadedConnection:
    """What the storage uses of an AsyncConnection, over a synchronous one.

    A call from the event loop goes to the thread and back. `run()` takes a whole coroutine
    there, whose calls need not wait for the loop.
    """

    def __init__(self, engine: Engine) -> None:
        self.dialect: Dialect = engine.dialect
        self._engine = engine
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lilota-connection")
        self._ident: int | None = None
        self._connection: Connection | None = None

    @property
    def invalidated(self) -> bool:
        """Whether the connection was given up."""
        return self._connection is not None and self._connection.invalidated

    async def open(self) -> None:
        """Connect; no thread is left when that fails."""
        try:
            await self._call(self._open)
        except BaseException:
            self._thread.shutdown(wait=False)
            raise

    async def close(self) -> None:
        """Disconnect and end the thread, after what it may still be doing."""
        await self._call(self._close)
        self._thread.shutdown()

    async def invalidate(self) -> None:
        """Give the connection up."""
        assert self._connection is not None
        await self._call(self._connection.invalidate)

    async def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[Any]:
        assert self._connection is not None
        return await self._call(self._connection.execute, statement, parameters)

    async def exec_driver_sql(self, statement: str, parameters: Any = None) -> CursorResult[Any]:
        assert self._connection is not None
        return await self._call(self._connection.exec_driver_sql, statement, parameters)

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work`, which awaits nothing but this connection, in the thread.

        When the caller is cancelled, it goes on to its end.
        """
        return await self._call(_drive, work)

    async def _call(self, function: Callable[..., T], *arguments: Any) -> T:
        if threading.get_ident() == self._ident:
            return function(*arguments)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, function, *arguments)

    def _open(self) -> None:
        self._ident = threading.get_ident()
        self._connection = self._engine.connect()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()


async def in_one_go(
    connection: AsyncConnection | ThreadedConnection, work: Coroutine[Any, Any, T]
) -> T:
    """Await `work`, which uses the connection; in its thread, if it has one."""
    if isinstance(connection, ThreadedConnection):
        return await connection.run(work)
    return await work


def _drive(work: Coroutine[Any, Any, T]) -> T:
    try:
        work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    work.close()
    raise RuntimeError("Something else than the connection was awaited in its thread")
