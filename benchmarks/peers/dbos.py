"""dbos: two worker processes with ten workflows each; outputs are stored."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.peers.common import Peer

FOREVER = 1e9
QUEUE = "benchmark"


async def add(a: int, b: int) -> int:
    return a + b


class Dbos(Peer):
    package = "dbos"
    finished_sql = "SELECT count(*) FROM dbos.workflow_status WHERE status = 'SUCCESS'"
    done_sql = "SELECT status = 'SUCCESS' FROM dbos.workflow_status WHERE workflow_uuid = %s"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._library: Any = importlib.import_module("dbos")
        self._workflow: Any = None

    async def _launch(self, queues: list[str]) -> None:
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
        self._workflow = dbos.workflow(name="add")(add)
        dbos.listen_queues(queues)
        await asyncio.to_thread(dbos.launch)
        await dbos.register_queue_async(QUEUE, worker_concurrency=10, polling_interval_sec=0.01)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        await self._launch([])
        try:
            yield
        finally:
            await asyncio.to_thread(self._library.DBOS.destroy)

    async def enqueue(self, number: int) -> Any:
        enqueue = self._library.DBOS.enqueue_workflow_async
        return (await enqueue(QUEUE, self._workflow, number, 3)).workflow_id

    async def work(self) -> None:
        await self._launch([QUEUE])
        await asyncio.sleep(FOREVER)


PEER = Dbos
