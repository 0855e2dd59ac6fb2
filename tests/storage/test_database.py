"""URLs, engines, connections and transactions."""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
import stat
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import QueuePool

from lilota_async.errors import ConfigurationError
from lilota_async.storage.database import Database, transaction
from lilota_async.storage.keepalive import (
    BETWEEN_SECONDS,
    IDLE_SECONDS,
    PROBES,
    UNANSWERED_SECONDS,
)
from lilota_async.storage.migrate import migrate
from lilota_async.storage.stores import create_store
from lilota_async.storage.urls import parse_target
from tests.storage.proxy import Proxy
from tests.storage.support import checked_out, eventually, insert, new_task, raw, row_of

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("given", "mapped", "dialect"),
    [
        ("sqlite:///a.db", "sqlite+aiosqlite:///a.db", "sqlite"),
        ("sqlite+pysqlite:///a.db", "sqlite+aiosqlite:///a.db", "sqlite"),
        ("postgresql://u@h/d", "postgresql+asyncpg://u@h/d", "postgresql"),
        ("postgres://u@h/d", "postgresql+asyncpg://u@h/d", "postgresql"),
        ("postgresql+psycopg2://u@h/d", "postgresql+asyncpg://u@h/d", "postgresql"),
        ("postgresql+psycopg://u@h/d", "postgresql+psycopg://u@h/d", "postgresql"),
        ("postgresql://h/d?sslmode=require", "postgresql+asyncpg://h/d?ssl=require", "postgresql"),
        ("mysql+pymysql://u@h/d", "mysql+asyncmy://u@h/d?charset=utf8mb4", "mariadb"),
        ("mariadb://u@h/d", "mysql+asyncmy://u@h/d?charset=utf8mb4", "mariadb"),
    ],
)
def test_urls_are_mapped_to_async_drivers(given: str, mapped: str, dialect: str) -> None:
    """The URL of a synchronous driver is understood."""
    database = Database(given)
    assert database.url.render_as_string(hide_password=False) == mapped
    assert database.dialect == dialect


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("oracle://u:s3cret@h/d", "SQLite, PostgreSQL or MariaDB"),
        ("s3cret", "cannot be read"),
        ("sqlite://", "use a file"),
        ("sqlite:///:memory:", "use a file"),
        ("sqlite:///file::memory:?cache=shared&uri=true", "use a file"),
        ("sqlite:///a.db?synchronous=s0metimes", "OFF, NORMAL, FULL"),
        ("postgresql://u:s3cret@h/d?connect_timeout=soon", "number of seconds"),
        ("postgresql://u:s3cret@h/d?statement_cache_size=none", "whole number"),
        ("postgresql://u:s3cret@h/d?connect_timeout=-1", "number of seconds"),
        ("postgresql://u:s3cret@h/d?connect_timeout=nan", "number of seconds"),
        ("mysql://u:s3cret@h/d?connect_timeout=soon", "whole number"),
        ("mysql://u:s3cret@h:3306/", "no database on it"),
        ("sqlite:///a.db?timeout=soon", "number of seconds"),
        ("sqlite:///a\0b", "cannot be read"),
        ("sqlite:///\ud800", "cannot be read"),
        ("postgresql://\ud800:s3cret@h/d", "cannot be read"),
    ],
)
def test_what_cannot_work_is_refused(url: str, reason: str) -> None:
    """The error says what to give instead, without the password."""
    with pytest.raises(ConfigurationError, match=reason) as caught:
        Database(url)
    assert "s3cret" not in str(caught.value)


def test_an_old_sqlite_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names what is needed, before any statement fails."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 32, 3))
    with pytest.raises(ConfigurationError, match=r"3\.33 or later"):
        Database("sqlite:///a.db")


def test_exactly_one_of_url_and_engine(tmp_path: Path) -> None:
    """None and both are mistakes."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'a.db'}")
    with pytest.raises(ConfigurationError):
        Database()
    with pytest.raises(ConfigurationError):
        Database("sqlite:///a.db", engine=engine)


async def test_a_missing_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedy is a command."""
    for driver, url, extra in (
        ("asyncmy", "mysql://u@h/d", "mysql"),
        ("psycopg", "postgresql+psycopg://u@h/d", "psycopg"),
    ):
        monkeypatch.setitem(sys.modules, driver, None)
        with pytest.raises(ConfigurationError, match=rf"lilota-async\[{extra}\]"):
            await Database(url).open()


async def test_the_constructor_touches_nothing(tmp_path: Path) -> None:
    """No file before open(), and then one for the owner only, with its helpers."""
    path = tmp_path / "lilota.db"
    database = Database(f"sqlite:///{path}")
    assert not path.exists()
    await database.open()
    await migrate(database)
    await insert(database, create_store(database), [new_task()])
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    await database.close()
    assert modes == {"lilota.db": 0o600, "lilota.db-wal": 0o600, "lilota.db-shm": 0o600}


async def test_sqlite_places_that_cannot_work(tmp_path: Path) -> None:
    """A missing directory, or a directory in place of a file, is said at open()."""
    with pytest.raises(ConfigurationError, match="does not exist"):
        await Database(f"sqlite:///{tmp_path / 'none' / 'a.db'}").open()
    with pytest.raises(ConfigurationError, match="cannot be opened"):
        await Database(f"sqlite:///{tmp_path}").open()


async def test_sqlite_settings(tmp_path: Path) -> None:
    """WAL, FULL unless the URL says otherwise, and time to wait for another writer."""
    for query, synchronous in (("", 2), ("?synchronous=normal", 1)):
        database = Database(f"sqlite:///{tmp_path / 'a.db'}{query}")
        await database.open()
        await database.close()
        assert await raw(database, "PRAGMA journal_mode") == [("wal",)]
        assert await raw(database, "PRAGMA synchronous") == [(synchronous,)]
        assert await raw(database, "PRAGMA busy_timeout") == [(10_000,)]


async def test_a_transaction_commits_or_rolls_back(database: Database) -> None:
    """All of the block, or nothing of it."""
    store = create_store(database)
    kept, lost = new_task(), new_task()
    await insert(database, store, [kept])

    async def fail() -> None:
        async with database.connect() as connection, transaction(connection):
            await store.insert(connection, [lost])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await raw(database, "SELECT count(*) FROM lilota_task") == [(1,)]
    async with database.connect() as connection:
        await store.insert(connection, [lost])
    assert await raw(database, "SELECT count(*) FROM lilota_task") == [(2,)]


async def test_a_cancelled_transaction_leaves_nothing_open(database: Database) -> None:
    """Its connection is dropped with it, and its locks are free."""
    store = create_store(database)
    inside = asyncio.Event()

    async def hold() -> None:
        async with database.connect() as connection, transaction(connection):
            await store.insert(connection, [new_task()])
            inside.set()
            await asyncio.Event().wait()

    holder = asyncio.create_task(hold())
    await inside.wait()
    holder.cancel()
    await asyncio.wait([holder])
    assert checked_out(database) == 0
    await insert(database, store, [new_task()])
    assert await raw(database, "SELECT count(*) FROM lilota_task") == [(1,)]


async def test_a_given_engine_is_used_and_kept(database_url: str) -> None:
    """The application's pool serves lilota too, and close() leaves it alone."""
    engine = create_async_engine(database_url, pool_size=2, max_overflow=0)
    database = Database(engine=engine)
    await database.open()
    await migrate(database)
    store = create_store(database)
    task = new_task()
    await insert(database, store, [task])
    await database.close()
    assert (await row_of(database, task.id)).name == "add"
    assert isinstance(engine.pool, QueuePool)
    assert engine.pool.checkedout() == 0
    assert engine.pool.checkedin() > 0
    async with engine.connect() as connection:
        assert connection.in_transaction() is False
        # The application's own connections are no AUTOCOMMIT ones for it.
        assert await connection.get_isolation_level() != "AUTOCOMMIT"
    await engine.dispose()


async def test_closed_leaves_no_thread(database: Database) -> None:
    """The threads of aiosqlite end with their connections."""
    await row_count(database)
    await database.close()

    async def no_thread() -> bool:
        return not any("_connection_worker" in thread.name for thread in threading.enumerate())

    await eventually(no_thread)
    await row_count(database)
    await eventually(no_thread)
    await database.open()


async def row_count(database: Database) -> int:
    """How many tasks there are."""
    ((count,),) = await raw(database, "SELECT count(*) FROM lilota_task")
    return int(count)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_server_that_has_vanished_is_noticed(postgresql_url: str, driver: str) -> None:
    """The kernel asks on an idle connection, and gives one up where nothing arrives."""
    async with Proxy(postgresql_url) as proxy:
        database = Database(make_url(proxy.url).set(drivername=f"postgresql+{driver}"))
        await database.open()
        async with database.connect() as connection:
            driven: Any = (await connection.get_raw_connection()).driver_connection
            if driver == "psycopg":
                descriptor = driven.pgconn.socket
            else:
                descriptor = driven._transport.get_extra_info("socket").fileno()
            with socket.socket(fileno=os.dup(descriptor)) as found:
                assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                for option, value in (
                    (socket.TCP_KEEPIDLE, IDLE_SECONDS),
                    (socket.TCP_KEEPINTVL, BETWEEN_SECONDS),
                    (socket.TCP_KEEPCNT, PROBES),
                    (socket.TCP_USER_TIMEOUT, 1000 * UNANSWERED_SECONDS),
                ):
                    assert found.getsockopt(socket.IPPROTO_TCP, option) == value
        await database.close()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hunter2@127.0.0.1:1/x",
        "postgresql://127.0.0.1:1/x?user=u&password=hunter2",
        "postgresql+psycopg://127.0.0.1:1/x?user=u&password=hunter2",
        "postgresql+psycopg://127.0.0.1:1/x?sslpassword=hunter2",
        "mysql://127.0.0.1:1/x?user=u&passwd=hunter2",
    ],
)
async def test_no_password_is_told(url: str) -> None:
    """Wherever in the URL it stands."""
    database = Database(url)
    assert "hunter2" not in f"{database!r} {database.name}"
    assert "hunter2" not in database.describe(OSError("no user hunter2"))
    assert "127.0.0.1" in database.name


def test_a_password_that_is_not_encoded_is_told_to_nobody() -> None:
    """What follows its first @ would be taken for a part of the host."""
    with pytest.raises(ConfigurationError, match="percent-encoded") as refused:
        parse_target("postgresql://u:hunter2@secret@host/x")
    assert "secret" not in str(refused.value)


async def test_plans_go_by_indexes(database_url: str) -> None:
    """On PostgreSQL, over connections of lilota's own: a plan may be older than most rows."""
    if not database_url.startswith("postgresql"):
        pytest.skip("the others are told the index")
    engine = create_async_engine(database_url)
    own, given = Database(database_url), Database(engine=engine)
    asked = "SELECT current_setting('enable_seqscan')"
    assert await raw(own, asked) == [("off",)]
    await own.open()
    assert await raw(own, asked) == [("off",)]
    await own.close()
    assert await raw(given, asked) == [("on",)]
    await engine.dispose()
