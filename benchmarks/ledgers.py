"""Looking at lilota's table from outside, without burdening what is measured."""

from __future__ import annotations

import asyncio
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from sqlalchemy import make_url

POLL_SECONDS = 0.005
_UNFINISHED = """
    SELECT EXISTS (SELECT 1 FROM lilota_task WHERE status = 'pending')
    OR EXISTS (SELECT 1 FROM lilota_task WHERE status = 'running')"""
_STORED = "SELECT count(*) FROM lilota_task WHERE status = 'completed' AND output IS NOT NULL"


class Ledger(ABC):
    """One database's table of tasks, seen over a connection of its own."""

    def __init__(self) -> None:
        self._kept = 0

    @abstractmethod
    async def value(self, query: str) -> Any:
        """The one value that the query returns."""

    @abstractmethod
    async def clear(self) -> None:
        """Begin with an empty table."""

    async def keep(self) -> None:
        """Begin with the table as it is."""
        self._kept = await self.value(_STORED)

    async def until_done(self) -> None:
        """Wait until nothing is pending and nothing running."""
        while await self.value(_UNFINISHED):
            await asyncio.sleep(POLL_SECONDS)

    async def check_stored(self, count: int) -> None:
        """So many tasks have completed since the beginning, and their outputs are stored."""
        stored = await self.value(_STORED) - self._kept
        if stored != count:
            raise RuntimeError(f"{stored} of {count} tasks have completed with an output")


class PostgresqlLedger(Ledger):
    def __init__(self, connection: Any) -> None:
        super().__init__()
        self._connection = connection

    async def value(self, query: str) -> Any:
        return await self._connection.fetchval(query)

    async def clear(self) -> None:
        await self.value("TRUNCATE lilota_task")


class SqliteLedger(Ledger):
    """Reads take microseconds and wait for nobody, so that they need no thread."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__()
        self._connection = connection

    async def value(self, query: str) -> Any:
        return self._connection.execute(query).fetchone()[0]

    async def clear(self) -> None:
        # On the loop it would wait for a transaction that cannot end while the loop waits.
        await asyncio.to_thread(self._connection.execute, "DELETE FROM lilota_task")


@asynccontextmanager
async def open_ledger(url: str) -> AsyncIterator[Ledger]:
    """The ledger of the database with this URL, whose tables are there."""
    if url.startswith("sqlite"):
        path = make_url(url).database or ""
        sqlite = sqlite3.connect(path, isolation_level=None, timeout=30, check_same_thread=False)
        try:
            yield SqliteLedger(sqlite)
        finally:
            sqlite.close()
        return
    # Whatever the statistics were made of: it is asked often, and must cost next to nothing.
    connection = await asyncpg.connect(url, server_settings={"enable_seqscan": "off"})
    try:
        yield PostgresqlLedger(connection)
    finally:
        await connection.close()
