"""Cancel requests of other nodes: the row carries them, its owner looks while it runs tasks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from uuid import UUID

from lilota_async.engine.dispatcher import Dispatcher
from lilota_async.engine.lifecycle import Intent
from lilota_async.errors import StoreUnavailable
from lilota_async.storage.store import Store
from lilota_async.storage.writer import Writer

LOOK_SECONDS = 0.5
NOTIFIED_LOOK_SECONDS = 5.0  # the safety net, while the database tells
logger = logging.getLogger("lilota_async")


class CancelRequests:
    """Stops the attempts of this node that somebody else wants cancelled."""

    def __init__(
        self,
        node_id: UUID,
        dispatcher: Dispatcher,
        writer: Writer,
        store: Store,
        is_notified: Callable[[], bool],
    ) -> None:
        self._node_id = node_id
        self._dispatcher = dispatcher
        self._writer = writer
        self._store = store
        self._is_notified = is_notified
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """Somebody may have asked."""
        self._wake.set()

    def start(self) -> None:
        self._task = asyncio.create_task(self._look(), name="lilota cancel requests")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _look(self) -> None:
        while True:
            pause = NOTIFIED_LOOK_SECONDS if self._is_notified() else LOOK_SECONDS
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), pause)
            self._wake.clear()
            if not self._dispatcher.running:
                continue
            try:
                await self._stop_wanted()
            except StoreUnavailable:
                continue  # asked again after the next pause
            except Exception:
                logger.exception("Looking for cancel requests failed in an unforeseen way")

    async def _stop_wanted(self) -> None:
        wanted = await self._writer.execute(
            lambda c: self._store.cancel_requests(c, self._node_id), in_transaction=False
        )
        for each in wanted:
            attempt = self._dispatcher.running.find(each.id)
            if attempt is not None and attempt.claimed.attempt == each:
                attempt.stop(Intent.CANCEL)
