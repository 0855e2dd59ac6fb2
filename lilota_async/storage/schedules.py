"""How far the ticks of periodic tasks have been taken care of: one row for each rhythm.

A task that is given another rhythm gets another row, so that nodes with the old and with the new
one, as in a rolling deployment, do not disturb each other.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import text

from lilota_async.models.types import UtcDateTime
from lilota_async.storage.dialect import Dialect

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_WHERE = "WHERE name = :name AND rhythm = :rhythm"


class Schedules:
    """The rows of `lilota_schedule`. Whoever calls brings the transaction."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._read = text(
            "SELECT rhythm, handled_until FROM lilota_schedule WHERE name = :name"
        ).columns(handled_until=UtcDateTime)
        self._insert = text(f"""
            INSERT INTO lilota_schedule (name, rhythm, handled_until)
            VALUES (:name, :rhythm, :until) {dialect.keep_schedule}""")
        # Whoever holds the lock does the same, and may stand still while it does.
        self._lock = text(
            f"SELECT handled_until FROM lilota_schedule {_WHERE} {dialect.for_adoption}"
        ).columns(handled_until=UtcDateTime)
        self._advance = text(f"UPDATE lilota_schedule SET handled_until = :until {_WHERE}")

    async def begin(self, c: AsyncConnection, name: str, rhythm: str, now: datetime) -> datetime:
        """Up to when the ticks need no care; a rhythm that is new begins `now`.

        One that another has replaced for a while goes on where that came to.
        """
        rows = (await c.execute(self._read, {"name": name})).all()
        if any(row.rhythm == rhythm for row in rows):
            latest: datetime = max(row.handled_until for row in rows)
            return latest
        until = self._dialect.time(now)
        await c.execute(self._insert, {"name": name, "rhythm": rhythm, "until": until})
        return now

    async def lock(self, c: AsyncConnection, name: str, rhythm: str) -> datetime | None:
        """Up to when the ticks need no care; None while another node is about it."""
        until: datetime | None = (
            await c.execute(self._lock, {"name": name, "rhythm": rhythm})
        ).scalar()
        return until

    async def advance(self, c: AsyncConnection, name: str, rhythm: str, until: datetime) -> None:
        """The ticks up to `until` are taken care of; after `lock()`."""
        values = {"name": name, "rhythm": rhythm, "until": self._dialect.time(until)}
        await c.execute(self._advance, values)
