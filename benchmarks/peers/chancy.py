"""chancy: two worker processes with fifty coroutines each; it stores no result."""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.peers.common import Peer

FOREVER = 1e9


async def add(*, a: int, b: int) -> int:
    return a + b


class Chancy(Peer):
    package = "chancy"
    finished_sql = "SELECT count(*) FROM chancy_jobs WHERE state = 'succeeded'"
    done_sql = "SELECT state = 'succeeded' FROM chancy_jobs WHERE id = %s"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        logging.disable(logging.CRITICAL)
        self._library: Any = importlib.import_module("chancy")
        self._app: Any = None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        async with self._library.Chancy(self.url) as self._app:
            await self._app.migrate()
            await self._app.declare(
                self._library.Queue(
                    "default",
                    concurrency=50,
                    executor=self._library.Chancy.Executor.Async,
                    eager_polling=True,
                    polling_interval=1,
                )
            )
            yield

    async def enqueue(self, number: int) -> Any:
        return (await self._app.push(self._job(number))).identifier

    async def enqueue_many(self, count: int) -> None:
        async for _ in self._app.push_many([self._job(n) for n in range(count)]):
            pass

    def _job(self, number: int) -> Any:
        job = self._library.Job.from_func(add, kwargs={"a": number, "b": 3})
        return job.with_queue("default")

    async def work(self) -> None:
        worker: Any = importlib.import_module("chancy.worker").Worker
        async with self._library.Chancy(self.url) as app, worker(app):
            await asyncio.sleep(FOREVER)


PEER = Chancy
