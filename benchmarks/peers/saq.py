"""saq on PostgreSQL: two worker processes with ten coroutines each; results are kept."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.peers.common import Peer


async def add(_context: Any, *, a: int, b: int) -> int:
    return a + b


class Saq(Peer):
    package = "saq"
    finished_sql = "SELECT count(*) FROM saq_jobs WHERE status = 'complete'"
    done_sql = "SELECT status = 'complete' FROM saq_jobs WHERE key = %s"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._queue: Any = None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        self._queue = _queue(self.url)
        await self._queue.connect()
        try:
            yield
        finally:
            await self._queue.disconnect()

    async def enqueue(self, number: int) -> Any:
        return (await self._queue.enqueue("add", a=number, b=3)).key

    async def work(self) -> None:
        queue = _queue(self.url)
        await queue.connect()
        worker: Any = importlib.import_module("saq").Worker(queue, [("add", add)], concurrency=10)
        await worker.start()


def _queue(url: str) -> Any:
    return importlib.import_module("saq").Queue.from_url(url, min_size=10, max_size=20)


PEER = Saq
