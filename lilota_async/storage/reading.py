"""Connections for reads that must go by an index."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from lilota_async.storage.database import Database, transaction

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection


@asynccontextmanager
async def reading(database: Database) -> AsyncIterator[AsyncConnection]:
    """A connection whose reads go by an index, whatever the statistics of the table say.

    They may be of a time when most rows were pending. What a driver raises becomes a StoreError.
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
