"""procrastinate: two worker processes with ten coroutines each."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.peers.common import Peer


async def add(a: int, b: int) -> int:
    return a + b


class Procrastinate(Peer):
    package = "procrastinate"
    finished_sql = "SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded'"
    done_sql = "SELECT status = 'succeeded' FROM procrastinate_jobs WHERE id = %s"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        library: Any = importlib.import_module("procrastinate")
        connector = library.PsycopgConnector(conninfo=url, min_size=10, max_size=10)
        self._app = library.App(connector=connector)
        self._task = self._app.task(name="add")(add)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        async with self._app.open_async():
            await self._app.schema_manager.apply_schema_async()
            yield

    async def enqueue(self, number: int) -> Any:
        return await self._task.defer_async(a=number, b=3)

    async def enqueue_many(self, count: int) -> None:
        await self._task.batch_defer_async(*({"a": n, "b": 3} for n in range(count)))

    async def work(self) -> None:
        async with self._app.open_async():
            await self._app.run_worker_async(concurrency=10)


PEER = Procrastinate
