"""PostgreSQL keeps the plan of a statement with the connection, and may have made it of a table
that had a few rows: then each look at one row may go through all of them. Such plans are dropped
when something has taken long. Pure timing: whether it was for them is not known.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_SLOW_SECONDS = 0.05
_KEPT_SECONDS = 0.25  # at least: making them takes some milliseconds


class KeptPlans:
    """The plans of one connection after another."""

    def __init__(self) -> None:
        self._used_at = self._dropped_at = float("-inf")
        self._are_suspect = False

    async def use(self, c: AsyncConnection) -> None:
        """The connection is about to be used: drop its plans if they may be what was slow."""
        if self._are_suspect and c.dialect.name == "postgresql":
            await c.exec_driver_sql("DISCARD PLANS")
        self._are_suspect = False
        self._used_at = asyncio.get_running_loop().time()

    def note_use(self) -> None:
        """It was used, from then until now."""
        now = asyncio.get_running_loop().time()
        if now - self._used_at > _SLOW_SECONDS and now - self._dropped_at > _KEPT_SECONDS:
            self._dropped_at = now
            self._are_suspect = True
