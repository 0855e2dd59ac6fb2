"""Reading tasks by their ids: together where many ask, and without much ado where one does."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy import bindparam, select, text

from lilota_async.models.tables import Task
from lilota_async.storage.database import Database, discard
from lilota_async.storage.direct import Direct
from lilota_async.storage.queries import ask, padded
from lilota_async.storage.task_row import COLUMNS, Copies, copies_of, task_with
from lilota_async.storage.threaded import in_one_go

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_MOST_READ = 64
_REST_SECONDS = 1.0
_BY_ARRAY = text(
    f"SELECT {', '.join(COLUMNS)} FROM lilota_task WHERE id = ANY(CAST(:ids AS uuid[]))"
)
_BY_LIST = select(*Task.__table__.columns).where(Task.id.in_(bindparam("ids", expanding=True)))


class TaskReader:
    """Reads tasks by their ids: what is asked for during one read goes into the next together.

    A connection stays with it until nobody has asked for a moment, since taking one costs more
    than such a read; but not one of an application's engine, which may have few. It belongs to
    one event loop.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._wanted: deque[tuple[UUID, asyncio.Future[Task | None]]] = deque()
        self._reading: asyncio.Task[None] | None = None
        self._direct = Direct() if database.dialect == "postgresql" else None
        self._connect = self._keep if database.makes_connections else Database.connect
        self._kept: AsyncConnection | None = None
        self._is_resting = False
        self._rest: asyncio.TimerHandle | None = None

    async def read(self, task_id: UUID) -> Task | None:
        """The task as it is now, for this caller alone, or None."""
        wanted = asyncio.get_running_loop().create_future()
        self._wanted.append((task_id, wanted))
        if self._reading is None or self._reading.done():
            self._reading = self._database.start(self._read_wanted())
        task: Task | None = await wanted
        return task

    async def close(self) -> None:
        """Answer those who have asked, and give the connection back; none is kept any more."""
        self._connect = Database.connect
        if self._reading is not None:
            await asyncio.wait([self._reading])
        if self._rest is not None:
            self._rest.cancel()
        if self._kept is not None:
            await self._database.undisturbed(self._kept.close())
            self._kept = None

    async def _read_wanted(self) -> None:
        while self._wanted:
            batch = [self._wanted.popleft() for _ in range(min(_MOST_READ, len(self._wanted)))]
            try:
                copies = await self._copies(list({task_id for task_id, _ in batch}))
                tasks = [copies[each]() if each in copies else None for each, _ in batch]
            except Exception as error:
                for _, wanted in batch:
                    if not wanted.done():
                        wanted.set_exception(error)
                continue
            for (_, wanted), task in zip(batch, tasks, strict=True):
                if not wanted.done():  # cancelled meanwhile
                    wanted.set_result(task)

    async def _copies(self, ids: list[UUID]) -> Copies:
        return await ask(self._database, lambda c: in_one_go(c, self._find(c, ids)), self._connect)

    async def _find(self, c: AsyncConnection, ids: list[UUID]) -> Copies:
        if self._direct is not None:
            return copies_of(await self._direct.rows(c, _BY_ARRAY, {"ids": ids}), c.dialect)
        rows = await c.execute(_BY_LIST, {"ids": padded(ids)})
        return {row.id: partial(task_with, row) for row in rows}

    @asynccontextmanager
    async def _keep(self, database: Database) -> AsyncIterator[AsyncConnection]:
        """The connection that stays, or a new one when there is none or it has failed."""
        connection = self._kept or await database.acquire_own()
        self._kept = None
        try:
            yield connection
        except BaseException:
            await discard(connection)
            await connection.close()
            raise
        self._kept = connection
        self._is_resting = False
        self._rest_on()

    def _look(self) -> None:
        """Once in a while: whether anybody has asked since."""
        self._rest = None
        if self._kept is None:
            return  # it is in use, or has failed
        if self._is_resting:
            self._database.start(self._kept.close())
            self._kept = None
        else:
            self._is_resting = True
            self._rest_on()

    def _rest_on(self) -> None:
        if self._rest is None:
            self._rest = asyncio.get_running_loop().call_later(_REST_SECONDS, self._look)
