"""Telling those who wait: local events at once, other nodes' by one poll for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from lilota_async.errors import NotRunning, StoreUnavailable
from lilota_async.models.values import TaskEvent, TaskId, TaskStatus
from lilota_async.storage.transitions import Finish

if TYPE_CHECKING:
    from lilota_async.models.tables import Task

State = tuple[TaskStatus, int]
States = dict[TaskId[Any], State]
FIRST_POLL_SECONDS = 0.05
LAST_POLL_SECONDS = 1.0
ALONE_POLL_SECONDS = 0.25
MOST_POLLED_PER_SECOND = 1000  # many are polled less often
QUEUE_LIMIT = 1000
logger = logging.getLogger("lilota_async")


@dataclass(frozen=True, slots=True)
class LocalEnd:
    """How a task has ended on this node; `copy` makes one of its row, where that is at hand."""

    name: str
    finish: Finish
    copy: Callable[[], Task] | None


class Listener(Protocol):
    """One who waits for something to happen to a task."""

    @property
    def needs_row(self) -> bool: ...

    @property
    def is_polled(self) -> bool: ...

    def put(self, event: TaskEvent, end: LocalEnd | None) -> None: ...

    def let_go(self) -> None: ...

    def compare(self, task_id: TaskId[Any], state: State) -> None: ...

    def close(self) -> None: ...


class EndWaiter:
    """Waits for the end of one task; of most tasks nobody wants to know more.

    `over` is how it has ended, or None when that is to be read. What runs on this node is not
    polled.
    """

    __slots__ = ("is_polled", "needs_row", "over")

    def __init__(self, needs_row: bool) -> None:
        self.needs_row = needs_row
        self.is_polled = False
        self.over: asyncio.Future[LocalEnd | None] = asyncio.get_running_loop().create_future()

    def put(self, event: TaskEvent, end: LocalEnd | None) -> None:
        if event.status.is_final:
            self._be_over(end)
        elif event.status is TaskStatus.RUNNING:
            self.is_polled = False  # it has begun here, and when it ends or goes that is told

    def let_go(self) -> None:
        """It does not run on this node any more."""
        self._be_over(None)

    def compare(self, _task_id: TaskId[Any], state: State) -> None:
        if state[0].is_final:
            self._be_over(None)

    def close(self) -> None:
        """Nothing will come any more."""
        if not self.over.done():
            self.over.set_exception(_not_running())
            self.over.exception()  # who has found it to be final needs not hear of that

    def _be_over(self, end: LocalEnd | None) -> None:
        if not self.over.done():
            self.over.set_result(end)


class Subscription:
    """The events of one task, as they come; a slow reader loses logs and progress, no status."""

    __slots__ = ("_arrived", "_closed", "_events", "end", "last")

    needs_row = True  # of which the log is told

    def __init__(self) -> None:
        self.last: State | None = None
        self.end: LocalEnd | None = None
        self._events: list[TaskEvent] = []
        self._arrived = asyncio.Event()
        self._closed = False

    @property
    def is_polled(self) -> bool:
        return self.last is not None

    def let_go(self) -> None:
        """The poll goes on."""

    def put(self, event: TaskEvent, end: LocalEnd | None) -> None:
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

    def compare(self, task_id: TaskId[Any], state: State) -> None:
        """The row says this: an event, unless it is known."""
        if self.last is None or self.last == state or _is_older(state, self.last):
            return
        event = TaskEvent(
            kind="progress" if self.last[0] is state[0] else "status",
            task_id=task_id,
            status=state[0],
            progress_percentage=state[1],
        )
        self.put(event, None)

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
                raise _not_running()


class Events:
    """Who waits for which task. Polls only while somebody does, for all of them at once.

    While this node `is_alone`, it does so less often: what it does not know is only what nodes
    that have just come do, and what is done to the rows from outside.
    """

    def __init__(
        self,
        read_states: Callable[[Iterable[TaskId[Any]]], Awaitable[States]],
        is_alone: Callable[[], bool],
    ) -> None:
        self._read_states = read_states
        self._is_alone = is_alone
        self._listeners: dict[TaskId[Any], set[Listener]] = {}
        self._poll: asyncio.Task[None] | None = None
        self._polled_anew = asyncio.Event()
        self._closed = False

    def listen(self, task_id: TaskId[Any], listener: Listener) -> None:
        """Tell the listener from now on, until `leave()`; read the row after this."""
        self._listeners.setdefault(task_id, set()).add(listener)
        if self._closed:
            listener.close()
        elif self._poll is None or self._poll.done():
            self._poll = asyncio.create_task(self._poll_states(), name="lilota events")

    def poll_soon(self) -> None:
        """One more is polled from now on: it may not have to wait for long."""
        self._polled_anew.set()

    def leave(self, task_id: TaskId[Any], listener: Listener) -> None:
        """It waits no more."""
        others = self._listeners[task_id]
        others.discard(listener)
        if not others:
            del self._listeners[task_id]

    def is_watched(self, task_id: TaskId[Any]) -> bool:
        """Whether anyone waits for the task here."""
        return bool(self._listeners) and task_id in self._listeners

    def needs_row(self, task_id: TaskId[Any]) -> bool:
        """Whether anyone of them would read the row at its end."""
        if not self._listeners:  # mostly nobody waits
            return False
        return any(each.needs_row for each in self._listeners.get(task_id, ()))

    def publish(self, event: TaskEvent, end: LocalEnd | None = None) -> None:
        """Tell everyone who waits for the task."""
        for listener in self._listeners.get(event.task_id, ()):
            listener.put(event, end)

    def let_go(self, task_id: TaskId[Any]) -> None:
        """The task does not run here any more: those who were not told its end have to read."""
        if self._listeners:
            for listener in self._listeners.get(task_id, ()):
                listener.let_go()

    async def close(self) -> None:
        """Stop polling, and tell those who wait still."""
        self._closed = True
        for listener in itertools.chain.from_iterable(self._listeners.values()):
            listener.close()
        if self._poll is not None:
            self._poll.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._poll

    async def _poll_states(self) -> None:
        pause = 0.0
        asked: list[TaskId[Any]] = []
        while self._listeners:
            shortest = _shortest_pause(len(asked))
            if self._is_alone():
                shortest = max(shortest, ALONE_POLL_SECONDS)
            pause = max(pause, shortest)
            try:
                async with asyncio.timeout(pause):
                    await self._polled_anew.wait()
                self._polled_anew.clear()
                await asyncio.sleep(shortest)
                pause = shortest
            except TimeoutError:
                pause = min(pause * 1.5, LAST_POLL_SECONDS)
            asked = self._polled()
            if not asked:
                continue
            try:
                states = await self._read_states(asked)
            except StoreUnavailable:
                continue  # the writer says that the database is away, once
            except Exception:
                logger.exception("Looking for the ends of tasks failed; trying on")
                continue
            for task_id in asked:  # those that came meanwhile are no deleted ones
                self._compare(task_id, states.get(task_id))

    def _polled(self) -> list[TaskId[Any]]:
        """What only the database tells about."""
        return [
            task_id
            for task_id, listeners in self._listeners.items()
            if any(listener.is_polled for listener in listeners)
        ]

    def _compare(self, task_id: TaskId[Any], state: State | None) -> None:
        if state is None:  # deleted meanwhile: for those who wait, it is over
            state = (TaskStatus.CANCELLED, 0)
        if not isinstance(state[0], TaskStatus):
            return  # edited by hand, or by a newer version: it may become something again
        for listener in self._listeners.get(task_id, ()):
            listener.compare(task_id, state)


def _shortest_pause(polled: int) -> float:
    return min(max(FIRST_POLL_SECONDS, polled / MOST_POLLED_PER_SECOND), LAST_POLL_SECONDS)


def _is_older(state: State, last: State) -> bool:
    """A row that was read before a local event must not take it back."""
    return last[0].is_final or (state[0] is last[0] and state[1] < last[1])


def _not_running() -> NotRunning:
    return NotRunning("waiting for a task that has not ended")
