"""What pages show, read once a second at most for all who look at the same.

What takes long to read is kept for longer, so that looking takes a tenth of the time at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from lilota_async.models.values import TaskStatus
from lilota_async.storage.browsing import Filters, Page, browse
from lilota_async.storage.history import History, read_history

if TYPE_CHECKING:
    from lilota_async.core import Lilota
    from lilota_async.models.stats import Stats
    from lilota_async.models.tables import Task
    from lilota_async.models.values import Health

T = TypeVar("T")

FRESH_SECONDS = 1.0
HISTORY_FRESH_SECONDS = 5.0
HISTORY_STEPS = 60
HISTORY_NAMES = 200
PAGE_ROWS = 50
RECENT_FAILURES = 100
MOST_KEPT = 200
PAUSE_FACTOR = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """How it stands with everything."""

    stats: Stats
    history: History
    failures: list[Task]
    running: list[Task]
    health: Health


@dataclass(slots=True)
class _Kept:
    until: float
    value: asyncio.Future[Any]


class Snapshots:
    """Reads, and keeps what was read for a moment: a hundred viewers cost as much as one."""

    def __init__(self, lilota: Lilota) -> None:
        self._lilota = lilota
        self._kept: dict[Hashable, _Kept] = {}

    def forget(self) -> None:
        """Something was changed from here: whoever looks next sees it."""
        self._kept.clear()

    async def overview(self, hours: int) -> Overview:
        """Statistics, what has ended in the last hours, and what failed last."""

        async def read() -> Overview:
            stats = await self._lilota.stats()
            names = sorted(stats.names)[:HISTORY_NAMES]
            failed = await self.page(Filters(status=TaskStatus.FAILED), None, RECENT_FAILURES)
            running = await self.page(Filters(status=TaskStatus.RUNNING), None, PAGE_ROWS)
            return Overview(
                stats=stats,
                history=await self._history(hours, names),
                failures=failed.tasks,
                running=running.tasks,
                health=await self._lilota.health(),
            )

        return await self._fresh(("overview", hours), FRESH_SECONDS, read)

    async def page(self, filters: Filters, before: UUID | None, limit: int = PAGE_ROWS) -> Page:
        """The newest tasks that fit."""
        database = self._lilota.database
        return await self._fresh(
            (filters, before, limit),
            FRESH_SECONDS,
            lambda: browse(database, filters, before=before, limit=limit),
        )

    async def task(self, task_id: UUID) -> Task | None:
        """The row, at most a moment old."""
        return await self._fresh(
            task_id, FRESH_SECONDS / 4, lambda: self._lilota.get_task_by_id(task_id)
        )

    async def _history(self, hours: int, names: list[str]) -> History:
        return await self._fresh(
            ("history", hours),
            HISTORY_FRESH_SECONDS,
            lambda: read_history(
                self._lilota.database, names, seconds=3600.0 * hours, steps=HISTORY_STEPS
            ),
        )

    async def _fresh(self, key: Hashable, seconds: float, read: Callable[[], Awaitable[T]]) -> T:
        loop = asyncio.get_running_loop()
        now = loop.time()
        kept = self._kept.get(key)
        if kept is None or kept.until < now or kept.value.get_loop() is not loop:
            if len(self._kept) >= MOST_KEPT:
                self._kept = {k: each for k, each in self._kept.items() if each.until >= now}
            value: asyncio.Future[T] = asyncio.ensure_future(read())
            kept = reading = self._kept[key] = _Kept(float("inf"), value)

            def keep(done: asyncio.Future[T]) -> None:
                failed = done.cancelled() or done.exception() is not None
                end = loop.time()
                pause = 0.0 if failed else max(seconds, PAUSE_FACTOR * (end - now))
                reading.until = end + pause

            value.add_done_callback(keep)
        # Whoever asked first may go away: the others wait for it all the same.
        result: T = await asyncio.shield(kept.value)
        return result
