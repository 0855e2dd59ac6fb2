"""The reserved connection of the writer: lost, said so once, and made again."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING

from lilota_async.storage.database import Database, begin, discard, rollback
from lilota_async.storage.kept_plans import KeptPlans

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from lilota_async.storage.store import Store

_logger = logging.getLogger("lilota_async")

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
_SHORTEST_OUTAGE = 0.25


class Link:
    """One connection that comes back after the database does.

    Unless it `is_quiet`, it says so in the log: of several, one is enough.
    """

    def __init__(self, database: Database, store: Store, *, is_quiet: bool) -> None:
        self._database = database
        self._store = store
        self._level = logging.DEBUG if is_quiet else logging.WARNING
        self._connection: AsyncConnection | None = None
        self._lost_at: float | None = None
        self._pause = 0.0
        self._plans = KeptPlans()
        self.back_at = float("-inf")  # the end of the last outage; a quick reconnection is none

    @property
    def is_up(self) -> bool:
        """Whether the last use of the connection went well."""
        return self._lost_at is None

    @property
    def lost_seconds(self) -> float:
        """For how long the database has not been there."""
        if self._lost_at is None:
            return 0.0
        return asyncio.get_running_loop().time() - self._lost_at

    async def connect(self) -> AsyncConnection:
        """The connection, after a pause if the last tries failed."""
        if self._connection is not None and self._is_over(self._connection):
            await self.close()
        if self._connection is None:
            if self._pause:
                # Not all replicas at the same moment.
                await self._database.wait_for_return(self._pause * random.uniform(0.5, 1.0))
            connection = await self._database.acquire_own()
            try:
                await self._store.prepare(connection)
            except BaseException:
                await discard(connection)
                raise
            self._connection = connection
        await self._plans.use(self._connection)
        return self._connection

    def _is_over(self, connection: AsyncConnection) -> bool:
        """After an error, or while nobody used it, where what is sent over it would be in doubt."""
        return connection.invalidated or self._store.is_closed(connection)

    async def probe(self) -> None:
        """Find out whether the database takes writes; a read would not tell."""
        connection = await self.connect()
        await begin(connection)
        await rollback(connection)
        self.confirm()

    def confirm(self) -> None:
        """The database has answered a write; logged when it was lost before."""
        self._plans.note_use()
        if self._lost_at is not None:
            level = min(self._level, logging.INFO)
            _logger.log(level, "The database is back after %.1f s", self.lost_seconds)
            if self.lost_seconds > _SHORTEST_OUTAGE:
                self.back_at = asyncio.get_running_loop().time()
            self._lost_at = None
            self._pause = 0.0
            self._database.note_return()

    async def lose(self, error: BaseException) -> None:
        """Drop the connection after `error`; the first of a row is logged."""
        if self._lost_at is None:
            self._lost_at = asyncio.get_running_loop().time()
            _logger.log(
                self._level,
                "The database cannot be used (%s); lilota tries again until it can",
                self._database.describe(error),
            )
        else:
            self._pause = min(max(self._pause * 2, _FIRST_PAUSE), _LONGEST_PAUSE)
        await self.close()

    async def close(self) -> None:
        """Drop the connection: it has been prepared, and may be in any state."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await discard(connection)
            await connection.close()
