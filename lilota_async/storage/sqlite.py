"""SQLite: ids as text, times as text in the format of SQLAlchemy, one writer at a time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from lilota_async.models.values import TaskId
from lilota_async.storage import sqlite_sql as sql
from lilota_async.storage.operation import ALL_KINDS, Kind
from lilota_async.storage.rows import RowDialect, RowStore
from lilota_async.storage.transitions import Finish, NewTask

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_MOST = 2**63 - 1
_JULIAN_NOW = "julianday('now')"
_SECONDS_PER_DAY = "86400.0"


class SqliteDialect(RowDialect):
    """No row locks: `BEGIN IMMEDIATE` lets one transaction write at a time."""

    now = sql.NOW
    seconds_since_seen = f"({_JULIAN_NOW} - julianday(last_seen_at)) * {_SECONDS_PER_DAY}"
    for_update = ""
    for_adoption = ""
    for_claim = ""
    pending_key_table = "lilota_task INDEXED BY ix_lilota_task_pending_key"
    pending_table = "lilota_task INDEXED BY ix_lilota_task_pending"
    pending_name_table = "lilota_task INDEXED BY ix_lilota_task_pending_name"
    unique_table = "lilota_task INDEXED BY ix_lilota_task_unique"
    running_table = "lilota_task INDEXED BY ix_lilota_task_running"
    ended_table = "lilota_task INDEXED BY ix_lilota_task_ended"

    def seconds_between(self, earlier: str, later: str) -> str:
        return f"(julianday({later}) - julianday({earlier})) * {_SECONDS_PER_DAY}"

    def later(self, seconds: str) -> str:
        return sql.later(seconds)

    def time(self, value: datetime | None) -> Any:
        if value is None:
            return None
        return value.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


class SqliteStore(RowStore):
    """The embedded default."""

    # While new rows are written, what has ended is told, and the other way round.
    turns = (
        frozenset({Kind.ADMIT}),
        frozenset({Kind.INSERT}),
        ALL_KINDS - {Kind.ADMIT, Kind.INSERT},
    )

    def is_atomic(self, kind: Kind, values: Sequence[Any]) -> bool:
        if kind is Kind.INSERT:
            return all(task.unique_key is None for tasks in values for task in tasks)
        return kind is Kind.FINISH and not any(finish.children for finish in values)

    def __init__(self) -> None:
        super().__init__(SqliteDialect())

    async def insert(self, c: AsyncConnection, tasks: Sequence[NewTask]) -> set[TaskId[Any]]:
        if any(max(abs(task.priority), task.max_attempts) > _MOST for task in tasks):
            raise OverflowError("An integer has more than 64 bits")  # JSON would round it
        time = self.dialect.time
        rows = (
            (
                self._key(task.id),
                task.name,
                task.priority,
                task.delay_seconds,
                time(task.run_at),
                task.input,
                task.max_attempts,
                task.timeout_seconds,
                task.tags,
                task.unique_key,
                task.unique_seconds,
                task.concurrency_key,
                None if task.node_id is None else self._key(task.node_id),
                task.pid,
                time(task.nominal_time),
            )
            for task in tasks
        )
        written = await c.execute(sql.INSERT, sql.encode(rows))
        refused = await self._refused(c, tasks)
        if written.rowcount < len(tasks):
            refused |= await self._not_begun(c, tasks)
        return refused

    async def _start(
        self, c: AsyncConnection, node_id: UUID, chosen: Sequence[tuple[Any, int]]
    ) -> None:
        rows = ((row.id, pid) for row, pid in chosen)
        await c.execute(sql.CLAIM, {"node_id": self._key(node_id), **sql.encode(rows)})

    async def _end(self, c: AsyncConnection, finishes: Sequence[Finish]) -> int:
        rows = map(self._values_of_end, finishes)
        return (await c.execute(sql.FINISH, sql.encode(rows))).rowcount
