"""The way to the database: engines, connections and transactions."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import anyio
from sqlalchemy import NullPool, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from lilota_async.errors import (
    ConfigurationError,
    LilotaError,
    SchemaMissing,
    StoreError,
    StoreUnavailable,
)
from lilota_async.storage.failures import describe, is_disconnect, is_missing_table, is_too_large
from lilota_async.storage.keepalive import keep_alive
from lilota_async.storage.threaded import ThreadedConnection
from lilota_async.storage.threads import in_thread
from lilota_async.storage.urls import (
    DialectName,
    Target,
    dialect_of,
    parse_target,
    passwords_of,
    without_passwords,
)

if TYPE_CHECKING:
    from sqlalchemy.engine import URL, Engine

__all__ = ["Database", "begin", "commit", "is_disconnect", "rollback", "transaction"]

T = TypeVar("T")

_EXTRAS = {"asyncmy": "mysql", "psycopg": "psycopg"}
_ENGINE_OPTIONS: dict[str, Any] = {
    "hide_parameters": True,
    "isolation_level": "AUTOCOMMIT",
    "skip_autocommit_rollback": True,
}
# Forbidden plans count as so dear that the JIT would compile for them.
BY_INDEX = ("enable_seqscan = off", "jit = off")
"""What lilota's own connections to PostgreSQL are set to."""
_SQLITE_BUSY = 5
# Without gap locks, so that a claim keeps nobody from inserting.
_BEGIN_MARIADB = ("SET TRANSACTION ISOLATION LEVEL READ COMMITTED", "START TRANSACTION")
_BEGIN = {
    "sqlite": ("BEGIN IMMEDIATE",),
    "postgresql": ("BEGIN ISOLATION LEVEL READ COMMITTED",),  # whatever the default of the role
    "mysql": _BEGIN_MARIADB,
    "mariadb": _BEGIN_MARIADB,
}


class Database:
    """One database, by URL or through the engine of the application.

    Connections are in AUTOCOMMIT; what belongs together goes into `transaction()`. Between
    `open()` and `close()` they come from a pool, and otherwise they are opened and closed
    for each use, so that reading works at any time and leaves nothing behind. A given engine
    is used as it is, and never disposed. The file of SQLite is made by `open()`.

    Example:
        >>> database = Database("sqlite:///lilota.db")
        >>> await database.open()
        >>> async with database.connect() as connection, transaction(connection):
        ...     await store.insert(connection, tasks)
        >>> await database.close()
    """

    def __init__(self, url: str | URL | None = None, *, engine: AsyncEngine | None = None) -> None:
        if (url is None) == (engine is None):
            raise ConfigurationError("Give either a database URL or an engine")
        self.dialect: DialectName
        self._target: Target | None = None
        self._given: AsyncEngine | None = None
        self._pooled: AsyncEngine | None = None
        self._unpooled: AsyncEngine | None = None
        self._blocking: Engine | None = None
        self._work: set[asyncio.Task[Any]] = set()
        self._answered = asyncio.Event()
        if engine is not None and not isinstance(engine, AsyncEngine):
            raise ConfigurationError(
                "engine= takes an AsyncEngine, as create_async_engine() of SQLAlchemy returns it, "
                f"not {type(engine).__name__}; give a URL as db_url="
            )
        if engine is not None:
            self.dialect = dialect_of(engine.url)
            self._given = engine.execution_options(isolation_level="AUTOCOMMIT")
            self.url = engine.url
        elif url is not None:
            self._target = parse_target(url)
            self.dialect = self._target.dialect
            self.url = self._target.url

    def __repr__(self) -> str:
        return f"<Database {self.name}>"

    @property
    def name(self) -> str:
        """The URL without its passwords."""
        return without_passwords(self.url)

    @property
    def makes_connections(self) -> bool:
        """Whether they are its own, and not an application's."""
        return self._given is None

    async def open(self) -> None:
        """Make the pool; the connections come when they are needed.

        Raises ConfigurationError when the driver is missing or the SQLite file cannot be
        made.
        """
        self._answered = asyncio.Event()  # of this event loop
        if self._target is not None and self._pooled is None:
            await self._prepare_file(self._target, creates=True)
            self._pooled = await in_thread(_create_engine, self._target, True)

    async def close(self) -> None:
        """Wait for what is under way, then close the pool with its connections."""
        engine, self._pooled = self._pooled, None
        with anyio.CancelScope(shield=True):
            if self._work:
                await asyncio.wait(self._work)
            if engine is not None:
                await engine.dispose()

    def note_return(self) -> None:
        """It has answered one of those who wait for its return; the others need not wait on."""
        self._answered.set()
        self._answered = asyncio.Event()

    async def wait_for_return(self, timeout: float) -> None:
        """Until it answers somebody else, or for `timeout` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._answered.wait()

    async def undisturbed(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work`, which goes on to its end when the caller is cancelled.

        A driver that is cancelled in the middle of a call has to drop its connection, if it
        does not lose track of it.
        """
        if asyncio.current_task() in self._work:
            return await work  # part of what nobody cancels already
        return await asyncio.shield(self.start(work))

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin `work`, for whose end `close()` waits."""
        task = asyncio.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[AsyncConnection]:
        """An AUTOCOMMIT connection for the time of the block, or StoreUnavailable."""
        connection = await self.acquire()
        try:
            yield connection
        finally:
            await self.undisturbed(connection.close())

    async def acquire(self) -> AsyncConnection:
        """An AUTOCOMMIT connection that the caller closes, or StoreUnavailable."""
        engine = await self._engine()
        return await self._connected(engine.connect())

    async def acquire_own(self) -> AsyncConnection:
        """As `acquire()`, for the writer: on SQLite it has a thread where transactions run."""
        if self.dialect != "sqlite" or self._target is None:
            return await self.acquire()
        await self._engine()  # the file is there
        if self._blocking is None:
            self._blocking = await in_thread(_create_blocking_engine, self._target)
        connection = ThreadedConnection(self._blocking)
        await self._connected(connection.open())
        return cast("AsyncConnection", connection)  # what the storage uses of one

    async def _connected(self, connecting: Awaitable[T]) -> T:
        try:
            return await connecting
        except (TypeError, ImportError) as error:
            raise ConfigurationError(
                f"The driver does not accept {self!r}: {self.describe(error)}"
            ) from error
        except Exception as error:
            raise self.unavailable(error) from error

    def translate(self, error: Exception) -> Exception:
        """What to tell the application about `error`: a StoreError, if a driver raised it."""
        if isinstance(error, LilotaError):
            return error
        if is_disconnect(error):
            return self.unavailable(error)
        if is_too_large(error):
            return StoreError(
                f"The database {self.name} refused a value that is larger than its "
                "max_allowed_packet, every sign that has to be escaped counted twice; raise that "
                "on the server, or lower max_payload_bytes"
            )
        if is_missing_table(error):
            return SchemaMissing(
                f"The database {self.name} has no tables of lilota; start() creates them"
            )
        if isinstance(error, DBAPIError):
            return StoreError(f"The database {self.name} refused: {self.describe(error)}")
        return error

    def unavailable(self, error: BaseException) -> StoreUnavailable:
        """The StoreUnavailable that tells about `error`."""
        if isinstance(error, StoreUnavailable):
            return error
        return StoreUnavailable(
            f"The database {self.name} cannot be used ({self.describe(error)}); "
            "check that it is up and that its URL is right"
        )

    def describe(self, error: BaseException) -> str:
        """The driver's error in one line, without the password."""
        text = describe(error)
        for password in passwords_of(self.url):
            text = text.replace(password, "***")
        return text

    async def _engine(self) -> AsyncEngine:
        engine = self._given or self._pooled
        if engine is not None:
            return engine
        assert self._target is not None
        await self._prepare_file(self._target, creates=False)
        if self._unpooled is None:
            self._unpooled = await in_thread(_create_engine, self._target, False)
        return self._unpooled

    async def _prepare_file(self, target: Target, *, creates: bool) -> None:
        if target.file is not None:
            await in_thread(_open_file, target.file, creates)


def _create_engine(target: Target, pooled: bool) -> AsyncEngine:
    """An engine in AUTOCOMMIT; importing the driver may take a while."""
    options: dict[str, Any] = {} if pooled else {"poolclass": NullPool}
    try:
        engine = create_async_engine(
            target.url,
            connect_args=target.connect_args,
            **_ENGINE_OPTIONS,
            **options,
        )
    except ImportError as error:
        package = target.url.get_driver_name()
        extra = _EXTRAS.get(package.removesuffix("_async"))
        install = f"lilota-async[{extra}]" if extra else package
        raise ConfigurationError(
            f"The database driver {package!r} is not installed; run: pip install '{install}'"
        ) from error
    if target.dialect == "sqlite":
        _set_pragmas(engine.sync_engine, target.synchronous)
    elif target.dialect == "postgresql":
        _go_by_indexes(engine.sync_engine)
        if engine.driver == "asyncpg":
            keep_alive(engine.sync_engine)
    return engine


def _create_blocking_engine(target: Target) -> Engine:
    """One for SQLite whose connections belong to a thread."""
    engine = create_engine(
        target.url.set(drivername="sqlite"),
        connect_args=target.connect_args,
        poolclass=NullPool,
        **_ENGINE_OPTIONS,
    )
    _set_pragmas(engine, target.synchronous)
    return engine


def _go_by_indexes(engine: Engine) -> None:
    # A plan is kept for as long as its connection, and may be of a time when the table was small.
    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        for setting in BY_INDEX:
            cursor.execute(f"SET {setting}")
        cursor.close()


def _set_pragmas(engine: Engine, synchronous: str) -> None:
    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        try:
            cursor.execute(f"PRAGMA synchronous={synchronous}")
            cursor.execute("PRAGMA journal_mode=WAL")
        except Exception as error:
            # Another connection is just switching, for which SQLite does not wait; the mode
            # belongs to the file, so that this one follows.
            if getattr(error, "sqlite_errorcode", None) != _SQLITE_BUSY:
                raise
        finally:
            cursor.close()


def _open_file(path: Path, creates: bool) -> None:
    """See that it can be used; a new one is its owner's alone, as its -wal and -shm are then."""
    flags = os.O_RDWR | (os.O_CREAT if creates else 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        os.close(os.open(path, flags, 0o600))
    except FileNotFoundError:
        if path.parent.is_dir():
            raise SchemaMissing(
                f"The SQLite database {str(path)!r} has no tables of lilota, since there is no "
                "such file; check the path, or call start(), which creates it"
            ) from None
        raise ConfigurationError(
            f"The directory {str(path.parent)!r} of the SQLite database does not exist; create it"
        ) from None
    except OSError as error:
        raise ConfigurationError(
            f"The SQLite database {str(path)!r} cannot be opened for writing "
            f"({error.strerror}); check the path and its permissions"
        ) from error


async def begin(connection: AsyncConnection) -> None:
    """Begin a transaction that may write; on SQLite it holds the write lock from here."""
    for statement in _BEGIN[connection.dialect.name]:
        await connection.exec_driver_sql(statement)


async def commit(connection: AsyncConnection) -> None:
    """Commit what `begin()` began."""
    await connection.exec_driver_sql("COMMIT")


async def rollback(connection: AsyncConnection) -> None:
    """Roll back, or drop a connection that cannot: its transaction must not live on."""
    with anyio.CancelScope(shield=True):
        try:
            await connection.exec_driver_sql("ROLLBACK")
        except Exception:
            await discard(connection)


async def discard(connection: AsyncConnection) -> None:
    """Close the connection for good instead of giving it back to the pool."""
    with anyio.CancelScope(shield=True), suppress(Exception):
        await connection.invalidate()


@asynccontextmanager
async def transaction(connection: AsyncConnection) -> AsyncIterator[None]:
    """BEGIN and COMMIT on an AUTOCOMMIT connection; ROLLBACK when the block raises."""
    try:
        await begin(connection)
        yield
        await commit(connection)
    except Exception:
        await rollback(connection)
        raise
    except BaseException:
        # Cancelled, maybe in the middle of a statement: only the driver knows where it is.
        await discard(connection)
        raise
