"""Reading tasks that many wait for: in few statements, and the single one without much ado."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy import text

from lilota_async.models.tables import Task
from lilota_async.storage.database import Database
from lilota_async.storage.direct import Direct
from lilota_async.storage.queries import ask, read, with_ids
from lilota_async.storage.task_row import COLUMNS, task_of

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_MOST_READ = 64
_BY_IDS = text(f"SELECT {', '.join(COLUMNS)} FROM lilota_task WHERE id = ANY(CAST(:ids AS uuid[]))")


class TaskReader:
    """Reads tasks by their ids: what is asked for during one read goes into the next together.

    It belongs to one event loop.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._wanted: list[tuple[UUID, asyncio.Future[Task | None]]] = []
        self._reading: asyncio.Task[None] | None = None
        self._direct = Direct() if database.dialect == "postgresql" else None

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
        direct = self._direct
        if direct is not None:
            return await ask(self._database, lambda c: _find(direct, c, ids))
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


async def _find(direct: Direct, c: AsyncConnection, ids: list[UUID]) -> list[Task]:
    return [task_of(row, c.dialect) for row in await direct.rows(c, _BY_IDS, {"ids": ids})]
