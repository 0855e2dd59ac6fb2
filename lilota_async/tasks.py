"""Waiting for tasks, and acting on them: by their ids, wherever they run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar, cast
from uuid import UUID

import msgspec

from lilota_async.engine.events import EndWaiter, LocalEnd, Subscription
from lilota_async.engine.lifecycle import Intent
from lilota_async.engine.story import Story
from lilota_async.errors import (
    ConfigurationError,
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

if TYPE_CHECKING:
    from lilota_async.models.tables import Task
    from lilota_async.node import Node

Out = TypeVar("Out")


class Tasks(Records):
    """The tasks of one database: waiting for them and acting on them, while it is running."""

    def settings_of(self, name: str) -> Settings | None:
        """What `register()` was told about the task of this name; None when there is none here."""
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
        async with self._follow(task_id) as (task, subscription):
            events = _no_events() if subscription is None else aiter(subscription)
            if after is None:
                yield _status_event(task)
                async for event in events:
                    yield event
                return
            story = Story(after)
            attempt = self._node.running.find(TaskId(task_id)) if self._node else None
            # Its end may be committed, with nothing to follow, a moment before it is forgotten.
            if attempt is not None and not _status_event(task).status.is_final:
                told = story.catch_up(attempt.event(), attempt.log_since)
            else:
                told = story.tell_row(_status_event(task), task.log)
            for event in told:
                yield event
            async for event in events:
                row = None
                if event.status.is_final and not story.knows_log:
                    end = subscription and subscription.end
                    row = end.copy() if end and end.copy else await self.get_task_by_id(task_id)
                if row is not None and row.status is event.status:
                    told = story.tell_row(_status_event(row), row.log)
                else:
                    told = story.tell(event)
                for each in told:
                    yield each

    async def wait(self, task_id: UUID, timeout: Duration | None = None) -> Task:
        """Wait until the task is final, on whichever node, and return it.

        Raises TaskNotFound, and TimeoutError after `timeout` seconds: the task goes on.
        """
        async with _within(timeout):
            return cast("Task", await self._end(task_id))

    async def result(self, task_id: TaskId[Out], timeout: Duration | None = None) -> Out:
        """Wait for the task and return its output, as its output model.

        Raises TaskFailed or TaskCancelled, which carry the task, and what `wait()` raises.

        Example:
            >>> task_id = await lilota.schedule(add, AddInput(a=2, b=3))
            >>> output: AddOutput = await lilota.result(task_id)
        """
        async with _within(timeout):
            end = await self._end(task_id, needs_row=False)
        output: Any
        if isinstance(end, LocalEnd):
            output = self._decoded(end.name, end.finish.output or "null")
        elif end.status is TaskStatus.FAILED:
            raise TaskFailed(end)
        elif end.status is TaskStatus.CANCELLED:
            raise TaskCancelled(end)
        elif end.name in self._registry:
            output = self._decoded(end.name, msgspec.json.encode(end.output))
        else:
            output = end.output
        return output  # type: ignore[no-any-return]

    def _decoded(self, name: str, output: bytes | str) -> Any:
        return self._registry[name].resolve().output.decode(output)

    async def cancel(self, task_id: UUID, timeout: Duration | None = None) -> bool:
        """Stop the task, on whichever node it runs. True: it is cancelled, and its process gone.

        A pending task is cancelled at once. A running one is interrupted, and killed after the
        grace period; a task in a thread or on the loop is waited for. False: the task is final
        already, its result came first, or there is no such task.

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
            node.dependencies.notice(task_id)
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
        put_back = await node.writer.execute(lambda c: node.store.retry(c, task_id, attempts))
        if put_back:
            node.running.tell(TaskId(task_id), TaskStatus.PENDING)
            node.dispatcher.wake()
        return put_back

    async def _end(self, task_id: UUID, *, needs_row: bool = True) -> Task | LocalEnd:
        """Wait for the end of the task; only its output is at hand, where no row is needed.

        While it runs on this node, that knows without reading when it ends.
        """
        node, key = self._node, cast("TaskId[Any]", checked_id(task_id))  # any UUID will do
        if node is None:
            return await self._final("wait()", key)
        is_running = node.running.find(key) is not None
        while True:  # again, when its end has to be read, or somebody has put it back meanwhile
            waiter = EndWaiter(needs_row)
            node.events.listen(key, waiter)
            try:
                if not is_running:
                    task = await self._existing(key)
                    if _status_event(task).status.is_final:
                        return task
                    waiter.is_polled = True
                end = await waiter.over
            finally:
                node.events.leave(key, waiter)
            is_running = False
            if end is not None and not needs_row and end.finish.status is TaskStatus.COMPLETED:
                return end
            if end is not None and end.copy is not None:
                return end.copy()

    @asynccontextmanager
    async def _follow(self, task_id: UUID) -> AsyncIterator[tuple[Task, Subscription | None]]:
        """The task as it is, and the events that follow; None when it is final."""
        key = TaskId[Any](checked_id(task_id))
        if self._node is None:
            yield await self._final("watch()", key), None
            return
        events, subscription = self._node.events, Subscription()
        events.listen(key, subscription)
        try:
            task = await self._existing(key)
            event = _status_event(task)
            subscription.begin(event)
            yield task, None if event.status.is_final else subscription
        finally:
            events.leave(key, subscription)

    async def _final(self, action: str, task_id: UUID) -> Task:
        """The task, of which only the end can be told without a node."""
        task = await self._existing(task_id)
        if not _status_event(task).status.is_final:
            raise NotRunning(action)
        return task

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


def _status_event(task: Task) -> TaskEvent:
    status = task.status
    if not isinstance(status, TaskStatus):
        raise ConfigurationError(
            f"Task {task.id} has the status {status!r}, which this version does not know"
        )
    return TaskEvent(
        kind="status",
        task_id=task.id,
        status=status,
        progress_percentage=task.progress_percentage,
        attempt=task.attempts,
    )
