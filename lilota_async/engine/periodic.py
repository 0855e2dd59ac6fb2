"""Periodic tasks: each node writes the rows of the ticks that are due, and one of them wins.

No node leads. All of them wake for a tick by the clock of the database; the row has an id that
follows from the task and the tick, so that the first to insert it is the only one. What has been
taken care of is noted in the same transaction: it tells a node that starts what was missed, and
one that stood still for long that it was not. Which ticks are due is decided in `ticks`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from lilota_async.errors import StoreUnavailable
from lilota_async.registry import RegisteredTask, Registry
from lilota_async.storage.schedules import Schedules
from lilota_async.storage.store import Store
from lilota_async.storage.transitions import NewTask
from lilota_async.storage.writer import Writer
from lilota_async.ticks import LATE, Periodic, tick_id

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

CLOCK_GRAIN_SECONDS = 0.002
LONGEST_PAUSE_SECONDS = 30.0  # a clock that is set is noticed by then
RETRY_SECONDS = 0.5
TICKS_AT_ONCE = 500
logger = logging.getLogger("lilota_async")


@dataclass(slots=True, kw_only=True)
class Schedule:
    """A periodic task on this node: the ticks up to `handled` are none of its business."""

    task: RegisteredTask
    periodic: Periodic
    rhythm: str
    handled: datetime | None = None
    next: datetime | None = None


class PeriodicTasks:
    """Schedules the registered tasks that have a rhythm."""

    def __init__(
        self, registry: Registry, writer: Writer, store: Store, on_tick: Callable[[], None]
    ) -> None:
        self._registry = registry
        self._writer = writer
        self._store = store
        self._on_tick = on_tick
        self._rows = Schedules(store.dialect)
        self._schedules: list[Schedule] = []
        self._loop_task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Find out what was missed, and begin; nothing happens without periodic tasks."""
        # In one order on every node, lest two wait for each other's locks.
        self._schedules = [
            Schedule(task=task, periodic=task.settings.periodic, rhythm=_rhythm(task))
            for _, task in sorted(self._registry.items())
            if task.settings.periodic is not None
        ]
        if self._schedules:
            await self._writer.execute(self._begin)
            self._loop_task = asyncio.create_task(self._run(), name="lilota periodic tasks")

    async def close(self) -> None:
        """Write no more ticks."""
        if self._loop_task is not None:
            self._loop_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loop_task
            self._loop_task = None

    async def _begin(self, c: AsyncConnection) -> None:
        now = await self._store.clock(c)
        for schedule in self._schedules:
            until = await self._rows.begin(c, schedule.task.name, schedule.rhythm, now)
            # What this node passes over is left to those that were there.
            schedule.handled = schedule.periodic.pass_over(until, now)
            schedule.next = schedule.periodic.next(schedule.handled)

    async def _run(self) -> None:
        while True:
            try:
                pause = await self._look()
            except StoreUnavailable:
                pause = RETRY_SECONDS  # the writer says that the database is away, once
            except Exception:
                logger.exception("Periodic tasks failed in an unforeseen way; trying on")
                pause = RETRY_SECONDS
            await asyncio.sleep(pause)

    async def _look(self) -> float:
        """Write what is due; the seconds until there may be something again."""
        now, handled, wrote = await self._writer.execute(self._handle)
        for schedule, until in handled:
            schedule.handled = until
            schedule.next = schedule.periodic.next(until)
        if wrote:
            self._on_tick()
        coming = [each.next for each in self._schedules if each.next is not None]
        due = [each for each in coming if each <= now]
        if due:  # more than fit into one transaction, or what another node is writing
            return 0.0 if wrote else RETRY_SECONDS
        pauses = [(each - now).total_seconds() + CLOCK_GRAIN_SECONDS for each in coming]
        return min([*pauses, LONGEST_PAUSE_SECONDS])

    async def _handle(
        self, c: AsyncConnection
    ) -> tuple[datetime, list[tuple[Schedule, datetime]], bool]:
        """One transaction, which may run twice: it changes nothing but rows."""
        now = await self._store.clock(c)
        handled: list[tuple[Schedule, datetime]] = []
        wrote = False
        for schedule in self._schedules:
            if schedule.next is None or schedule.next > now:
                continue
            name, rhythm = schedule.task.name, schedule.rhythm
            until = await self._rows.lock(c, name, rhythm)
            if until is None:  # another node has it, or somebody has emptied the table
                await self._rows.begin(c, name, rhythm, now)
                continue
            assert schedule.handled is not None
            after = max(until, schedule.handled)
            first = schedule.periodic.next(after)  # others may have taken care of those before
            if first is not None and now - first > LATE:
                after = schedule.periodic.pass_over(after, now)
            ticks = schedule.periodic.due(after, now, TICKS_AT_ONCE)
            if ticks:
                await self._store.insert(c, [_new_task(schedule.task, tick) for tick in ticks])
            reached = ticks[-1] if len(ticks) == TICKS_AT_ONCE else max(now, after)
            await self._rows.advance(c, name, rhythm, reached)
            handled.append((schedule, reached))
            wrote = True  # by this node or by another that was quicker
        return now, handled, wrote


def _rhythm(task: RegisteredTask) -> str:
    assert task.settings.periodic is not None
    return str(task.settings.periodic.rhythm)


def _new_task(task: RegisteredTask, tick: datetime) -> NewTask:
    return NewTask(
        id=tick_id(task.name, tick),
        name=task.name,
        priority=task.settings.priority,
        max_attempts=task.settings.retry.max_attempts,
        timeout_seconds=task.settings.timeout_seconds,
        run_at=tick,
        nominal_time=tick,
    )
