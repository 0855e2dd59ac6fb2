"""How much may wait: the bounds of `max_pending`, and when it may be worth to try again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from lilota_async.errors import QueueFull, StoreError
from lilota_async.models.values import TaskId
from lilota_async.registry import Registry
from lilota_async.storage.transitions import Bound, BoundedInsert, NewTask
from lilota_async.storage.writer import Writer

RATE_SECONDS = 5.0  # for so long a throughput that was read is used
READ_SECONDS = 1.0  # longer than this nobody waits for it
UNKNOWN_PAUSE = 10.0
SHORTEST_PAUSE, LONGEST_PAUSE = 1.0, 300.0
WORKED_OFF = 0.1  # the part of a full queue whose end a caller should wait for

ReadThroughput = Callable[[Sequence[str]], Awaitable[float]]


class Backlog:
    """The bounds of one node; the database counts what waits on all of them."""

    def __init__(
        self,
        most: int | None,
        registry: Registry,
        writer: Writer,
        read_throughput: ReadThroughput,
    ) -> None:
        self._most = most
        self._registry = registry
        self._writer = writer
        self._read_throughput = read_throughput
        self._rates: dict[str | None, tuple[float, float]] = {}
        self._reading = asyncio.Lock()

    def bounds_of(self, name: str) -> tuple[Bound, ...]:
        """What new tasks of this name must fit into; nothing for most."""
        own = self._registry[name].settings.max_pending
        bounds = () if self._most is None else (Bound(name=None, most=self._most),)
        return bounds if own is None else (*bounds, Bound(name=name, most=own))

    async def insert(
        self,
        tasks: Sequence[NewTask],
        on_written: Callable[[], None],
        *,
        more: int = 0,
        writer: Writer | None = None,
    ) -> set[TaskId]:
        """Commit rows of one name, or raise QueueFull; `more` rows are to follow.

        Returns those that were not written because of their unique key. `on_written` is called
        when they may be there, whether the caller still waits or not.
        """
        writer = writer or self._writer
        bounds = self.bounds_of(tasks[0].name)
        if not bounds:
            return await writer.insert(tasks, on_written)
        wanted = BoundedInsert(tasks=tasks, bounds=bounds, more=more)
        outcome = await writer.admit(wanted, on_written)
        if isinstance(outcome, Bound):
            raise await self.error(outcome)
        return outcome

    async def error(self, full: Bound) -> QueueFull:
        """The error, with an estimate of when there is room."""
        rate = await self._rate(full.name)
        pause = max(1.0, full.most * WORKED_OFF) / rate if rate else UNKNOWN_PAUSE
        return QueueFull(full.name, full.most, min(max(pause, SHORTEST_PAUSE), LONGEST_PAUSE))

    async def _rate(self, name: str | None) -> float:
        """How many tasks per second of this name, or of all, have lately finished."""
        clock = asyncio.get_running_loop().time
        async with self._reading:
            read_at, rate = self._rates.get(name, (float("-inf"), 0.0))
            if clock() - read_at > RATE_SECONDS:
                try:
                    async with asyncio.timeout(READ_SECONDS):
                        names = list(self._registry) if name is None else [name]
                        rate = await self._read_throughput(names)
                except (TimeoutError, StoreError):
                    rate = 0.0
                self._rates[name] = (clock(), rate)
        return rate
