"""Tasks that wait for others: `lilota_dependency` has a row for each end that is still awaited.

A task that waits is pending, and due in another age. Its edges go as those end that it waits
for; with the last one it becomes due, or it is cancelled. All of that is found from the rows
alone, so that whoever looks next finishes what a node that died has left.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
from sqlalchemy import bindparam, text

from lilota_async.errors import TaskNotFound
from lilota_async.models.types import TaskIdType, UtcDateTime
from lilota_async.models.values import TaskId, TaskStatus
from lilota_async.storage.transitions import Dependent, Edge, NewTask, Released

if TYPE_CHECKING:
    from sqlalchemy import TextClause
    from sqlalchemy.ext.asyncio import AsyncConnection

    from lilota_async.storage.store import Store

BLOCKED = datetime(9999, 1, 1, tzinfo=UTC)
ROWS_AT_ONCE = 1000
_HAS_ENDED = "t.status IN ('completed', 'failed', 'cancelled')"


class DependencyRows:
    """The transitions of tasks that wait. Whoever calls brings the transaction."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._key = store.dialect.key
        dialect = store.dialect
        columns = "d.on_id, d.task_id, d.runs_if_failed, d.not_before, t.status"
        types: Any = {"on_id": TaskIdType, "task_id": TaskIdType, "not_before": UtcDateTime}
        self._ended = text(f"""
            SELECT {columns} FROM lilota_dependency d LEFT JOIN lilota_task t ON t.id = d.on_id
            WHERE t.id IS NULL OR {_HAS_ENDED} LIMIT :limit""").columns(**types)
        # From the tasks: one that has not ended may have a hundred thousand edges.
        self._ended_of = self._of_ids(
            f"""SELECT {columns} FROM lilota_task t JOIN lilota_dependency d ON d.on_id = t.id
            WHERE {_HAS_ENDED} AND t.id""",
            f"LIMIT {ROWS_AT_ONCE}",
        ).columns(**types)
        self._known = self._of_ids("SELECT id FROM lilota_task WHERE id").columns(id=TaskIdType)
        self._lock = self._of_ids(
            "SELECT id, status FROM lilota_task WHERE id", f"ORDER BY id {dialect.for_adoption}"
        ).columns(id=TaskIdType)
        # Not by their edges, of which one may have a hundred thousand: the first will do.
        self._waiting = self._of_ids(
            """SELECT id FROM lilota_task WHERE EXISTS
            (SELECT 1 FROM lilota_dependency d WHERE d.task_id = lilota_task.id) AND id"""
        ).columns(id=TaskIdType)
        self._any = text("SELECT 1 FROM lilota_dependency LIMIT 1")
        self._insert = text("""
            INSERT INTO lilota_dependency (on_id, task_id, runs_if_failed, not_before)
            VALUES (:on_id, :task_id, :runs_if_failed, :not_before)""")
        self._delete = text(
            "DELETE FROM lilota_dependency WHERE on_id = :on_id AND task_id = :task_id"
        )
        self._forget = text("DELETE FROM lilota_dependency WHERE task_id = :task_id")
        self._release = text(f"""
            UPDATE lilota_task SET run_at =
                CASE WHEN :not_before > {dialect.now} THEN :not_before ELSE {dialect.now} END
            WHERE id = :id AND {dialect.is_pending} AND run_at >= :blocked""").bindparams(
            bindparam("not_before", type_=UtcDateTime), bindparam("blocked", type_=UtcDateTime)
        )
        self._cancel = text(f"""
            UPDATE lilota_task SET status = 'cancelled', end_date_time = {dialect.now},
                exception = :exception
            WHERE id = :id AND {dialect.is_pending}""")

    async def insert(
        self, c: AsyncConnection, rows: Sequence[Dependent], *, check: bool = True
    ) -> None:
        """nothing -> pending, until all of `after` have ended; a row that is there is left alone.

        With `check` raises TaskNotFound, before anything is written, for an unknown id.
        """
        (error,) = await self.insert_each(c, [rows], check=check)
        if error is not None:
            raise error

    async def insert_each(
        self, c: AsyncConnection, groups: Sequence[Sequence[Dependent]], *, check: bool = True
    ) -> list[TaskNotFound | None]:
        """The same for several callers, of whom none is told of another's error."""
        rows = [row for group in groups for row in group]
        awaited = {each for row in rows for each in row.after} if check else set()
        there = await self.known(c, awaited.union(row.task.id for row in rows))
        errors = [_unknown(group, there) if check else None for group in groups]
        await self._write(
            c,
            [
                row
                for group, error in zip(groups, errors, strict=True)
                if error is None
                for row in group
                if row.task.id not in there
            ],
        )
        return errors

    async def _write(self, c: AsyncConnection, new: Sequence[Dependent]) -> None:
        tasks = [_blocked(row.task) if row.after else row.task for row in new]
        for start in range(0, len(tasks), ROWS_AT_ONCE):
            await self._store.insert(c, tasks[start : start + ROWS_AT_ONCE])
        is_delayed = any(row.after and row.task.delay_seconds for row in new)
        now = await self._store.clock(c) if is_delayed else None
        edges = [edge for row in new for edge in self._edges(row, now)]
        for start in range(0, len(edges), ROWS_AT_ONCE):
            await c.execute(self._insert, edges[start : start + ROWS_AT_ONCE])

    async def known(self, c: AsyncConnection, ids: Iterable[UUID]) -> set[TaskId[Any]]:
        """Those of the ids that have a row."""
        return {row.id for row in await self._rows(c, self._known, ids)}

    async def exist(self, c: AsyncConnection) -> bool:
        """Whether any task waits for another."""
        return (await c.execute(self._any)).first() is not None

    async def ended(self, c: AsyncConnection, ids: Sequence[UUID] | None = None) -> list[Edge]:
        """The edges to tasks that have ended, of these, or of all, with those that are gone."""
        if ids is None:
            rows = (await c.execute(self._ended, {"limit": ROWS_AT_ONCE})).all()
        else:
            rows = await self._rows(c, self._ended_of, ids)
        return [
            Edge(
                on=row.on_id,
                task=row.task_id,
                runs_if_failed=bool(row.runs_if_failed),
                not_before=row.not_before,
                status=row.status,
            )
            for row in rows
        ]

    async def release(self, c: AsyncConnection, edges: Sequence[Edge]) -> Released:
        """pending -> due now or cancelled, for those that wait for nothing more; drops the edges.

        What another node holds is left, with its edges: it does the same.
        """
        children = {edge.task for edge in edges}
        # Locked before the others' edges are counted: of two that end at the same time, the
        # second one to get here sees that the first is gone.
        locked = await self._rows(c, self._lock, children)
        pending = {row.id for row in locked if row.status == TaskStatus.PENDING}
        missing = children - {row.id for row in locked}
        held = await self.known(c, missing) if missing else set()
        mine = [edge for edge in edges if edge.task not in held]
        if not mine:
            return Released(held=bool(held))
        await c.execute(
            self._delete,
            [{"on_id": self._key(e.on), "task_id": self._key(e.task)} for e in mine],
        )
        failed = {edge.task: edge for edge in mine if edge.cancels and edge.task in pending}
        await self._cancel_all(c, failed.values())
        waiting = {row.id for row in await self._rows(c, self._waiting, pending)}
        free = pending - waiting - failed.keys()
        due = {edge.task: edge for edge in mine if edge.task in free}
        await self._make_due(c, due.values())
        return Released(due=tuple(due), cancelled=tuple(failed), dropped=len(mine), held=bool(held))

    async def _make_due(self, c: AsyncConnection, edges: Iterable[Edge]) -> None:
        rows = [
            {"id": self._key(edge.task), "not_before": edge.not_before, "blocked": BLOCKED}
            for edge in edges
        ]
        if rows:
            await c.execute(self._release, rows)

    async def _cancel_all(self, c: AsyncConnection, edges: Iterable[Edge]) -> None:
        rows = [{"id": self._key(edge.task), "exception": _reason(edge)} for edge in edges]
        if rows:
            await c.execute(self._cancel, rows)
            await c.execute(self._forget, [{"task_id": row["id"]} for row in rows])

    def _edges(self, row: Dependent, now: datetime | None) -> list[dict[str, Any]]:
        not_before = row.task.run_at
        if now is not None and row.task.delay_seconds:
            not_before = now + timedelta(seconds=row.task.delay_seconds)
        return [
            {
                "on_id": self._key(on),
                "task_id": self._key(row.task.id),
                "runs_if_failed": row.runs_if_failed,
                "not_before": self._store.dialect.time(not_before),
            }
            for on in dict.fromkeys(row.after)
        ]

    def _of_ids(self, start: str, end: str = "") -> TextClause:
        """`start` is followed by the ids; on PostgreSQL one statement for any number of them."""
        if self._store.dialect.has_arrays:
            return text(f"{start} = ANY(CAST(:ids AS uuid[])) {end}")
        return text(f"{start} IN :ids {end}").bindparams(bindparam("ids", expanding=True))

    async def _rows(self, c: AsyncConnection, statement: Any, ids: Iterable[UUID]) -> list[Any]:
        keys = [self._key(each) for each in sorted(ids)]
        rows: list[Any] = []
        for start in range(0, len(keys), ROWS_AT_ONCE):
            chunk = {"ids": keys[start : start + ROWS_AT_ONCE]}
            rows += (await c.execute(statement, chunk)).all()
        return rows


def _blocked(task: NewTask) -> NewTask:
    return msgspec.structs.replace(task, run_at=BLOCKED, delay_seconds=0.0)


def _unknown(rows: Sequence[Dependent], there: set[TaskId[Any]]) -> TaskNotFound | None:
    """The error for an id that one of them waits for, and that nobody knows."""
    awaited = {each for row in rows for each in row.after}
    missing = awaited - there - {row.task.id for row in rows}
    return TaskNotFound(min(missing)) if missing else None


def _reason(edge: Edge) -> str:
    what = "was deleted" if edge.status is None else f"has {_ENDS.get(edge.status, edge.status)}"
    exception = {
        "kind": "dependency",
        "type": "TaskCancelled",
        "message": f"task {edge.on}, which this one waited for, {what}",
        "traceback": "",
    }
    return msgspec.json.encode(exception).decode()


_ENDS = {"failed": "failed", "cancelled": "been cancelled"}
