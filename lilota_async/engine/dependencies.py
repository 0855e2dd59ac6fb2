"""Releasing tasks that wait for others, as soon as those have ended.

A node that ends a task looks at once for those that wait for it. Whatever has ended elsewhere,
or while nobody looked, is found by a look at all of them, once a second while there are any.
Without any, a node asks now and then whether there are some, and does nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

from lilota_async.errors import StoreUnavailable
from lilota_async.models.values import TaskId, TaskStatus
from lilota_async.storage.dependencies import ROWS_AT_ONCE
from lilota_async.storage.store import Store
from lilota_async.storage.transitions import Dependent, News, Released
from lilota_async.storage.writer import Writer

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

LOOK_SECONDS = 1.0  # at all that wait
IDLE_SECONDS = 5.0  # whether any do
NOTIFIED_IDLE_SECONDS = 60.0  # the same, while the database tells
REST = 30.0  # times what a look took
LONGEST_REST_SECONDS = 30.0  # it may have taken long because of others
HELD_SECONDS = 0.02  # until what another node held is free
ROUNDS = 5  # in one transaction
logger = logging.getLogger("lilota_async")


class Dependencies:
    """Which tasks wait, as far as this node has to know."""

    def __init__(
        self,
        writer: Writer,
        store: Store,
        *,
        on_due: Callable[[], None],
        on_cancelled: Callable[[TaskId[Any], TaskStatus], None],
        is_notified: Callable[[], bool],
    ) -> None:
        self._writer = writer
        self._store = store
        self._rows = store.dependencies
        self._on_due = on_due
        self._on_cancelled = on_cancelled
        self._is_notified = is_notified
        self._ended: list[tuple[UUID, Callable[[], None] | None]] = []
        """What has ended, and what is to be called when the others are due."""
        self._wake = asyncio.Event()
        self._looks_at_all = True
        self._next_look = 0.0
        self._loop_task: asyncio.Task[None] | None = None
        self.in_use = False

    def start(self) -> None:
        self._loop_task = asyncio.create_task(self._run(), name="lilota dependencies")

    async def close(self) -> None:
        """Look no more."""
        if self._loop_task is not None:
            self._loop_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loop_task
        self._answer(self._ended)

    async def insert(self, rows: Sequence[Dependent], *, is_held: bool = False) -> None:
        """Commit new rows; raises TaskNotFound when one waits for an id that has no row.

        `is_held`: for a task that runs, which pays nothing for a database that is away.
        """
        await self._writer.insert_dependents(rows, lambda: self.on_inserted(rows), is_held=is_held)

    async def missing(self, ids: Iterable[UUID]) -> set[UUID]:
        """Those of the ids that have no row; asked for a task that runs."""
        wanted = set(ids)
        known = await self._writer.execute(lambda c: self._rows.known(c, wanted), is_held=True)
        return wanted - known

    def on_inserted(self, rows: Sequence[Dependent]) -> None:
        """There are new rows: some may be due, and some wait for what may have ended."""
        self._on_due()
        if not any(row.after for row in rows):
            return
        self.in_use = True
        self._next_look = min(self._next_look, self._loop_time() + LOOK_SECONDS)
        own = {row.task.id for row in rows}
        awaited = {each for row in rows for each in row.after}
        self._ended += [(each, None) for each in awaited - own]
        self._wake.set()

    def look(self) -> None:
        """Somebody may have begun to wait, for something that may have ended."""
        self.in_use = self._looks_at_all = True
        self._wake.set()

    def on_end(self, task_id: UUID, then: Callable[[], None] | None = None) -> None:
        """The task has ended: `then` is called when those that waited for nothing else are due."""
        if self.in_use and self._loop_task is not None and not self._loop_task.done():
            self._ended.append((task_id, then))
            self._wake.set()
        elif then is not None:
            then()

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._next_look):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self._look()
            except StoreUnavailable:
                self._rest(LOOK_SECONDS)  # the writer says that the database is away, once
            except Exception:
                logger.exception("Looking for tasks that wait failed; trying on")
                self._rest(LOOK_SECONDS)

    async def _look(self) -> None:
        ended, self._ended = self._ended[:ROWS_AT_ONCE], self._ended[ROWS_AT_ONCE:]
        try:
            if ended:
                await self._release([task_id for task_id, _ in ended])
        finally:
            self._answer(ended)
        if self._ended:
            self._wake.set()
        if self._looks_at_all or self._loop_time() >= self._next_look:
            await self._look_at_all()

    async def _look_at_all(self) -> None:
        before = self._loop_time()
        self._looks_at_all = False
        self.in_use = await self._writer.execute(self._rows.exist, in_transaction=False)
        if not self.in_use:
            self._rest(NOTIFIED_IDLE_SECONDS if self._is_notified() else IDLE_SECONDS)
            return
        await self._release(None)
        took = self._loop_time() - before
        self._rest(min(max(LOOK_SECONDS, REST * took), LONGEST_REST_SECONDS))

    async def _release(self, ended: Sequence[UUID] | None) -> None:
        """Release what waits for nothing more."""
        rounds = await self._writer.execute(lambda c: self._release_in(c, ended))
        if any(released.due for released in rounds):
            self._on_due()
        for released in rounds:
            for task_id in released.cancelled:
                self._on_cancelled(task_id, TaskStatus.CANCELLED)
        if len(rounds) == ROUNDS:
            self.look()
        elif rounds and rounds[-1].held:
            asyncio.get_running_loop().call_later(HELD_SECONDS, self.look)

    async def _release_in(self, c: AsyncConnection, ended: Sequence[UUID] | None) -> list[Released]:
        """One transaction, which may run twice: it changes nothing but rows."""
        rounds: list[Released] = []
        while len(rounds) < ROUNDS and (edges := await self._rows.ended(c, ended)):
            rounds.append(released := await self._rows.release(c, edges))
            if not released.dropped:
                break
            if ended is not None:  # others may wait in turn for those that were cancelled
                ended = [*ended, *released.cancelled]
        if any(released.due for released in rounds):
            await self._store.tell(c, News.LOOK)
        return rounds

    def _rest(self, seconds: float) -> None:
        self._next_look = self._loop_time() + seconds

    def _loop_time(self) -> float:
        return asyncio.get_running_loop().time()

    @staticmethod
    def _answer(ended: Iterable[tuple[UUID, Callable[[], None] | None]]) -> None:
        for _, then in ended:
            if then is not None:
                then()
