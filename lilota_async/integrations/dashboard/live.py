"""Pages that change while they are looked at: their HTML again, when it is another."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec
from sse_starlette.event import ServerSentEvent
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from lilota_async.errors import LilotaError
from lilota_async.integrations.authorization import Guard
from lilota_async.integrations.dashboard.actions import id_of
from lilota_async.integrations.streams import (
    RECONNECT_MILLISECONDS,
    MaskedLog,
    event_stream,
    has_seen_end,
)

if TYPE_CHECKING:
    from lilota_async.core import Lilota
    from lilota_async.integrations.dashboard.pages import Pages
    from lilota_async.integrations.dashboard.snapshots import Snapshots
    from lilota_async.models.tables import Task

LOOK_SECONDS = 1.0
STEP_SECONDS = 0.25
"""How soon a page follows the next step of a task."""

Render = Callable[[Request], Awaitable[str]]
logger = logging.getLogger("lilota_async")


class Live:
    """The streams of the pages."""

    def __init__(self, lilota: Lilota, guard: Guard, snapshots: Snapshots, pages: Pages) -> None:
        self._lilota = lilota
        self._guard = guard
        self._snapshots = snapshots
        self._pages = pages

    async def overview(self, request: Request) -> Response:
        """The overview, as it changes."""
        await self._pages.overview_html(request)  # may it be seen? else an error, not a stream
        return event_stream(_changes(request, self._pages.overview_html))

    async def tasks(self, request: Request) -> Response:
        """The list, as it changes."""
        await self._pages.tasks_html(request)
        return event_stream(_changes(request, self._pages.tasks_html))

    async def task(self, request: Request) -> Response:
        """One task: how it is, and what it writes."""
        task_id = id_of(request)
        await self._guard.require(request, "read", await self._snapshots.task(task_id))
        await self._pages.task_html(request)
        return event_stream(self._task(request))

    async def _task(self, request: Request) -> AsyncIterator[ServerSentEvent]:
        """Both of what is written, which only comes once, and of how it is."""
        queue: asyncio.Queue[ServerSentEvent | None] = asyncio.Queue(maxsize=1000)

        async def pump(events: AsyncIterator[ServerSentEvent]) -> None:
            try:
                async for event in events:
                    await queue.put(event)
            except Exception:
                logger.exception("The stream of a page failed")
            await queue.put(None)  # not when it is cancelled: nobody may take anything any more

        streams = [
            asyncio.create_task(pump(events))
            for events in (
                _changes(request, self._pages.task_html, STEP_SECONDS),
                self._log(request),
            )
        ]
        try:
            while (event := await queue.get()) is not None:
                yield event
        finally:
            for stream in streams:
                stream.cancel()
            await asyncio.gather(*streams, return_exceptions=True)

    async def _log(self, request: Request) -> AsyncIterator[ServerSentEvent]:
        """The log of whatever attempt there is, on and on: somebody may run the task again."""
        task_id = id_of(request)
        after = ""
        while True:
            task = await self._row(request)
            if task is not None and not has_seen_end(after, task):
                log = MaskedLog(self._lilota, task)
                with suppress(LilotaError):
                    async for event in self._lilota.watch(task_id, after):
                        after = event.position
                        if event.log:
                            data = {"text": await log.text(event), "attempt": event.attempt}
                            body = msgspec.json.encode(data).decode()
                            yield ServerSentEvent(body, event="log", sep="\n")
            await asyncio.sleep(LOOK_SECONDS)

    async def _row(self, request: Request) -> Task | None:
        try:
            return await self._snapshots.task(id_of(request))
        except LilotaError:
            return None


async def _changes(
    request: Request, render: Render, look_seconds: float = LOOK_SECONDS
) -> AsyncIterator[ServerSentEvent]:
    """The page's HTML, at first and when it has changed; a word when it cannot be read."""
    yield ServerSentEvent(comment="stream", retry=RECONNECT_MILLISECONDS, sep="\n")
    said = ""
    while True:
        try:
            html = await render(request)
        except LilotaError:
            html = ""
        except HTTPException as error:  # deleted, or not to be seen any more
            body = msgspec.json.encode({"detail": str(error.detail)}).decode()
            yield ServerSentEvent(body, event="gone", sep="\n")
            return
        if html != said:
            said = html
            kind = "page" if html else "trouble"
            body = msgspec.json.encode({"html": html}).decode()
            yield ServerSentEvent(body, event=kind, sep="\n")
        await asyncio.sleep(look_seconds)
