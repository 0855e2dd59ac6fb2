"""Looking at rows, and deleting them: needs no running lilota."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from lilota_async.errors import ConfigurationError
from lilota_async.models.values import Duration, TaskStatus, checked_span
from lilota_async.options import checked_count, checked_time
from lilota_async.registry import Registry, check_name, checked_tags

if TYPE_CHECKING:
    from sqlalchemy.engine import URL
    from sqlalchemy.ext.asyncio import AsyncEngine

    from lilota_async.models.stats import Stats
    from lilota_async.models.tables import Task
    from lilota_async.node import Node
    from lilota_async.storage.database import Database


class Records:
    """The rows of one database. What is here works at any time, whether it is running or not."""

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
        if self._node is not None and self._node.is_of_this_loop:
            return await self._node.rows.read(checked_id(task_id))
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

        if name is not None:
            check_name(name)
        return await queries.get_tasks(
            self._database(),
            queries.Selection(
                status=None if status is None else _known_status(status),
                name=name,
                tags=checked_tags(tags),
                created_after=checked_time("created_after", created_after),
                created_before=checked_time("created_before", created_before),
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
        transactions. A task whose unique key is still taken is left, and one whose end other
        tasks have not taken note of.

        Raises ConfigurationError for a status that is not one of an end, and what cannot be.

        Example:
            >>> await lilota.prune(timedelta(days=30), status="failed")
        """
        from lilota_async.storage.pruning import prune

        known = None if status is None else _known_status(status)
        if known is not None and not known.is_final:
            raise ConfigurationError(f"A task that is {known} has not ended; it is not pruned")
        if name is not None:
            check_name(name)
        return await prune(
            self._database(),
            checked_span("older_than", older_than),
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

        return await read_stats(self._database(), self._registry)

    @property
    def database(self) -> Database:
        """The way to the database, for what reads more than single tasks."""
        return self._database()

    def _database(self) -> Database:
        if self._known_database is None:
            from lilota_async.storage.database import Database

            self._known_database = Database(self._url, engine=self._engine)
        return self._known_database


def checked_id(task_id: object) -> UUID:
    """The id, if it is one; ConfigurationError otherwise."""
    if not isinstance(task_id, UUID):
        raise ConfigurationError(
            f"A task's id is a TaskId, not {task_id!r}; make one of a text by TaskId(text)"
        )
    return task_id


def _known_status(status: TaskStatus | str) -> TaskStatus:
    try:
        return TaskStatus(status)
    except ValueError:
        known = ", ".join(TaskStatus)
        raise ConfigurationError(f"There is no status {status!r}; there are {known}") from None
