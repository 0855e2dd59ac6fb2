"""Bring the tables to this version, or check that they are."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, inspect, text

from lilota_async.errors import LilotaError, SchemaMissing, SchemaTooNew, StoreUnavailable
from lilota_async.storage.database import Database, transaction
from lilota_async.storage.threads import in_thread

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy.ext.asyncio import AsyncConnection

VERSION_TABLE = "lilota_alembic_version"
REVISIONS = ("0001",)
"""Every revision that this version knows, oldest first; a newer one is refused."""

_HEAD = REVISIONS[-1]
_SELECT_REVISION = text(f"SELECT version_num FROM {VERSION_TABLE}")
_CREATE_VERSION_TABLE = f"""
    CREATE TABLE IF NOT EXISTS {VERSION_TABLE} (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"""
_LOCK_KEY = 0x6C696C6F7461  # "lilota"
_LOCK_SECONDS = 60
_alembic_lock = threading.Lock()  # it keeps what it works on in variables of its modules
_LOOK_SECONDS = 0.01


async def migrate(database: Database) -> None:
    """Create the tables or bring them to this version; does nothing when they are there.

    Applications that start at the same time wait for each other. Raises SchemaTooNew for
    tables of a newer version, and leaves them alone.
    """
    await database.undisturbed(_migrate(database))


async def check(database: Database) -> None:
    """Raise SchemaMissing or SchemaTooNew unless the tables are those of this version."""
    await database.undisturbed(_check(database))


async def _migrate(database: Database) -> None:
    async with _connection(database) as connection:
        if _is_head(await connection.run_sync(_read_revision)):
            return
        config = await in_thread(_alembic_config)
        async with _locked(connection, database.dialect):
            if not _is_head(await connection.run_sync(_read_revision)):
                async with _alone():
                    await connection.run_sync(_upgrade, config)


async def _check(database: Database) -> None:
    async with _connection(database) as connection:
        revision = await connection.run_sync(_read_revision)
    if _is_head(revision):
        return
    found = "has no tables of lilota" if revision is None else f"has the revision {revision!r}"
    raise SchemaMissing(
        f"The database {found}, but this lilota-async needs the revision {_HEAD!r}; "
        "start() with migrate=True creates or upgrades them"
    )


def _is_head(revision: str | None) -> bool:
    if revision is not None and revision not in REVISIONS:
        raise SchemaTooNew(
            f"The database has the revision {revision!r}, which this lilota-async does not "
            f"know (its newest is {_HEAD!r}); upgrade lilota-async"
        )
    return revision == _HEAD


@asynccontextmanager
async def _connection(database: Database) -> AsyncIterator[AsyncConnection]:
    try:
        async with database.connect() as connection:
            yield connection
    except LilotaError:
        raise
    except Exception as error:
        raise database.translate(error) from error


def _read_revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    revision: str | None = connection.execute(_SELECT_REVISION).scalar()
    return revision


@asynccontextmanager
async def _locked(connection: AsyncConnection, dialect: str) -> AsyncIterator[None]:
    """One migration at a time; on SQLite the transaction itself is the lock."""
    if dialect == "mariadb":
        async with _mariadb_lock(connection), transaction(connection):
            yield
        return
    async with transaction(connection):
        if dialect == "postgresql":
            await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK_KEY})")
        yield


@asynccontextmanager
async def _alone() -> AsyncIterator[None]:
    """One migration at a time in this process, on whichever database, loop and thread."""
    while not _alembic_lock.acquire(blocking=False):  # noqa: ASYNC110 - of threads, too
        await asyncio.sleep(_LOOK_SECONDS)
    try:
        yield
    finally:
        _alembic_lock.release()


@asynccontextmanager
async def _mariadb_lock(connection: AsyncConnection) -> AsyncIterator[None]:
    # DDL commits on MariaDB, so a lock of the transaction would not last; names of locks
    # are shared by all databases of a server.
    name = "CONCAT('lilota.', MD5(DATABASE()))"
    taken = await connection.exec_driver_sql(f"SELECT GET_LOCK({name}, {_LOCK_SECONDS})")
    if taken.scalar() != 1:
        raise StoreUnavailable(
            f"Another application has been migrating the database for {_LOCK_SECONDS} s; "
            "start again when it is done"
        )
    try:
        yield
    finally:
        await connection.exec_driver_sql(f"DO RELEASE_LOCK({name})")


def _alembic_config() -> Config:
    """Built in memory: no alembic.ini, and no touching of the logging of the application."""
    # Loads Alembic with all that `_upgrade` needs of it; most starts need nothing of it.
    import alembic.command  # noqa: F401
    from alembic.config import Config

    config = Config()
    location = str(Path(__file__).with_name("migrations"))
    config.set_main_option("script_location", location.replace("%", "%%"))
    return config


def _upgrade(connection: Connection, config: Config) -> None:
    import alembic.command

    if connection.dialect.name in ("mysql", "mariadb"):
        # Alembic gives its primary key a name, of which the server makes a warning.
        connection.exec_driver_sql(_CREATE_VERSION_TABLE)
    attributes: dict[str, Any] = config.attributes
    attributes["connection"] = connection
    alembic.command.upgrade(config, "head")
