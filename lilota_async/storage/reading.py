"""Connections for statements that must go by an index, and what is read in the same way twice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
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
async def by_index(
    database: Database, *, in_transaction: bool = False
) -> AsyncIterator[AsyncConnection]:
    """A connection whose statements go by an index, whatever the statistics of the table say.

    They may be of a time when most rows were pending. On PostgreSQL the block is a transaction
    where it has to be, or where that is asked for. What a driver raises becomes a StoreError.
    """
    try:
        async with database.connect() as connection:
            is_set = database.makes_connections and not in_transaction
            if database.dialect != "postgresql" or is_set:
                yield connection  # by hints in the statements, or as it was set from the first
                return
            async with transaction(connection):
                await connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
                yield connection
    except Exception as error:
        raise database.translate(error) from error


by_index_in_transaction = partial(by_index, in_transaction=True)
"""The same for a cursor, which PostgreSQL has in a transaction only."""


async def names_of_tasks(c: AsyncConnection) -> list[str]:
    """The names of the tasks in the table."""
    return list((await c.execute(_NAMES, {"limit": MOST_NAMES})).scalars())
