"""pgqueuer: two worker processes that run jobs on their event loops; it stores no result."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from benchmarks.peers.common import Peer

PAYLOAD = b'{"a":2,"b":3}'
BATCH = 100


class Pgqueuer(Peer):
    package = "pgqueuer"
    bulk_tasks = 20_000
    finished_sql = "SELECT count(*) FROM pgqueuer_log WHERE status = 'successful'"
    done_sql = (
        "SELECT EXISTS (SELECT 1 FROM pgqueuer_log WHERE job_id = %s AND status = 'successful')"
    )

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._queries: Any = None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        asyncpg: Any = importlib.import_module("asyncpg")
        library: Any = importlib.import_module("pgqueuer")
        async with asyncpg.create_pool(self.url, min_size=10, max_size=10) as pool:
            self._queries = library.Queries.from_asyncpg_pool(pool)
            await self._queries.install()
            yield

    async def enqueue(self, number: int) -> Any:
        return (await self._queries.enqueue("add", PAYLOAD))[0]

    async def enqueue_many(self, count: int) -> None:
        await self._queries.enqueue(["add"] * count, [PAYLOAD] * count, [0] * count)

    async def work(self) -> None:
        asyncpg: Any = importlib.import_module("asyncpg")
        library: Any = importlib.import_module("pgqueuer")
        connection = await asyncpg.connect(self.url)
        worker = library.PgQueuer.from_asyncpg_connection(connection)

        async def add(job: Any) -> None:
            assert job.payload == PAYLOAD

        worker.entrypoint("add")(add)
        # The log is what tells that a job has succeeded: keep it as it is.
        await worker.qm.run(batch_size=BATCH, log_aggregation_interval=timedelta(0))


PEER = Pgqueuer
