"""Connections for statements that must go by an index, and what is read in the same way twice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from sqlalchemy import text

from lilota_async.storage.database import Database, transaction

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

MOST_NAMES = 1000
# Each is found from the one before, by the index.
_NAMES = text("""
    WITH RECURSIVE known (name) AS (
        SELECT MIN(name) FROM lilota_task
        UNION ALL
        SELECT (SELECT MIN(task.name) FROM lilota_task AS task WHERE task.name > known.name)
        FROM known WHERE known.name IS NOT NULL
    )
    SELECT name FROM known WHERE name IS NOT NULL LIMIT :limit""")


@asynccontextmanager
async def by_index(database: Database) -> AsyncIterator[AsyncConnection]:
    """A connection whose statements go by an index, whatever the statistics of the table say.

    They may be of a time when most rows were pending. On PostgreSQL the block is a transaction.
    What a driver raises becomes a StoreError.
    """
    try:
        async with database.connect() as connection:
            if database.dialect != "postgresql":
                yield connection  # the statements have hints there
                return
            async with transaction(connection):
                await connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
                yield connection
    except Exception as error:
        raise database.translate(error) from error


async def names_of_tasks(c: AsyncConnection) -> list[str]:
    """The names of the tasks in the table."""
    return list((await c.execute(_NAMES, {"limit": MOST_NAMES})).scalars())
