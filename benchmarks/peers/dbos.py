"""dbos: two worker processes with ten workflows each; outputs are stored."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.peers.common import Peer

FOREVER = 1e9


async def add(a: int, b: int) -> int:
    return a + b


class Dbos(Peer):
    package = "dbos"
    finished_sql = "SELECT count(*) FROM dbos.workflow_status WHERE status = 'SUCCESS'"
    done_sql = "SELECT status = 'SUCCESS' FROM dbos.workflow_status WHERE workflow_uuid = %s"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._library: Any = importlib.import_module("dbos")
        self._queue: Any = None
        self._workflow: Any = None

    def _launch(self) -> None:
        dbos = self._library.DBOS
        dbos(
            config={
                "name": "benchmark",
                "system_database_url": self.url.replace("postgresql:", "postgresql+psycopg:", 1),
                "sys_db_pool_size": 20,
                "application_version": "1",
                "log_level": "ERROR",
            }
        )
        self._queue = self._library.Queue(
            "benchmark", worker_concurrency=10, polling_interval_sec=0.01
        )
        self._workflow = dbos.workflow(name="add")(add)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        self._launch()
        self._library.DBOS.listen_queues([])
        self._library.DBOS.launch()
        try:
            yield
        finally:
            await asyncio.to_thread(self._library.DBOS.destroy)

    async def enqueue(self, number: int) -> Any:
        return (await self._queue.enqueue_async(self._workflow, number, 3)).workflow_id

    async def work(self) -> None:
        self._launch()
        self._library.DBOS.launch()
        await asyncio.sleep(FOREVER)


PEER = Dbos
