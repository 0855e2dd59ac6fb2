"""oban: two worker processes with ten coroutines each; it stores no result."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.peers.common import Peer

BULK = 1000
FOREVER = 1e9


class Add:
    async def process(self, job: Any) -> None:
        assert job.args["b"] == 3


class Oban(Peer):
    package = "oban"
    finished_sql = "SELECT count(*) FROM oban_jobs WHERE state = 'completed'"
    done_sql = "SELECT state = 'completed' FROM oban_jobs WHERE id = %s"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._library: Any = importlib.import_module("oban")
        self._add = self._library.worker(queue="default")(Add)
        self._oban: Any = None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        pool = await self._library.Oban.create_pool(self.url, min_size=10, max_size=20)
        await importlib.import_module("oban.schema").install(pool)
        async with self._library.Oban(pool=pool) as self._oban:
            yield
        await pool.close()

    async def enqueue(self, number: int) -> Any:
        return (await self._oban.enqueue(self._add.new({"a": number, "b": 3}))).id

    async def enqueue_many(self, count: int) -> None:
        for start in range(0, count, BULK):
            jobs = [self._add.new({"a": n, "b": 3}) for n in range(start, min(start + BULK, count))]
            await self._oban.enqueue_many(jobs)

    async def work(self) -> None:
        pool = await self._library.Oban.create_pool(self.url, min_size=10, max_size=20)
        async with self._library.Oban(pool=pool, queues={"default": 10}):
            await asyncio.sleep(FOREVER)


PEER = Oban
