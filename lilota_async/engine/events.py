"""Telling those who wait: local events at once, other nodes' by one poll for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lilota_async.errors import NotRunning, StoreError
from lilota_async.models.values import TaskEvent, TaskId, TaskStatus
from lilota_async.storage.transitions import Finish

if TYPE_CHECKING:
    from lilota_async.models.tables import Task

States = dict[TaskId[Any], tuple[TaskStatus, int]]
FIRST_POLL_SECONDS = 0.05
LAST_POLL_SECONDS = 1.0
QUEUE_LIMIT = 1000
logger = logging.getLogger("lilota_async")


@dataclass(frozen=True, slots=True)
class LocalEnd:
    """How a task has ended on this node; `copy` makes one of its row, where that is at hand."""

    name: str
    finish: Finish
    copy: Callable[[], Task] | None


class Subscription:
    """The events of one task, as they come; a slow reader loses logs and progress, no status."""

    __slots__ = ("_arrived", "_closed", "_events", "end", "last", "needs_row", "task_id")

    def __init__(self, task_id: TaskId[Any], needs_row: bool) -> None:
        self.task_id = task_id
        self.needs_row = needs_row
        self.last: tuple[TaskStatus, int] | None = None
        self.end: LocalEnd | None = None
        self._events: list[TaskEvent] = []
        self._arrived = asyncio.Event()
        self._closed = False

    def put(self, event: TaskEvent, end: LocalEnd | None = None) -> None:
        self.end = end
        if event.kind == "status" or len(self._events) < QUEUE_LIMIT:
            self._events.append(event)
            self._arrived.set()
        self.last = (event.status, event.progress_percentage)

    def begin(self, event: TaskEvent) -> None:
        """The row was read: what has come since is what it does not say yet.

        What the poll finds is compared with it, or with what came since.
        """
        if self.last is None:
            self.last = (event.status, event.progress_percentage)
        said = max((i for i, e in enumerate(self._events) if e.status is event.status), default=-1)
        self._events = [
            each
            for number, each in enumerate(self._events)
            if number > said
            or each.kind == "log"
            or (each.kind == "progress" and each.progress_percentage > event.progress_percentage)
        ]

    def close(self) -> None:
        """Nothing will come any more."""
        self._closed = True
        self._arrived.set()

    async def __aiter__(self) -> AsyncIterator[TaskEvent]:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            events, self._events = self._events, []
            for event in events:
                yield event
                if event.kind == "status" and event.status.is_final:
                    return
            if self._closed:
                raise NotRunning("waiting for a task that has not ended")


class Events:
    """Who waits for which task. Polls only while somebody does, for all of them at once."""

    def __init__(self, read_states: Callable[[Iterable[TaskId[Any]]], Awaitable[States]]) -> None:
        self._read_states = read_states
        self._subscriptions: dict[TaskId[Any], set[Subscription]] = {}
        self._poll: asyncio.Task[None] | None = None
        self._closed = False

    @contextlib.contextmanager
    def subscribe(self, task_id: TaskId[Any], needs_row: bool = True) -> Iterator[Subscription]:
        """A subscription for the time of the block; read the row after entering it.

        `needs_row`: its end is to come with the row, where that spares reading it.
        """
        subscription = Subscription(task_id, needs_row)
        self._subscriptions.setdefault(task_id, set()).add(subscription)
        if self._closed:
            subscription.close()
        elif self._poll is None or self._poll.done():
            self._poll = asyncio.create_task(self._poll_states(), name="lilota events")
        try:
            yield subscription
        finally:
            others = self._subscriptions[task_id]
            others.discard(subscription)
            if not others:
                del self._subscriptions[task_id]

    def is_watched(self, task_id: TaskId[Any]) -> bool:
        """Whether anyone waits for the task here."""
        return bool(self._subscriptions) and task_id in self._subscriptions

    def needs_row(self, task_id: TaskId[Any]) -> bool:
        """Whether anyone of them would read the row at its end."""
        if not self._subscriptions:  # mostly nobody waits
            return False
        return any(each.needs_row for each in self._subscriptions.get(task_id, ()))

    def publish(self, event: TaskEvent, end: LocalEnd | None = None) -> None:
        """Tell everyone who waits for the task."""
        for subscription in self._subscriptions.get(event.task_id, ()):
            subscription.put(event, end)

    async def close(self) -> None:
        """Stop polling, and tell those who wait still."""
        self._closed = True
        for subscription in itertools.chain.from_iterable(self._subscriptions.values()):
            subscription.close()
        if self._poll is not None:
            self._poll.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._poll

    async def _poll_states(self) -> None:
        pause = FIRST_POLL_SECONDS
        while self._subscriptions:
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, LAST_POLL_SECONDS)
            asked = list(self._subscriptions)
            try:
                states = await self._read_states(asked)
            except StoreError:
                continue  # the writer says that the database is away, once
            for task_id in asked:  # those that came meanwhile are no deleted ones
                self._compare(task_id, states.get(task_id))

    def _compare(self, task_id: TaskId[Any], state: tuple[TaskStatus, int] | None) -> None:
        if state is None:  # deleted meanwhile: for those who wait, it is over
            state = (TaskStatus.CANCELLED, 0)
        if not isinstance(state[0], TaskStatus):
            return  # edited by hand, or by a newer version: it may become something again
        for subscription in self._subscriptions.get(task_id, ()):
            last = subscription.last
            if last is not None and last != state and not _is_older(state, last):
                kind = "progress" if last[0] is state[0] else "status"
                subscription.put(
                    TaskEvent(
                        kind=kind,  # type: ignore[arg-type]
                        task_id=task_id,
                        status=state[0],
                        progress_percentage=state[1],
                    )
                )


def _is_older(state: tuple[TaskStatus, int], last: tuple[TaskStatus, int]) -> bool:
    """A row that was read before a local event must not take it back."""
    return last[0].is_final or (state[0] is last[0] and state[1] < last[1])
