"""Unique keys: at most one task of a name has one, which an index sees to on every database.

A task has its key while it is not final, and after that until `unique_until`. No clock ends
that: whoever wants the key next takes it from a task whose time is over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import text

from lilota_async.errors import AlreadyScheduled, UniqueKeyTaken
from lilota_async.models.values import TaskId, TaskStatus
from lilota_async.options import OnConflict
from lilota_async.storage.transitions import News, NewTask

if TYPE_CHECKING:
    from sqlalchemy import TextClause
    from sqlalchemy.ext.asyncio import AsyncConnection

    from lilota_async.storage.dialect import Dialect
    from lilota_async.storage.store import Store

_OPEN = "status IN ('pending', 'running')"


class UniqueKeys:
    """The statements about unique keys, of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._statements = _statements(store.dialect)

    @property
    def must_wait(self) -> bool:
        """Whether `wait()` has to come before an insert, lest that holds up others."""
        return self._store.dialect.inserts_lock_gaps

    async def wait(self, c: AsyncConnection, task: NewTask) -> None:
        """Wait until no open transaction has written the key of the task, and lock no gap."""
        assert task.unique_key is not None
        await self._locked(c, task.name, task.unique_key)

    async def insert(self, c: AsyncConnection, task: NewTask, on_conflict: OnConflict) -> TaskId:
        """nothing -> pending, or what `settle()` does; returns the id that has the key then."""
        while task.id in await self._store.insert(c, [task]):
            found = await self.settle(c, task, on_conflict)
            if found is not None:
                return found
        return task.id

    async def settle(
        self, c: AsyncConnection, task: NewTask, on_conflict: OnConflict
    ) -> TaskId | None:
        """Another task has the key: its id, or None when the key is free by now.

        With "replace", pending -> pending with what the new task is about. Raises
        AlreadyScheduled. Belongs into a transaction.
        """
        key = self._store.dialect.key
        if (await c.execute(self._statements["exists"], {"id": key(task.id)})).first() is not None:
            return task.id  # written before, by a try whose answer was lost
        assert task.unique_key is not None
        holder = await self._seen(c, task.name, task.unique_key)
        if holder is None or holder.is_over or self._is_replaced(holder, on_conflict):
            holder = await self._holder(c, task.name, task.unique_key)
        if holder is None:
            return None
        found: TaskId = TaskId(holder.id)
        if on_conflict == "return_existing":
            return found
        if not self._is_replaced(holder, on_conflict):
            raise AlreadyScheduled(task.name, task.unique_key, found, holder.status)
        await c.execute(self._statements["replace"], self._replacement(task, holder.id))
        await self._store.tell(c, News.LOOK)
        return found

    @staticmethod
    def _is_replaced(holder: Any, on_conflict: OnConflict) -> bool:
        return on_conflict == "replace" and holder.status == TaskStatus.PENDING

    async def free(self, c: AsyncConnection, task_id: UUID, name: str, unique_key: str) -> None:
        """Make sure that the final task may have its key again, or raise UniqueKeyTaken."""
        holder = await self._holder(c, name, unique_key, but=task_id)
        if holder is not None:
            raise UniqueKeyTaken(task_id, unique_key, TaskId(holder.id))

    async def _holder(
        self, c: AsyncConnection, name: str, unique_key: str, but: UUID | None = None
    ) -> Any:
        """The locked row of the task that has the key; one whose time is over gives it up."""
        row = await self._locked(c, name, unique_key)
        if row is None or TaskId(row.id) == but:
            return None
        if not row.is_over:
            return row
        await c.execute(self._statements["give_up"], {"id": row.id})
        return None

    async def _seen(self, c: AsyncConnection, name: str, unique_key: str) -> Any:
        """The row that has the key, without its lock, which an application's transaction keeps."""
        rows = await c.execute(self._statements["seen"], {"name": name, "key": unique_key})
        return rows.first()

    async def _locked(self, c: AsyncConnection, name: str, unique_key: str) -> Any:
        """The row that has the key, locked; it waits for whoever has written it."""
        rows = await c.execute(self._statements["holder"], {"name": name, "key": unique_key})
        return rows.first()

    def _replacement(self, task: NewTask, row_id: Any) -> dict[str, Any]:
        return {
            "id": row_id,
            "input": task.input,
            "priority": task.priority,
            "run_at": self._store.dialect.time(task.run_at),
            "delay": float(task.delay_seconds),
            "max_attempts": task.max_attempts,
            "timeout": task.timeout_seconds,
            "tags": task.tags,
            "concurrency_key": task.concurrency_key,
            "is_limited": task.unique_seconds is not None,
            "unique_seconds": float(task.unique_seconds or 0.0),
        }


def _statements(dialect: Dialect) -> dict[str, TextClause]:
    now = dialect.now
    is_over = f"NOT {_OPEN} AND unique_until <= {now}"
    holder = f"""
        SELECT id, status, {is_over} AS is_over FROM {dialect.unique_table}
        WHERE name = :name AND {dialect.holds_key}"""
    statements = {
        "exists": "SELECT 1 FROM lilota_task WHERE id = :id",
        "seen": holder,
        "holder": f"{holder} {dialect.for_update}",
        "give_up": f"UPDATE lilota_task SET unique_until = NULL WHERE id = :id AND {is_over}",
        "replace": f"""
            UPDATE lilota_task SET input = :input, priority = :priority,
                run_at = COALESCE(:run_at, {dialect.later(":delay")}),
                max_attempts = attempts + :max_attempts, timeout_seconds = :timeout,
                tags = :tags, concurrency_key = :concurrency_key,
                unique_until = CASE WHEN :is_limited
                    THEN {dialect.later(":unique_seconds")} END,
                checkpoint = NULL, progress_percentage = 0
            WHERE id = :id AND {dialect.is_pending}""",
    }
    return {name: text(statement) for name, statement in statements.items()}
