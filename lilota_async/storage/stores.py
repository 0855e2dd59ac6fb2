"""The store for a database: a dialect's module is imported only where it is used."""

from __future__ import annotations

from lilota_async.storage.database import Database
from lilota_async.storage.store import Store


def create_store(database: Database) -> Store:
    """The store for the dialect of `database`."""
    if database.dialect == "postgresql":
        from lilota_async.storage.postgresql import PostgresqlStore

        return PostgresqlStore()
    if database.dialect == "sqlite":
        from lilota_async.storage.sqlite import SqliteStore

        return SqliteStore()
    from lilota_async.storage.mariadb import MariadbStore

    return MariadbStore()
