"""Deleting what has ended long ago: in small batches, by the index of what has ended."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from lilota_async.errors import StoreError
from lilota_async.models.values import FINAL_STATUSES, TaskStatus
from lilota_async.storage.database import Database, transaction
from lilota_async.storage.failures import is_conflict
from lilota_async.storage.reading import by_index, names_of_tasks
from lilota_async.storage.stores import create_store

if TYPE_CHECKING:
    from sqlalchemy import TextClause

    from lilota_async.storage.dialect import Dialect

ROWS_PER_DELETE = 500
_TRIES = 5  # of a batch that is in conflict with another transaction


async def prune(
    database: Database,
    older_than: float,
    *,
    status: TaskStatus | None = None,
    names: Iterable[str] | None = None,
) -> int:
    """Delete what has ended more than so many seconds ago; how many rows that were.

    Without `names` those of all tasks. Each batch is a transaction of its own.
    """
    if names is None:
        names = await database.undisturbed(_names(database))
    deleted = 0
    for name in names:
        for each in FINAL_STATUSES if status is None else (status,):
            batch = ROWS_PER_DELETE
            while batch == ROWS_PER_DELETE:
                batch = await database.undisturbed(_delete(database, older_than, each, name))
                deleted += batch
    return deleted


async def delete_some(
    database: Database, older_than: float, *, status: TaskStatus, name: str
) -> bool:
    """Delete one batch of what has ended so many seconds ago; True when there may be more."""
    deleted = await database.undisturbed(_delete(database, older_than, status, name))
    return deleted == ROWS_PER_DELETE


async def _delete(database: Database, older_than: float, status: TaskStatus, name: str) -> int:
    statement = _statement(database.dialect, create_store(database).dialect)
    parameters = {
        "name": name,
        "status": status.value,
        "age": -older_than,
        "limit": ROWS_PER_DELETE,
    }
    for _ in range(_TRIES - 1):
        try:
            return await _execute(database, statement, parameters)
        except StoreError as error:
            if not is_conflict(error.__cause__ or error):
                raise
    return await _execute(database, statement, parameters)


async def _execute(database: Database, statement: TextClause, parameters: dict[str, Any]) -> int:
    async with by_index(database) as connection:
        if database.dialect in ("sqlite", "postgresql"):
            return int((await connection.execute(statement, parameters)).rowcount)
        # Without the locks between rows that MariaDB takes outside of such a transaction, on
        # which tasks that come to their end would have to wait.
        async with transaction(connection):
            return int((await connection.execute(statement, parameters)).rowcount)


def _statement(database: str, dialect: Dialect) -> TextClause:
    """From the oldest on. A row whose key is taken still, or whose end others wait for, stays."""
    condition = f"""name = :name AND status = :status AND end_date_time < {dialect.later(":age")}
        AND (unique_until IS NULL OR unique_until <= {dialect.now})
        AND NOT EXISTS (SELECT 1 FROM lilota_dependency WHERE on_id = lilota_task.id)"""
    some = "ORDER BY end_date_time LIMIT :limit"
    if database == "postgresql":
        # What another node is deleting, or somebody is just retrying, is left to them.
        rows = f"SELECT id FROM lilota_task WHERE {condition} {some} FOR UPDATE SKIP LOCKED"
        return text(f"DELETE FROM lilota_task WHERE id = ANY(ARRAY({rows}))")
    if database == "sqlite":
        rows = f"SELECT id FROM {dialect.ended_table} WHERE {condition} {some}"
        return text(f"DELETE FROM lilota_task WHERE id IN ({rows})")
    return text(f"DELETE FROM lilota_task WHERE {condition} {some}")


async def _names(database: Database) -> list[str]:
    async with by_index(database) as connection:
        return await names_of_tasks(connection)
