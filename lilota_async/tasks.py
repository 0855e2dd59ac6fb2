"""Waiting for tasks, and acting on them: by their ids, wherever they run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar, cast
from uuid import UUID

import msgspec

from lilota_async.codec import Codec, Misfit
from lilota_async.engine.events import EndWaiter, Subscription
from lilota_async.engine.lifecycle import Intent
from lilota_async.engine.story import Story
from lilota_async.errors import (
    ConfigurationError,
    InvalidOutput,
    NotRunning,
    TaskCancelled,
    TaskFailed,
    TaskNotFound,
)
from lilota_async.models.values import (
    Duration,
    Health,
    TaskEvent,
    TaskId,
    TaskStatus,
    checked_duration,
)
from lilota_async.records import Records, checked_id
from lilota_async.registry import Settings
from lilota_async.storage.transitions import Ending

if TYPE_CHECKING:
    from lilota_async.engine.attempt import RunningAttempt
    from lilota_async.models.tables import Task
    from lilota_async.node import Node

Out = TypeVar("Out")


class Tasks(Records):
    """The tasks of one database: waiting for them and acting on them, while it is running."""

    def settings_of(self, name: str) -> Settings | None:
        """What `register()` was told about the task of this name; None when there is none here."""
        if not isinstance(name, str):
            raise ConfigurationError(f"A task's name must be a text, not {name!r:.250}")
        task = self._registry.get(name)
        return None if task is None else task.settings

    async def health(self, timeout: Duration = 2.0) -> Health:
        """Whether this node can take tasks and run them; the database has `timeout` to answer.

        Example:
            >>> assert (await lilota.health()).is_ready
        """
        if self._node is None:
            return Health(running=False, database=False, cells=False, lease=False)
        return await self._node.health(checked_duration("timeout", timeout))

    async def watch(self, task_id: UUID, after: str | None = None) -> AsyncGenerator[TaskEvent]:
        """How the task is, then what happens to it on whichever node; ends with its end.

        With `after`, the `position` of an event of an earlier `watch()`, only what it does not
        say yet, log included; `after=""` begins with the log so far. Of a task on another
        node, the log comes at its end.

        Raises TaskNotFound, and NotRunning when the task is not final yet.

        Example:
            >>> async for event in lilota.watch(task_id):
            ...     print(event.status, event.progress_percentage)
        """
        if after is not None and not isinstance(after, str):
            raise ConfigurationError(
                f'after must be the position of an event, or "", not {after!r:.250}'
            )
        async with self._follow(task_id) as (task, subscription):
            events = _no_events() if subscription is None else aiter(subscription)
            if after is None:
                yield _status_event(task)
                async for event in events:
                    yield event
                return
            story = Story(after)
            attempt = self._attempt_of(task.id)
            # Its end may be committed, with nothing to follow, a moment before it is forgotten.
            if attempt is not None and not _known_status(task).is_final:
                told = story.catch_up(attempt.event(), attempt.log_since)
            else:
                told = story.tell_row(_status_event(task), task.log)
            for event in told:
                yield event
            async for event in events:
                for each in await self._told(story, event, subscription):
                    yield each

    async def wait(self, task_id: UUID, timeout: Duration | None = None) -> Task:
        """Wait until the task is final, on whichever node, and return it.

        Raises TaskNotFound, and TimeoutError after `timeout` seconds: the task goes on.
        """
        async with _within(timeout):
            return cast("Task", await self._end(task_id))

    async def result(self, task_id: TaskId[Out], timeout: Duration | None = None) -> Out:
        """Wait for the task and return its output, as its output model.

        Raises TaskFailed or TaskCancelled, which carry the task, InvalidOutput when the model
        has changed since and does not take the output, and what `wait()` raises.

        Example:
            >>> task_id = await lilota.schedule(add, AddInput(a=2, b=3))
            >>> output: AddOutput = await lilota.result(task_id)
        """
        async with _within(timeout):
            end = await self._end(task_id, needs_row=False)
        if isinstance(end, Ending):
            return cast("Out", self._decoded(end.name, end.output or "null"))
        if end.status is TaskStatus.FAILED:
            raise TaskFailed(end)
        if end.status is TaskStatus.CANCELLED:
            raise TaskCancelled(end)
        return cast("Out", self._decoded(end.name, msgspec.json.encode(end.output)))

    def _decoded(self, name: str, output: bytes | str) -> Any:
        task = self._registry.get(name)
        codec = Codec(None) if task is None else task.resolve().output
        try:
            return codec.decode(output)
        except Misfit as misfit:
            raise InvalidOutput(name, misfit.field, misfit.reason) from misfit

    async def cancel(self, task_id: UUID, timeout: Duration | None = None) -> bool:
        """Stop the task, on whichever node it runs. True: it is cancelled, and its process gone.

        A pending task is cancelled at once. A running one is interrupted, and killed after the
        grace period; a task in a thread or on the loop is waited for, and one in an executor of
        the application given up. False: the task is final already, its result came first, or
        there is no such task.

        Raises NotRunning, and TimeoutError after `timeout` seconds: the request stands.

        Example:
            >>> if await lilota.cancel(task_id): ...
        """
        node = self._require_node("cancel()")
        async with _within(timeout):
            return await self._cancel(node, TaskId(checked_id(task_id)))

    async def _cancel(self, node: Node, task_id: TaskId[Any]) -> bool:
        before = await node.writer.execute(lambda c: node.store.request_cancel(c, task_id))
        if before is TaskStatus.PENDING:
            node.running.tell(task_id, TaskStatus.CANCELLED)
            node.dependencies.on_end(task_id)
            return True
        if before is not TaskStatus.RUNNING:
            return False
        attempt = node.running.find(task_id)
        if attempt is not None:
            attempt.stop(Intent.CANCEL)
            await asyncio.shield(attempt.concluded)
        try:
            task = await self.wait(task_id)
        except TaskNotFound:  # deleted meanwhile
            return False
        return task.status is TaskStatus.CANCELLED

    async def retry(self, task_id: UUID) -> bool:
        """Put a final task back to `pending`, with as many attempts as its policy gives.

        Its earlier failures stay on the row. False: it is not final, or there is none.
        Raises NotRunning, and UniqueKeyTaken when another task has its unique key by now.
        """
        node = self._require_node("retry()")
        task = await self.get_task_by_id(task_id)
        if task is None:
            return False
        known = self._registry.get(task.name)
        attempts = known.settings.retry.max_attempts if known else 1
        put_back = await node.writer.execute(
            lambda c: node.store.retry(c, task_id, attempts), on_written=node.dispatcher.wake
        )
        if put_back:
            node.running.tell(TaskId(task_id), TaskStatus.PENDING)
        return put_back

    async def delete_task_by_id(self, task_id: UUID) -> bool:
        """Delete the task's row; False when there is none (any more, after a short outage).

        Raises TaskIsRunning: cancel the task or wait for it first.
        """
        node = self._node
        if node is None or not (node.is_accepting and node.is_of_this_loop):
            return await super().delete_task_by_id(task_id)
        checked_id(task_id)
        deleted = await node.writer.execute(lambda c: node.store.delete(c, task_id))
        # Also on False, which may be the answer to a second try.
        node.running.tell(TaskId(task_id), TaskStatus.CANCELLED)
        if node.dependencies.in_use:
            node.dependencies.look()
        return deleted

    async def _end(self, task_id: UUID, *, needs_row: bool = True) -> Task | Ending:
        """Wait for the end of the task; its output is enough of one that completes, with no row.

        While it runs on this node, that knows without reading when it ends.
        """
        node, key = self._node, cast("TaskId[Any]", checked_id(task_id))  # any UUID will do
        if node is None:
            return await self._final("wait()", key)
        node.check_loop()
        is_running = node.running.find(key) is not None
        while True:  # again, when its end has to be read, or somebody has put it back meanwhile
            waiter = EndWaiter(needs_row)
            node.events.listen(key, waiter)
            try:
                if not is_running:
                    found = await self._found(node, key, needs_row)
                    if found is not None:
                        return found
                    waiter.is_polled = node.running.find(key) is None  # it may have begun
                    node.events.poll_soon()
                end = await waiter.over
            finally:
                node.events.leave(key, waiter)
            is_running = False
            if end is not None and not needs_row and end.finish.status is TaskStatus.COMPLETED:
                return Ending(end.name, end.finish.status, end.finish.output)
            if end is not None and end.copy is not None:
                return end.copy()

    async def _found(
        self, node: Node, task_id: TaskId[Any], needs_row: bool
    ) -> Task | Ending | None:
        """The end of the task, as its row tells it; None when it has not ended."""
        if not needs_row:
            ending = await node.rows.read_ending(task_id)
            if ending is None:
                raise TaskNotFound(task_id)
            if ending.status == TaskStatus.COMPLETED:
                return ending
            if ending.status in (TaskStatus.PENDING, TaskStatus.RUNNING):
                return None
        task = await self._existing(task_id)
        return task if _known_status(task).is_final else None

    @asynccontextmanager
    async def _follow(self, task_id: UUID) -> AsyncIterator[tuple[Task, Subscription | None]]:
        """The task as it is, and the events that follow; None when it is final."""
        key = TaskId[Any](checked_id(task_id))
        if self._node is None:
            yield await self._final("watch()", key), None
            return
        self._node.check_loop()
        events, subscription = self._node.events, Subscription()
        events.listen(key, subscription)
        try:
            task = await self._existing(key)
            event = _status_event(task)
            subscription.begin(event)
            events.poll_soon()
            yield task, None if event.status.is_final else subscription
        finally:
            events.leave(key, subscription)

    async def _final(self, action: str, task_id: UUID) -> Task:
        """The task, of which only the end can be told without a node."""
        task = await self._existing(task_id)
        if not _known_status(task).is_final:
            raise NotRunning(action)
        return task

    async def _told(
        self, story: Story, event: TaskEvent, subscription: Subscription | None
    ) -> Iterator[TaskEvent]:
        """What the event tells, with log that did not come as events."""
        if story.misses(event):
            attempt = self._attempt_of(event.task_id)
            if attempt is not None and attempt.claimed.attempt.number == event.attempt:
                return story.catch_up(attempt.event(), attempt.log_since)
        elif event.status.is_final and not story.knows_log:
            end = subscription and subscription.end
            row = end.copy() if end and end.copy else await self.get_task_by_id(event.task_id)
            if row is not None and row.status is event.status:
                return story.tell_row(_status_event(row), row.log)
        return story.tell(event)

    def _attempt_of(self, task_id: UUID) -> RunningAttempt | None:
        """The attempt of the task that runs here."""
        return None if self._node is None else self._node.running.find(TaskId(task_id))

    def _require_node(self, action: str) -> Node:
        if self._node is None:
            raise NotRunning(action)
        self._node.check_loop()
        return self._node

    async def _existing(self, task_id: UUID) -> Task:
        task = await self.get_task_by_id(task_id)
        if task is None:
            raise TaskNotFound(task_id)
        return task


def _within(timeout: Duration | None) -> AbstractAsyncContextManager[object]:
    """Bounds what is in it; most callers wait for as long as it takes."""
    if timeout is None:
        return nullcontext()
    return asyncio.timeout(checked_duration("timeout", timeout))


async def _no_events() -> AsyncIterator[TaskEvent]:
    return
    yield


def _known_status(task: Task) -> TaskStatus:
    if not isinstance(task.status, TaskStatus):
        raise ConfigurationError(
            f"Task {task.id} has the status {task.status!r}, which this version does not know"
        )
    return task.status


def _status_event(task: Task) -> TaskEvent:
    return TaskEvent(
        kind="status",
        task_id=task.id,
        status=_known_status(task),
        progress_percentage=task.progress_percentage,
        attempt=task.attempts,
    )
