"""Rows that are written in the application's own transaction, and begin to count with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import event, inspect, text
from sqlalchemy.exc import SQLAlchemyError, UnboundExecutionError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session

from lilota_async.errors import ConfigurationError
from lilota_async.models.tables import Task
from lilota_async.models.values import TaskId
from lilota_async.options import OnConflict
from lilota_async.storage.database import Database
from lilota_async.storage.store import Store
from lilota_async.storage.transitions import Dependent, NewTask
from lilota_async.storage.urls import dialect_of, without_passwords

if TYPE_CHECKING:
    from sqlalchemy import Connection, Pool
    from sqlalchemy.engine.base import Transaction

CallersSession: TypeAlias = AsyncSession | AsyncConnection | async_scoped_session[Any]

_FIRST_PAUSE = 0.0005
_LONGEST_PAUSE = 0.05
# A failed statement would end a transaction of PostgreSQL's: ask before looking.
_HAS_TABLES = text("SELECT to_regclass('lilota_node') IS NOT NULL")
_IS_HERE = text("SELECT COUNT(*) FROM lilota_node WHERE id = :id")


class Enlistment:
    """Inserts through sessions and connections of the application.

    `on_commit` is called once such a transaction has been committed. What shows that it goes
    to the right database is the row of this node, seen through that connection.
    """

    def __init__(
        self, database: Database, store: Store, node_id: UUID, on_commit: Callable[[], None]
    ) -> None:
        self._database = database
        self._store = store
        self._node_id = node_id
        self._on_commit = on_commit
        self._known: WeakSet[Pool] = WeakSet()
        self._has_rows: WeakKeyDictionary[Connection, bool] = WeakKeyDictionary()
        self._watches: set[asyncio.Task[None]] = set()

    async def insert(self, session: CallersSession, tasks: Sequence[NewTask]) -> None:
        """Write the rows; ConfigurationError, before that, where they do not belong."""
        async with self._writing(session) as connection:
            await self._store.insert(connection, tasks)

    async def insert_unique(
        self, session: CallersSession, task: NewTask, on_conflict: OnConflict
    ) -> TaskId[Any]:
        """Write the row, unless another has its unique key; returns the id that has it then."""
        async with self._writing(session) as connection:
            return await self._store.unique_keys.insert(connection, task, on_conflict)

    async def insert_waiting(self, session: CallersSession, rows: Sequence[Dependent]) -> None:
        """The same for rows that wait for others; TaskNotFound where those are not."""
        async with self._writing(session) as connection:
            await self._store.dependencies.insert(connection, rows)

    @asynccontextmanager
    async def _writing(self, session: CallersSession) -> AsyncIterator[AsyncConnection]:
        connection = await self._connection_of(session)
        await self._check(connection)
        try:
            yield connection
        except SQLAlchemyError as error:
            raise self._database.translate(error) from error
        self._wait_for_commit(connection)

    def close(self) -> None:
        """Tell nobody any more."""
        for watch in self._watches:
            watch.cancel()

    async def _connection_of(self, session: CallersSession) -> AsyncConnection:
        if isinstance(session, AsyncConnection):
            return session
        if not isinstance(session, AsyncSession | async_scoped_session):
            raise ConfigurationError(
                "session= takes an AsyncSession or an AsyncConnection of SQLAlchemy, "
                f"not {type(session).__name__}"
            )
        try:
            return await session.connection(bind_arguments={"mapper": inspect(Task)})
        except UnboundExecutionError as error:
            raise ConfigurationError(
                "The session= has no engine for the table of tasks; give AsyncSession() that of "
                "lilota's database as bind, or in binds={Task: engine}"
            ) from error

    async def _check(self, connection: AsyncConnection) -> None:
        pool = connection.engine.pool
        if pool in self._known:
            return
        try:
            is_here = (
                dialect_of(connection.engine.url) == self._database.dialect
                and await self._has_tables(connection)
                and await self._is_here(connection)
            )
        except SQLAlchemyError as error:
            raise self._database.translate(error) from error
        if not is_here:
            name = without_passwords(connection.engine.url)
            raise ConfigurationError(
                f"The session= is connected to {name}, where the tables of this lilota are not; "
                f"use a session of {self._database.name}, or leave session= out"
            )
        self._known.add(pool)

    async def _has_tables(self, connection: AsyncConnection) -> bool:
        if self._database.dialect == "postgresql":
            return bool((await connection.execute(_HAS_TABLES)).scalar())
        tables = await connection.run_sync(lambda c: inspect(c).has_table("lilota_node"))
        return bool(tables)

    async def _is_here(self, connection: AsyncConnection) -> bool:
        key = self._store.dialect.key(self._node_id)
        return bool((await connection.execute(_IS_HERE, {"id": key})).scalar())

    def _wait_for_commit(self, connection: AsyncConnection) -> None:
        own: Any = connection.sync_connection
        if own.dialect.detect_autocommit_setting(own.connection.dbapi_connection):
            self._on_commit()  # every statement is a transaction
        if own not in self._has_rows:
            event.listen(own, "commit", self._on_committing)
        self._has_rows[own] = True

    def _on_committing(self, connection: Connection) -> None:
        """SQLAlchemy is about to send the COMMIT; it tells nobody when that is done."""
        transaction = connection.get_transaction()
        if self._has_rows.get(connection) and transaction is not None:
            # After a rollback this may be another transaction's: then there is nothing to find.
            self._has_rows[connection] = False
            watch = asyncio.get_running_loop().create_task(self._watch(transaction))
            self._watches.add(watch)
            watch.add_done_callback(self._watches.discard)

    async def _watch(self, transaction: Transaction) -> None:
        pause = _FIRST_PAUSE
        while transaction.is_active:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        self._on_commit()
