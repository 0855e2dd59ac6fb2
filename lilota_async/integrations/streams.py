"""Server-sent events of one task: status, progress and log lines, to the final one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import msgspec
from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import EventSourceResponse
from starlette.requests import Request
from starlette.responses import Response

from lilota_async.engine.story import Position
from lilota_async.errors import LilotaError
from lilota_async.integrations.payloads import Redaction, masked, of_event

if TYPE_CHECKING:
    from lilota_async.core import Lilota
    from lilota_async.models.tables import Task
    from lilota_async.models.values import TaskEvent

HEARTBEAT_SECONDS = 15.0
SEND_SECONDS = 60.0
"""A client that takes nothing for so long is gone."""
RECONNECT_MILLISECONDS = 2000
LONGEST_ID = 100


class MaskedLog:
    """The log of a task that is followed, without what its registration says is not to be shown."""

    def __init__(self, lilota: Lilota, task: Task) -> None:
        self._lilota = lilota
        self._task = task
        self._redaction = Redaction(lilota.settings_of(task.name))
        self._secrets = self._redaction.secrets_of(task)

    async def text(self, event: TaskEvent) -> str:
        """What the event says was written."""
        if event.status.is_final and not self._task.status.is_final:  # now there is its output
            self._task = await self._lilota.get_task_by_id(self._task.id) or self._task
            self._secrets = self._redaction.secrets_of(self._task)
        return masked(event.log or "", self._secrets)


def task_stream(
    lilota: Lilota, task: Task, request: Request, heartbeat: float = HEARTBEAT_SECONDS
) -> Response:
    """What happens to the task; from where the client has seen it, if it says where."""
    after = request.headers.get("last-event-id", "")[:LONGEST_ID]
    if has_seen_end(after, task):
        return Response(status_code=204)  # EventSource connects again until it is told this
    return event_stream(_events(lilota, task, after), heartbeat)


def has_seen_end(after: str, task: Task) -> bool:
    """Whether the position is the end of the task, which nobody has run again."""
    seen = Position.parse(after)
    return seen.is_final and task.status.is_final and seen.attempt == task.attempts


def event_stream(
    events: AsyncIterator[ServerSentEvent], heartbeat: float = HEARTBEAT_SECONDS
) -> Response:
    """The events as a response; it ends with the client, with the server, or with them."""
    return EventSourceResponse(
        events, ping=heartbeat, ping_message_factory=_heartbeat, sep="\n", send_timeout=SEND_SECONDS
    )


async def _events(lilota: Lilota, task: Task, after: str) -> AsyncIterator[ServerSentEvent]:
    log = MaskedLog(lilota, task)
    yield ServerSentEvent(comment="stream", retry=RECONNECT_MILLISECONDS, sep="\n")
    events = lilota.watch(task.id, after)
    try:
        async for event in events:
            data = of_event(event)
            if event.log is not None:
                data = {"text": await log.text(event)}
            yield ServerSentEvent(
                msgspec.json.encode(data).decode(), event=event.kind, id=event.position, sep="\n"
            )
    except LilotaError:
        return  # deleted, or this node stops: the client connects again and is told
    finally:
        await events.aclose()


def _heartbeat() -> ServerSentEvent:
    return ServerSentEvent(comment="heartbeat", sep="\n")
