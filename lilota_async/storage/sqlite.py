"""SQLite: ids as text, times as text in the format of SQLAlchemy, one writer at a time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from lilota_async.models.values import TaskId
from lilota_async.storage.dialect import PAUSED
from lilota_async.storage.rows import RowDialect, RowStore
from lilota_async.storage.transitions import NewTask

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

# SQLite has milliseconds; the zeros make the text comparable with microseconds.
_NOW = "strftime('%Y-%m-%d %H:%M:%f000', 'now')"
_JULIAN_NOW = "julianday('now')"
_SECONDS_PER_DAY = "86400.0"


class SqliteDialect(RowDialect):
    """No row locks: `BEGIN IMMEDIATE` lets one transaction write at a time."""

    now = _NOW
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
        return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', printf('%+.3f seconds', {seconds}))"

    def time(self, value: datetime | None) -> Any:
        if value is None:
            return None
        return value.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


class SqliteStore(RowStore):
    """The embedded default."""

    def __init__(self) -> None:
        dialect = SqliteDialect()
        super().__init__(dialect)
        self._insert = text(f"""
            INSERT INTO lilota_task (id, name, status, priority, created_at, run_at,
                progress_percentage, input, attempts, max_attempts, interruptions,
                timeout_seconds, tags, unique_key, unique_until, concurrency_key, locked_by, pid,
                start_date_time, nominal_time)
            SELECT :id, :name, :status, :priority, {dialect.now},
                COALESCE(:run_at, {dialect.later(":delay")}),
                0, :input, :attempts, :max_attempts, 0, :timeout, :tags, :unique_key,
                CASE WHEN :unique_seconds IS NOT NULL THEN {dialect.later(":unique_seconds")} END,
                :concurrency_key, :node, :pid,
                CASE WHEN :node IS NOT NULL THEN {dialect.now} END, :nominal_time
            WHERE :node IS NULL OR (:name NOT IN {PAUSED} AND '' NOT IN {PAUSED})
            ON CONFLICT DO NOTHING""")

    async def insert(self, c: AsyncConnection, tasks: Sequence[NewTask]) -> set[TaskId[Any]]:
        written = await c.execute(
            self._insert,
            [
                {
                    "id": self._key(task.id),
                    "name": task.name,
                    "priority": task.priority,
                    "delay": float(task.delay_seconds),
                    "run_at": None if task.run_at is None else self.dialect.time(task.run_at),
                    "input": task.input,
                    "max_attempts": task.max_attempts,
                    "timeout": task.timeout_seconds,
                    "tags": task.tags,
                    "unique_key": task.unique_key,
                    "unique_seconds": task.unique_seconds,
                    "concurrency_key": task.concurrency_key,
                    "nominal_time": self.dialect.time(task.nominal_time),
                    **self._owner(task),
                }
                for task in tasks
            ],
        )
        refused = await self._refused(c, tasks)
        if written.rowcount < len(tasks):
            refused |= await self._not_begun(c, tasks)
        return refused
