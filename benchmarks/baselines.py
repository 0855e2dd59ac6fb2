"""What lilota is compared with: a bare process pool, and asyncpg without anything around it."""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from benchmarks.measure import run_callers
from benchmarks.settings import IN_FLIGHT
from benchmarks.tasks import CELLS, bare_add, bare_spin
from lilota_async import TaskId

INPUT = '{"a":2,"b":3}'
_INSERT = """
    INSERT INTO raw_task (id, name, status, priority, created_at, run_at, progress_percentage,
        input, attempts, max_attempts, interruptions, timeout_seconds, tags)
    VALUES ($1, $2, 'pending', 0, now(), now(), 0, $3, 0, 1, 0, NULL, NULL)"""
_FINISH = """
    UPDATE raw_task SET status = 'completed', end_date_time = now(), output = $2,
        progress_percentage = 100 WHERE id = $1"""


class BarePool:
    """A `ProcessPoolExecutor` that records nothing."""

    def __init__(self, processes: int = CELLS) -> None:
        method = "forkserver" if sys.platform == "linux" else "spawn"
        self._executor = ProcessPoolExecutor(processes, multiprocessing.get_context(method))

    async def __aenter__(self) -> BarePool:
        await run_callers(200, 20, self.add)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._executor.shutdown)

    async def add(self, number: int) -> int:
        """One no-op there and back."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, bare_add, number, 3)

    async def rate(self, count: int) -> float:
        """No-ops per second with 1,000 in flight."""
        return count / await run_callers(count, IN_FLIGHT, self.add)

    async def spin(self, tasks: int, rounds: int) -> float:
        """The seconds that so many tasks of pure Python take."""

        async def call(_: int) -> int:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._executor, bare_spin, rounds)

        return await run_callers(tasks, tasks, call)


class RawPostgresql:
    """The same rows, written into a table like lilota's by asyncpg, each its own commit."""

    def __init__(self, pool: Any, connection: Any) -> None:
        self._pool = pool
        self._connection = connection

    async def insert(self, _: int) -> TaskId[Any]:
        """One row over the one connection."""
        task_id: TaskId[Any] = TaskId()
        await self._connection.execute(_INSERT, task_id, "add", INPUT)
        return task_id

    async def insert_pooled(self, _: int) -> None:
        """One row over any of ten connections."""
        await self._pool.execute(_INSERT, TaskId(), "add", INPUT)

    async def finish(self, task_id: TaskId[Any]) -> None:
        """The second of the two commits that a task cannot do without."""
        await self._connection.execute(_FINISH, task_id, '{"sum":5}')


@asynccontextmanager
async def raw_postgresql(url: str) -> AsyncIterator[RawPostgresql]:
    """Connections to a database in which lilota's tables are."""
    async with asyncpg.create_pool(url, min_size=10, max_size=10) as pool:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(
                "CREATE TABLE IF NOT EXISTS raw_task (LIKE lilota_task INCLUDING ALL)"
            )
            yield RawPostgresql(pool, connection)
        finally:
            await connection.close()
