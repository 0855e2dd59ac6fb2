"""MariaDB: ids as text, times as naive UTC, inserts as one statement with many rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from sqlalchemy import text

from lilota_async.models.values import TaskId
from lilota_async.storage.dialect import PAUSED
from lilota_async.storage.limited import ALL
from lilota_async.storage.rows import ENDED, RowDialect, RowStore
from lilota_async.storage.store import in_order_of_keys
from lilota_async.storage.transitions import Finish, NewTask

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_NOW = "UTC_TIMESTAMP(6)"
_INSERT = """
INSERT INTO lilota_task (id, name, status, priority, created_at, run_at, progress_percentage,
    input, attempts, max_attempts, interruptions, timeout_seconds, tags, unique_key, unique_until,
    concurrency_key, locked_by, pid, start_date_time, nominal_time)
VALUES """
_INSERT_ROW = (
    f"(%s, %s, %s, %s, {_NOW}, COALESCE(%s, {_NOW} + INTERVAL %s SECOND), 0, %s, %s, %s, 0, %s, "
    f"%s, %s, {_NOW} + INTERVAL %s SECOND, %s, %s, %s, "
    f"CASE WHEN %s IS NOT NULL THEN {_NOW} END, %s)"
)
# Not INSERT IGNORE, which hides every other error too.
_INSERT_END = " ON DUPLICATE KEY UPDATE id = lilota_task.id"
# Well within the default max_allowed_packet of 16 MB, with every character escaped.
_STATEMENT_CHARACTERS = 4_000_000
_STATEMENT_ROWS = 500
# Derived tables: the rows of a batch come as values, and each finds its own by the primary key.
_START = f"""
UPDATE ({{}}) AS new STRAIGHT_JOIN lilota_task AS task ON task.id = new.id
SET task.status = 'running', task.attempts = task.attempts + 1, task.pid = new.pid,
    task.locked_by = %s, task.start_date_time = {_NOW}, task.end_date_time = NULL,
    task.progress_percentage = 0, task.cancel_requested_at = NULL"""
_END = f"""
UPDATE ({{}}) AS new STRAIGHT_JOIN lilota_task AS task ON task.id = new.id
    AND task.attempts = new.attempt AND task.locked_by = new.node AND task.status = 'running'
SET task.status = new.status, task.end_date_time = {_NOW}, task.output = new.output,
    task.exception = new.exception,
    task.progress_percentage = COALESCE(new.progress, task.progress_percentage),
    task.cpu_seconds = new.cpu, task.peak_memory_bytes = new.memory, task.log = new.log"""
_READ_PAUSED = text(PAUSED.strip("()"))
Row = TypeVar("Row")


class MariadbDialect(RowDialect):
    """MySQL is taken for MariaDB."""

    now = _NOW
    seconds_since_seen = f"TIMESTAMPDIFF(MICROSECOND, last_seen_at, {_NOW}) / 1000000"
    keep_schedule = "ON DUPLICATE KEY UPDATE handled_until = handled_until"
    upsert_node = (
        "ON DUPLICATE KEY UPDATE last_seen_at = VALUES(last_seen_at), names = VALUES(names)"
    )
    for_claim = "FOR UPDATE SKIP LOCKED"
    # A row that is always there: GET_LOCK() would have to be given back after the COMMIT.
    lock_backlog = "SELECT version_num FROM lilota_alembic_version FOR UPDATE SKIP LOCKED"
    pending_table = "lilota_task FORCE INDEX (ix_lilota_task_pending)"
    pending_name_table = "lilota_task FORCE INDEX (ix_lilota_task_pending_name)"
    unique_table = "lilota_task FORCE INDEX (ix_lilota_task_unique)"
    pending_key_table = "lilota_task FORCE INDEX (ix_lilota_task_pending_key)"
    is_pending_keyed = "status = 'pending' AND is_keyed = true"
    on_known_limit = "ON DUPLICATE KEY UPDATE name = lilota_limit.name"
    holds_key = "held_key = :key"
    inserts_lock_gaps = True
    running_table = "lilota_task FORCE INDEX (ix_lilota_task_running)"
    ended_table = "lilota_task FORCE INDEX (ix_lilota_task_ended)"

    def seconds_between(self, earlier: str, later: str) -> str:
        return f"TIMESTAMPDIFF(MICROSECOND, {earlier}, {later}) / 1000000"

    def later(self, seconds: str) -> str:
        return f"{_NOW} + INTERVAL {seconds} SECOND"

    def time(self, value: datetime | None) -> Any:
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)


class MariadbStore(RowStore):
    """Through asyncmy, which puts the values into the statement itself."""

    def __init__(self) -> None:
        super().__init__(MariadbDialect())

    async def insert(self, c: AsyncConnection, tasks: Sequence[NewTask]) -> set[TaskId[Any]]:
        held: set[TaskId[Any]] = set()
        if any(task.unique_key is not None for task in tasks):
            tasks = in_order_of_keys(tasks)
        if any(task.node_id is not None for task in tasks):
            paused = set((await c.execute(_READ_PAUSED)).scalars())
            held = {task.id for task in tasks if task.node_id and paused & {task.name, ALL}}
            tasks = [task for task in tasks if task.id not in held]
        for chunk in _chunks(tasks, _size_of_new):
            statement = _INSERT + ", ".join([_INSERT_ROW] * len(chunk)) + _INSERT_END
            values = [value for task in chunk for value in self._values(task)]
            await c.exec_driver_sql(statement, tuple(values))
        return held | await self._refused(c, tasks)

    async def _start(
        self, c: AsyncConnection, node_id: UUID, chosen: Sequence[tuple[Any, int]]
    ) -> None:
        values = [value for row, pid in chosen for value in (row.id, pid)]
        statement = _START.format(_derived(("id", "pid"), len(chosen)))
        await c.exec_driver_sql(statement, (*values, self._key(node_id)))

    async def _end(self, c: AsyncConnection, finishes: Sequence[Finish]) -> int:
        written = 0
        for chunk in _chunks(finishes, _size_of_end):
            statement = _END.format(_derived(ENDED, len(chunk)))
            values = [value for finish in chunk for value in self._values_of_end(finish)]
            written += (await c.exec_driver_sql(statement, tuple(values))).rowcount
        return written

    def _values(self, task: NewTask) -> tuple[Any, ...]:
        owner = self._owner(task)
        return (
            self._key(task.id),
            task.name,
            owner["status"],
            task.priority,
            self.dialect.time(task.run_at),
            float(task.delay_seconds),
            task.input,
            owner["attempts"],
            task.max_attempts,
            task.timeout_seconds,
            task.tags,
            task.unique_key,
            task.unique_seconds,
            task.concurrency_key,
            owner["node"],
            owner["pid"],
            owner["node"],
            self.dialect.time(task.nominal_time),
        )

    def _owner(self, task: NewTask) -> dict[str, Any]:
        """The columns of a new row that tell whether it runs already."""
        runs = task.node_id is not None
        return {
            "status": "running" if runs else "pending",
            "attempts": int(runs),
            "node": None if task.node_id is None else self._key(task.node_id),
            "pid": task.pid,
        }


def _derived(columns: Sequence[str], rows: int) -> str:
    """The SQL of so many rows of values with these columns."""
    first = ", ".join(f"%s AS {column}" for column in columns)
    others = ", ".join(["%s"] * len(columns))
    return " UNION ALL SELECT ".join([f"SELECT {first}"] + [others] * (rows - 1))


def _size_of_new(task: NewTask) -> int:
    return len(task.input or "") + len(task.tags or "")


def _size_of_end(finish: Finish) -> int:
    return sum(map(len, filter(None, (finish.output, finish.exception, finish.cost.log))))


def _chunks(rows: Sequence[Row], size_of: Callable[[Row], int]) -> Iterator[list[Row]]:
    """The rows for each statement: no more than a server takes."""
    chunk: list[Row] = []
    characters = 0
    for row in rows:
        size = size_of(row)
        if chunk and (len(chunk) == _STATEMENT_ROWS or characters + size > _STATEMENT_CHARACTERS):
            yield chunk
            chunk, characters = [], 0
        chunk.append(row)
        characters += size
    if chunk:
        yield chunk
