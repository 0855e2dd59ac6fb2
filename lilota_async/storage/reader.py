"""Reading tasks by their ids: together where many ask, and without much ado where one does."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from uuid import UUID

from sqlalchemy import Select, Text, bindparam, select, text, type_coerce

from lilota_async.models.tables import Task
from lilota_async.storage.database import Database, discard
from lilota_async.storage.direct import Direct
from lilota_async.storage.kept_plans import KeptPlans
from lilota_async.storage.queries import ask, padded
from lilota_async.storage.task_row import COLUMNS, copies_of, task_with
from lilota_async.storage.threaded import in_one_go
from lilota_async.storage.transitions import Ending

if TYPE_CHECKING:
    from sqlalchemy import Dialect, TextClause
    from sqlalchemy.ext.asyncio import AsyncConnection

_MOST_READ = 64
_REST_SECONDS = 1.0
Found = Mapping[UUID | None, Callable[[], Any]]
"""What makes an answer of each row, anew for each who asks, by their ids."""


class _Question(NamedTuple):
    """What of the rows is read, and what is made of that."""

    by_array: TextClause
    by_list: Select[*tuple[Any, ...]]
    answer: Callable[[Sequence[Any]], Found]
    answer_by_driver: Callable[[Sequence[Any], Dialect], Found]


def _by_array(columns: Iterable[str]) -> TextClause:
    names = ", ".join(columns)
    return text(f"SELECT {names} FROM lilota_task WHERE id = ANY(CAST(:ids AS uuid[]))")


def _by_list(*columns: Any) -> Select[*tuple[Any, ...]]:
    return select(*columns).where(Task.id.in_(bindparam("ids", expanding=True)))


def _endings(rows: Sequence[Any]) -> Found:
    return {task_id: partial(Ending, *of_it) for task_id, *of_it in rows}


_TASKS = _Question(
    _by_array(COLUMNS),
    _by_list(*Task.__table__.columns),
    lambda rows: {row.id: partial(task_with, row) for row in rows},
    copies_of,
)
# A tenth of the columns, and none of them decoded.
_ENDINGS = _Question(
    _by_array(("id", "name", "status", "output")),
    _by_list(Task.id, Task.name, Task.status, type_coerce(Task.output, Text)),
    _endings,
    lambda rows, _: _endings(rows),
)


class TaskReader:
    """Reads tasks by their ids: what is asked for during one read goes into the next together.

    A connection stays with it until nobody has asked for a moment, since taking one costs more
    than such a read; but not one of an application's engine, which may have few. It belongs to
    one event loop.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._wanted: deque[tuple[_Question, UUID, asyncio.Future[Any]]] = deque()
        self._reading: asyncio.Task[None] | None = None
        self._direct = Direct() if database.dialect == "postgresql" else None
        self._connect = self._keep if database.makes_connections else Database.connect
        self._kept: AsyncConnection | None = None
        self._plans = KeptPlans()
        self._is_resting = False
        self._rest: asyncio.TimerHandle | None = None

    async def read(self, task_id: UUID) -> Task | None:
        """The task as it is now, for this caller alone, or None."""
        return cast("Task | None", await self._ask(_TASKS, task_id))

    async def read_ending(self, task_id: UUID) -> Ending | None:
        """What `result()` wants of the task as it is now, or None."""
        return cast("Ending | None", await self._ask(_ENDINGS, task_id))

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

    def _ask(self, question: _Question, task_id: UUID) -> asyncio.Future[Any]:
        wanted: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._wanted.append((question, task_id, wanted))
        if self._reading is None or self._reading.done():
            self._reading = self._database.start(self._read_wanted())
        return wanted

    async def _read_wanted(self) -> None:
        while self._wanted:
            question, batch = self._next()
            try:
                found = await self._find(question, list({task_id for task_id, _ in batch}))
                answers = [found[each]() if each in found else None for each, _ in batch]
            except Exception as error:
                for _, wanted in batch:
                    if not wanted.done():
                        wanted.set_exception(error)
                continue
            for (_, wanted), answer in zip(batch, answers, strict=True):
                if not wanted.done():  # cancelled meanwhile
                    wanted.set_result(answer)

    def _next(self) -> tuple[_Question, list[tuple[UUID, asyncio.Future[Any]]]]:
        """Those who have waited longest, as far as they want the same."""
        question = self._wanted[0][0]
        batch: list[tuple[UUID, asyncio.Future[Any]]] = []
        while self._wanted and self._wanted[0][0] is question and len(batch) < _MOST_READ:
            _, task_id, wanted = self._wanted.popleft()
            batch.append((task_id, wanted))
        return question, batch

    async def _find(self, question: _Question, ids: list[UUID]) -> Found:
        async def find(c: AsyncConnection) -> Found:
            if self._direct is not None:
                rows = await self._direct.rows(c, question.by_array, {"ids": ids})
                return question.answer_by_driver(rows, c.dialect)
            return question.answer((await c.execute(question.by_list, {"ids": padded(ids)})).all())

        return await ask(self._database, lambda c: in_one_go(c, find(c)), self._connect)

    @asynccontextmanager
    async def _keep(self, database: Database) -> AsyncIterator[AsyncConnection]:
        """The connection that stays, or a new one when there is none or it has failed."""
        connection = self._kept or await database.acquire_own()
        self._kept = None
        try:
            await self._plans.use(connection)
            yield connection
        except BaseException:
            await discard(connection)
            await connection.close()
            raise
        self._plans.note_use()
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
