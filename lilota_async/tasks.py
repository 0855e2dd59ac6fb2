"""Looking at tasks, waiting for them, acting on them: by their ids, wherever they run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import datetime
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
from lilota_async.options import checked_count
from lilota_async.registry import Registry, Settings, checked_tags

if TYPE_CHECKING:
    from sqlalchemy.engine import URL
    from sqlalchemy.ext.asyncio import AsyncEngine

    from lilota_async.models.stats import Stats
    from lilota_async.models.tables import Task
    from lilota_async.node import Node
    from lilota_async.storage.database import Database

Out = TypeVar("Out")


class Tasks:
    """The tasks of one database. Reading and deleting work at any time, the rest while running."""

    _lease_seconds: float

    def __init__(self, db_url: str | URL | None, engine: AsyncEngine | None) -> None:
        self._url = db_url
        self._engine = engine
        self._registry = Registry()
        self._known_database: Database | None = None
        self._node: Node | None = None

    def __repr__(self) -> str:
        state = "stopped" if self._node is None else "running"
        return f"<{type(self).__name__} {state}, tasks: {', '.join(self._registry) or 'none'}>"

    @property
    def registered_tasks(self) -> tuple[str, ...]:
        """The names of the registered tasks."""
        return tuple(self._registry)

    async def get_task_by_id(self, task_id: UUID) -> Task | None:
        """The task's row as it is now, or None.

        Example:
            >>> task = await lilota.get_task_by_id(task_id)
            >>> print(task.status, task.progress_percentage, AddOutput(**task.output))
        """
        from lilota_async.storage import queries

        return await queries.get_task(self._database(), checked_id(task_id))

    async def get_all_tasks(
        self,
        *,
        status: TaskStatus | str | None = None,
        name: str | None = None,
        tags: Iterable[str] = (),
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        after: UUID | None = None,
        limit: int | None = None,
    ) -> list[Task]:
        """The tasks from old to new, or those that fit all that is given.

        Args:
            status, name: They have this status, and this name.
            tags: They have each of these tags, which are looked for among what the rest leaves.
            created_after, created_before: They were scheduled at this time or later, and before
                that: datetimes with a timezone. An id that is not of `TaskId()`'s making has no
                time, and may be left out.
            after: The id of a task, as the last one of a page: those that follow it.
            limit: So many at most.

        Raises ConfigurationError for what cannot be.

        Example:
            >>> failed = await lilota.get_all_tasks(status="failed", limit=50)
        """
        from lilota_async.storage import queries

        return await queries.get_tasks(
            self._database(),
            queries.Selection(
                status=None if status is None else _known_status(status),
                name=name,
                tags=checked_tags(tags),
                created_after=_aware("created_after", created_after),
                created_before=_aware("created_before", created_before),
            ),
            after=None if after is None else checked_id(after),
            limit=None if limit is None else checked_count("limit", limit),
        )

    async def delete_task_by_id(self, task_id: UUID) -> bool:
        """Delete the task's row; False when there is none.

        Raises TaskIsRunning: cancel the task or wait for it first.
        """
        from lilota_async.storage import queries

        return await queries.delete_task(self._database(), checked_id(task_id))

    async def prune(
        self,
        older_than: Duration,
        *,
        status: TaskStatus | str | None = None,
        name: str | None = None,
    ) -> int:
        """Delete tasks that ended longer ago than `older_than`; returns how many.

        Of this status and name when they are given. Works at any time, in many short
        transactions. A task whose unique key is still taken is left.

        Raises ConfigurationError for a status that is not one of an end.

        Example:
            >>> await lilota.prune(timedelta(days=30), status="failed")
        """
        from lilota_async.storage.pruning import prune

        known = None if status is None else _known_status(status)
        if known is not None and not known.is_final:
            raise ConfigurationError(f"A task that is {known} has not ended; it is not pruned")
        return await prune(
            self._database(),
            checked_duration("older_than", older_than),
            status=known,
            names=None if name is None else [name],
        )

    async def stats(self) -> Stats:
        """How much waits, runs and has ended, of each name, and the nodes; works at any time.

        Reads pending and running rows, and the latest finished ones of each name.

        Example:
            >>> stats = await lilota.stats()
            >>> print(stats.names["report"].pending, stats.names["report"].wait_seconds)
            >>> print(stats.unclaimable)  # names that wait while no live node runs them
        """
        from lilota_async.storage.stats import read_stats

        return await read_stats(self._database(), self._registry, self._lease_seconds)

    @property
    def database(self) -> Database:
        """The way to the database, for what reads more than single tasks."""
        return self._database()

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
            if attempt is not None:
                told = story.catch_up(attempt.event(), attempt.log_since)
            else:
                told = story.tell_row(_status_event(task), task.log)
            for event in told:
                yield event
            async for event in events:
                row = None
                if event.status.is_final and not story.knows_log:
                    row = await self.get_task_by_id(task_id)
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
            await self._wait_for_own(task_id)
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

    async def _wait_for_own(self, task_id: UUID) -> None:
        """Wait while the task runs on this node, which knows without reading when it ends."""
        node, key = self._node, TaskId[Any](checked_id(task_id))
        if node is None or node.running.find(key) is None:
            return
        async with node.events.subscribe(key) as subscription:
            attempt = node.running.find(key)
            if attempt is not None:
                subscription.begin(attempt.event())
                async for _ in subscription:
                    pass

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

    def _database(self) -> Database:
        if self._known_database is None:
            from lilota_async.storage.database import Database

            self._known_database = Database(self._url, engine=self._engine)
        return self._known_database

    async def _existing(self, task_id: UUID) -> Task:
        task = await self.get_task_by_id(task_id)
        if task is None:
            raise TaskNotFound(task_id)
        return task


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


def checked_id(task_id: object) -> UUID:
    """The id, if it is one; ConfigurationError otherwise."""
    if not isinstance(task_id, UUID):
        raise ConfigurationError(
            f"A task's id is a TaskId, not {task_id!r}; make one of a text by TaskId(text)"
        )
    return task_id


def _aware(name: str, time: datetime | None) -> datetime | None:
    """The time, if it is one; ConfigurationError otherwise."""
    if time is not None and (not isinstance(time, datetime) or time.tzinfo is None):
        raise ConfigurationError(
            f"{name} must be a datetime with a timezone, such as datetime.now(UTC), not {time!r}"
        )
    return time


def _known_status(status: TaskStatus | str) -> TaskStatus:
    try:
        return TaskStatus(status)
    except ValueError:
        known = ", ".join(TaskStatus)
        raise ConfigurationError(f"There is no status {status!r}; there are {known}") from None
