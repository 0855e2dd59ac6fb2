"""Reading tasks: rows become detached `Task` objects, usable without a connection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import msgspec
from sqlalchemy import Select, Text, bindparam, literal_column, select, text, type_coerce
from sqlalchemy.orm import Session

from lilota_async.errors import StoreUnavailable
from lilota_async.models.tables import Task
from lilota_async.models.values import TaskId, TaskStatus
from lilota_async.storage.backlog import find_full
from lilota_async.storage.database import Database, transaction
from lilota_async.storage.failures import is_disconnect
from lilota_async.storage.reading import by_index, by_index_in_transaction
from lilota_async.storage.stores import create_store
from lilota_async.storage.transitions import Bound, BoundedInsert

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection

T = TypeVar("T")

# An id has the time of the node that made it, and the row that of the database.
_CLOCKS_APART = timedelta(hours=1)
# So many are decoded in one go, which bounds for how long the event loop stands still.
_ROWS_AT_A_TIME = 250
# Padded to one of these, the ids of a lookup make few different statements.
_LOOKUP_SIZES = (1, 8, 64, 512)


async def get_task(database: Database, task_id: UUID) -> Task | None:
    """The task with this id, or None."""
    rows = await read(database, select(Task).where(Task.id == task_id))
    return rows[0][0] if rows else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which tasks; None for all. They have each of the `tags`.

    They were created at `created_after` or later, and before `created_before`.
    """

    status: TaskStatus | None = None
    name: str | None = None
    tags: tuple[str, ...] = ()
    created_after: datetime | None = None
    created_before: datetime | None = None


_ALL = Selection()


async def get_tasks(
    database: Database,
    selection: Selection = _ALL,
    *,
    after: UUID | None = None,
    limit: int | None = None,
) -> list[Task]:
    """The tasks from old to new; the next page comes `after` the id of the last one."""
    statement = listing(database.dialect, selection.status, after)
    statement = narrowed(statement, database.dialect, selection)
    wanted = set(selection.tags)
    if limit is not None and limit <= _ROWS_AT_A_TIME:
        rows = await read(database, statement.limit(limit), by_index)
        found = [task for (task,) in rows if wanted <= _tags(task)]
        if len(found) == len(rows):
            return found  # mostly: what is written as the tags are is nothing else
    if limit is not None and not wanted:
        statement = statement.limit(limit)
    stream = partial(_stream, statement=statement, wanted=wanted, limit=limit)
    return await ask(database, lambda c: c.run_sync(stream), by_index_in_transaction)


async def delete_task(database: Database, task_id: UUID) -> bool:
    """Delete a task that does not run; False when there is none. Raises TaskIsRunning."""
    return await database.undisturbed(_delete(database, task_id))


async def find_full_bound(database: Database, insert: BoundedInsert) -> Bound | None:
    """The bound that leaves no room for the rows, or None."""

    async def find() -> Bound | None:
        async with by_index(database) as connection:
            return await find_full(create_store(database).dialect, connection, insert)

    return await database.undisturbed(find())


async def get_states(
    database: Database, ids: Sequence[UUID]
) -> dict[TaskId[Any], tuple[TaskStatus, int]]:
    """Status and progress in percent of many tasks; an id without a row is left out."""
    states: dict[TaskId[Any], tuple[TaskStatus, int]] = {}
    columns = select(Task.id, Task.status, Task.progress_percentage)
    for chunk in _lookups(ids):
        statement = columns.where(Task.id.in_(chunk))
        for task_id, status, progress in await read(database, statement):
            states[task_id] = (status, progress)
    return states


def listing(
    dialect: str,
    status: TaskStatus | None,
    after: UUID | None = None,
    *,
    newest_first: bool = False,
) -> Select[Task]:
    """Tasks in the order of their ids; of one status by an index without completed rows.

    The status stands in the statement as it is: of a bound value no database can know that a
    partial index has all of its rows.
    """
    key = _key(dialect, status)
    statement = select(Task).order_by(key.desc() if newest_first else key)
    if after is not None:
        statement = statement.where(key < after if newest_first else key > after)
    if status is None:
        return statement
    literal = bindparam(None, status, type_=Task.status.type, literal_execute=True)
    statement = statement.where(Task.status == literal)
    if status is TaskStatus.COMPLETED:
        return statement  # most rows are, and they are read in the order of their ids
    if status in (TaskStatus.FAILED, TaskStatus.CANCELLED):
        statement = statement.where(text("status IN ('failed', 'cancelled')"))
    for name in ("mysql", "mariadb"):  # theirs is one index that begins with the status
        statement = statement.with_hint(Task, "FORCE INDEX (ix_lilota_task_pending)", name)
    return statement


def narrowed(statement: Select[Task], dialect: str, selection: Selection) -> Select[Task]:
    """By name, by time, which the ids tell about, and roughly by tags, which stand in JSON."""
    key = _key(dialect, selection.status)
    if selection.name is not None:
        name: Any = Task.name
        if dialect == "sqlite" and selection.status not in (None, TaskStatus.COMPLETED):
            name = literal_column("+lilota_task.name", Task.name.type)  # as in `_key`
        statement = statement.where(name == selection.name)
    for tag in selection.tags:
        written = msgspec.json.encode(tag).decode()
        statement = statement.where(type_coerce(Task.tags, Text).contains(written, autoescape=True))
    if selection.created_after is not None:
        statement = statement.where(
            Task.created_at >= selection.created_after,
            key >= TaskId.earliest_at(selection.created_after - _CLOCKS_APART),
        )
    if selection.created_before is not None:
        statement = statement.where(
            Task.created_at < selection.created_before,
            key < TaskId.earliest_at(selection.created_before + _CLOCKS_APART),
        )
    return statement


def _key(dialect: str, status: TaskStatus | None) -> Any:
    """The id; for statuses with an index in another order so that none of ids fits it.

    The database would go through all rows for the sake of their order.
    """
    if status in (TaskStatus.PENDING, TaskStatus.RUNNING):
        if dialect == "sqlite":
            return literal_column("+lilota_task.id", Task.id.type)
        if dialect == "postgresql":
            return literal_column(f"NULLIF(lilota_task.id, '{UUID(int=0)}')", Task.id.type)
    return Task.id


def _tags(task: Task) -> set[str]:
    return set(task.tags) if isinstance(task.tags, list) else set()


async def _delete(database: Database, task_id: UUID) -> bool:
    try:
        async with database.connect() as connection, transaction(connection):
            return await create_store(database).delete(connection, task_id)
    except Exception as error:
        raise database.translate(error) from error


def _lookups(ids: Sequence[UUID]) -> Iterator[list[UUID]]:
    largest = _LOOKUP_SIZES[-1]
    for start in range(0, len(ids), largest):
        yield padded(list(ids[start : start + largest]))


def padded(ids: list[UUID]) -> list[UUID]:
    """So many of them that a statement for them comes in few lengths."""
    size = next(size for size in _LOOKUP_SIZES if size >= len(ids))
    return ids + [ids[-1]] * (size - len(ids))


async def read(
    database: Database,
    statement: Select[*tuple[Any, ...]],
    connect: Callable[[Database], AbstractAsyncContextManager[AsyncConnection]] = Database.connect,
) -> Sequence[Any]:
    """The rows of a select, to whose end it runs even when the caller is cancelled."""
    return await ask(database, lambda c: c.run_sync(_select, statement), connect)


async def ask(
    database: Database,
    question: Callable[[AsyncConnection], Awaitable[T]],
    connect: Callable[[Database], AbstractAsyncContextManager[AsyncConnection]] = Database.connect,
) -> T:
    """Put a question that only reads. A connection that turns out to be dead is replaced once."""
    return await database.undisturbed(_ask(database, question, connect))


async def _ask(
    database: Database,
    question: Callable[[AsyncConnection], Awaitable[T]],
    connect: Callable[[Database], AbstractAsyncContextManager[AsyncConnection]],
) -> T:
    try:
        try:
            return await _ask_once(connect(database), question)
        except StoreUnavailable:
            raise
        except Exception as error:
            if not is_disconnect(error):
                raise
            return await _ask_once(connect(database), question)
    except Exception as error:
        raise database.translate(error) from error


async def _ask_once(
    connected: AbstractAsyncContextManager[AsyncConnection],
    question: Callable[[AsyncConnection], Awaitable[T]],
) -> T:
    async with connected as connection:
        return await question(connection)


def _select(connection: Connection, statement: Select[*tuple[Any, ...]]) -> Sequence[Any]:
    with Session(bind=connection, expire_on_commit=False) as session:
        return session.execute(statement).all()


def _stream(
    connection: Connection, *, statement: Select[Task], wanted: set[str], limit: int | None
) -> list[Task]:
    """The first `limit` tasks that have the wanted tags, through a cursor of the server.

    Not page by page: where no index has the order, each page would sort all that there is.
    """
    options = {"yield_per": _ROWS_AT_A_TIME}
    with (
        Session(bind=connection, expire_on_commit=False) as session,
        session.execute(statement, execution_options=options) as rows,
    ):
        found = (task for (task,) in rows if not wanted or wanted <= _tags(task))
        return list(islice(found, limit))
