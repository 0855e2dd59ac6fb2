"""A migrated database, its store and a writer, on every backend."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator

import pytest

from lilota_async.storage.database import Database
from lilota_async.storage.migrate import migrate
from lilota_async.storage.store import Store
from lilota_async.storage.stores import create_store
from lilota_async.storage.writer import Writer
from tests.storage.support import checked_out


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A migrated and open database; at the end nobody may hold a connection of it."""
    database = Database(database_url)
    await database.open()
    await migrate(database)
    yield database
    left = checked_out(database)
    await database.close()
    assert left == 0
    assert not [each for each in threading.enumerate() if "lilota-connection" in each.name]


@pytest.fixture
def store(database: Database) -> Store:
    """The store of the database's dialect."""
    return create_store(database)


@pytest.fixture
async def writer(database: Database, store: Store) -> AsyncIterator[Writer]:
    """A started writer."""
    async with Writer(database, store, store_timeout=10.0) as writer:
        yield writer
