"""Waiting for tasks, and acting on them: by their ids, wherever they run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import msgspec

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
        async with self._follow(task_id, "watch()") as (task, events):
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
                    row = await self._read(task_id)
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
        limit = None if timeout is None else checked_duration("timeout", timeout)
        async with asyncio.timeout(limit):
            if await self._has_ended_here(task_id):
                task = await self._existing(task_id)
                if _status_event(task).status.is_final:
                    return task
            while True:  # again, when somebody has put the task back meanwhile
                async with self._follow(task_id, "wait()") as (task, events):
                    if _status_event(task).status.is_final:
                        return task
                    async for _ in events:
                        pass

    async def result(self, task_id: TaskId[Out], timeout: Duration | None = None) -> Out:
        """Wait for the task and return its output, as its output model.

        Raises TaskFailed or TaskCancelled, which carry the task, and what `wait()` raises.

        Example:
            >>> task_id = await lilota.schedule(add, AddInput(a=2, b=3))
            >>> output: AddOutput = await lilota.result(task_id)
        """
        task = await self.wait(task_id, timeout)
        if task.status is TaskStatus.FAILED:
            raise TaskFailed(task)
        if task.status is TaskStatus.CANCELLED:
            raise TaskCancelled(task)
        output: Any = task.output
        if task.name in self._registry:
            codec = self._registry[task.name].resolve().output
            output = codec.decode(msgspec.json.encode(output))
        return output  # type: ignore[no-any-return]

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
        limit = None if timeout is None else checked_duration("timeout", timeout)
        async with asyncio.timeout(limit):
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

    async def _has_ended_here(self, task_id: UUID) -> bool:
        """Wait while the task runs on this node, which knows without reading when it ends.

        False at once when it does not run here.
        """
        node, key = self._node, TaskId[Any](checked_id(task_id))
        if node is None or node.running.find(key) is None:
            return False
        async with node.events.subscribe(key) as subscription:
            attempt = node.running.find(key)
            if attempt is not None:
                subscription.begin(attempt.event())
                async for _ in subscription:
                    pass
        return True

    @asynccontextmanager
    async def _follow(
        self, task_id: UUID, action: str
    ) -> AsyncIterator[tuple[Task, AsyncIterator[TaskEvent]]]:
        """The task as it is, and the events that follow; none when it is final."""
        task_id = checked_id(task_id)
        if self._node is None:
            task = await self._existing(task_id)
            if not _status_event(task).status.is_final:
                raise NotRunning(action)
            yield task, _no_events()
            return
        async with self._node.events.subscribe(TaskId(task_id)) as subscription:
            # Read after subscribing: nothing can happen unseen in between.
            task = await self._existing(task_id)
            event = _status_event(task)
            subscription.begin(event)
            yield task, _no_events() if event.status.is_final else aiter(subscription)

    def _require_node(self, action: str) -> Node:
        if self._node is None:
            raise NotRunning(action)
        self._node.check_loop()
        return self._node

    async def _existing(self, task_id: UUID) -> Task:
        task = await self._read(task_id)
        if task is None:
            raise TaskNotFound(task_id)
        return task

    async def _read(self, task_id: UUID) -> Task | None:
        """The row, with those that others wait for at the same time."""
        if self._node is None:
            return await self.get_task_by_id(task_id)
        return await self._node.rows.read(task_id)


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
