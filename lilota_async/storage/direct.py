"""The statements that every task needs, handed to asyncpg itself where it is the driver.

SQLAlchemy's way to it takes longer than the driver needs for such a statement. Listeners of an
application's engine hear nothing of these.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError

from lilota_async.storage.database import discard

if TYPE_CHECKING:
    from sqlalchemy import TextClause
    from sqlalchemy.ext.asyncio import AsyncConnection

Parameters = Mapping[str, Any]


class Direct:
    """Runs constant statements, of which it keeps the driver's form.

    Rows are read by position, since those of asyncpg have no attributes. Errors are those that
    SQLAlchemy would raise.
    """

    def __init__(self) -> None:
        self._compiled: dict[TextClause, tuple[str, Sequence[str]]] = {}

    async def rows(
        self, c: AsyncConnection, statement: TextClause, parameters: Parameters
    ) -> Sequence[Any]:
        """The rows that the statement returns."""
        driver = _asyncpg_below(c)
        if driver is None:
            return (await c.execute(statement, parameters)).all()
        rows: Sequence[Any] = await self._send(c, driver.fetch, statement, parameters)
        return rows

    async def count(self, c: AsyncConnection, statement: TextClause, parameters: Parameters) -> int:
        """How many rows the statement has written."""
        driver = _asyncpg_below(c)
        if driver is None:
            return (await c.execute(statement, parameters)).rowcount
        status = await self._send(c, driver.execute, statement, parameters)
        return int(status.rpartition(" ")[2])  # such as "UPDATE 3"

    def is_closed(self, c: AsyncConnection) -> bool:
        """Whether asyncpg has heard that the server has closed the connection."""
        driver = _asyncpg_below(c)
        return driver is not None and driver.is_closed()

    async def _send(
        self,
        c: AsyncConnection,
        send: Callable[..., Awaitable[Any]],
        statement: TextClause,
        parameters: Parameters,
    ) -> Any:
        sql, arguments = self._in_its_form(c, statement, parameters)
        try:
            return await send(sql, *arguments)
        except Exception as error:
            is_closed = await _give_up_if_closed(c)
            if not _is_of_asyncpg(error):
                raise  # of the network, as SQLAlchemy does
            raise DBAPIError(
                sql, None, error, hide_parameters=True, connection_invalidated=is_closed
            ) from error
        except BaseException:
            await discard(c)  # cancelled: the server may still be at it
            raise

    def _in_its_form(
        self, c: AsyncConnection, statement: TextClause, parameters: Parameters
    ) -> tuple[str, list[Any]]:
        """The statement with `$1`, and the parameters in that order."""
        if statement not in self._compiled:
            compiled = statement.compile(dialect=c.dialect)
            self._compiled[statement] = (compiled.string, compiled.positiontup or ())
        sql, names = self._compiled[statement]
        return sql, [parameters[name] for name in names]


def _asyncpg_below(c: AsyncConnection) -> Any:
    """asyncpg's connection, or None where the statement has to go through SQLAlchemy."""
    own = c.sync_connection
    if own is None or own.invalidated or own.dialect.driver != "asyncpg":
        return None
    pooled: Any = own.connection
    # Without AUTOCOMMIT, SQLAlchemy begins a transaction before its first statement.
    if not own.dialect.detect_autocommit_setting(pooled.dbapi_connection):
        return None
    return pooled.driver_connection


async def _give_up_if_closed(c: AsyncConnection) -> bool:
    driver = _asyncpg_below(c)
    is_closed = driver is None or driver.is_closed()
    if is_closed:
        await discard(c)
    return is_closed


def _is_of_asyncpg(error: Exception) -> bool:
    import asyncpg  # not at the top: with another driver it is slow to import for nothing

    return isinstance(
        error, asyncpg.PostgresError | asyncpg.InterfaceError | asyncpg.InternalClientError
    )
