"""Reading tasks that many wait for: in few statements, and the single one without much ado."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import make_transient_to_detached
from sqlalchemy.types import TypeDecorator

from lilota_async.models.tables import Task
from lilota_async.storage.database import Database
from lilota_async.storage.direct import Direct
from lilota_async.storage.queries import ask, read, with_ids

if TYPE_CHECKING:
    from sqlalchemy import Dialect
    from sqlalchemy.ext.asyncio import AsyncConnection
    from sqlalchemy.types import TypeEngine

_MOST_READ = 64
_COLUMNS = tuple(Task.__table__.columns)
_LONE = text(
    f"SELECT {', '.join(column.name for column in _COLUMNS)} FROM lilota_task "
    "WHERE id = CAST(:id AS uuid)"
)


class TaskReader:
    """Reads tasks by their ids: what is asked for during one read goes into the next together.

    It belongs to one event loop.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._wanted: list[tuple[UUID, asyncio.Future[Task | None]]] = []
        self._reading: asyncio.Task[None] | None = None
        self._lone = LoneRow() if database.dialect == "postgresql" else None

    async def read(self, task_id: UUID) -> Task | None:
        """The task as it is now, for this caller alone, or None."""
        wanted = asyncio.get_running_loop().create_future()
        self._wanted.append((task_id, wanted))
        if self._reading is None or self._reading.done():
            self._reading = self._database.start(self._read_wanted())
        task: Task | None = await wanted
        return task

    async def _read_wanted(self) -> None:
        while self._wanted:
            batch = self._take()
            try:
                tasks = await self._tasks(list(batch))
            except Exception as error:
                for wanted in batch.values():
                    if not wanted.done():
                        wanted.set_exception(error)
                continue
            found: dict[UUID, Task] = {task.id: task for task in tasks}
            for task_id, wanted in batch.items():
                if not wanted.done():  # cancelled meanwhile
                    wanted.set_result(found.get(task_id))

    async def _tasks(self, ids: list[UUID]) -> list[Task]:
        lone = self._lone
        if lone is not None and len(ids) == 1:
            return await ask(self._database, lambda c: lone.find(c, ids[0]))
        return [row[0] for row in await read(self._database, with_ids(ids))]

    def _take(self) -> dict[UUID, asyncio.Future[Task | None]]:
        batch: dict[UUID, asyncio.Future[Task | None]] = {}
        left = []
        for task_id, wanted in self._wanted:
            if len(batch) < _MOST_READ and task_id not in batch:
                batch[task_id] = wanted
            else:
                left.append((task_id, wanted))
        self._wanted = left
        return batch


class LoneRow:
    """One task by its id on PostgreSQL, where the ORM takes longer to read it than the server."""

    def __init__(self) -> None:
        self._direct = Direct()

    async def find(self, c: AsyncConnection, task_id: UUID) -> list[Task]:
        """The task as the ORM would give it, detached; or nothing."""
        rows = await self._direct.rows(c, _LONE, {"id": task_id})
        return [_task_of(row, c.dialect) for row in rows]


def _task_of(row: Any, dialect: Dialect) -> Task:
    task = Task()
    # Where attributes are kept; set one by one, thirty of them take as long as the statement.
    vars(task).update(
        (name, decode(value, dialect) if decode else value)
        for (name, decode), value in zip(_DECODERS, row, strict=True)
    )
    make_transient_to_detached(task)
    return task


def _decoder(kind: TypeEngine[Any]) -> Callable[[Any, Dialect], Any] | None:
    """What a type of ours makes of the driver's value, which is that of PostgreSQL's own type."""
    if type(kind).__dict__.get("process_result_value") is None:
        return None
    assert isinstance(kind, TypeDecorator)
    return kind.process_result_value


_DECODERS = [(column.key, _decoder(column.type)) for column in _COLUMNS]
