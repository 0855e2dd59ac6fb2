"""Inserts while not too many tasks wait: counted and written by one node at a time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, text

from lilota_async.models.types import TaskIdType
from lilota_async.models.values import TaskId
from lilota_async.storage.dialect import Dialect
from lilota_async.storage.store import Store
from lilota_async.storage.transitions import Bound, BoundedInsert, NewTask

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

LOCK_PAUSE = 0.005
LONGEST_WAIT = 0.5


async def insert_bounded(
    store: Store, c: AsyncConnection, inserts: Sequence[BoundedInsert]
) -> list[Bound | set[TaskId[Any]]]:
    """nothing -> pending, or for each insert the bound that leaves no room for it.

    Otherwise what `Store.insert()` returns of its rows. Belongs into a transaction, at its
    beginning: the lock holds until its end, so that the next one counts what this one has
    written.
    """
    # Whoever waits for a unique key, perhaps that of a transaction of the application's, must not
    # hold the lock meanwhile.
    if all(task.unique_key is None for each in inserts for task in each.tasks):
        await _lock(store.dialect, c)
    waiting = await _count(store.dialect, c, [bound for each in inserts for bound in each.bounds])
    full: list[Bound | None] = []
    admitted: list[NewTask] = []
    for each in inserts:
        full.append(_first_full(each, waiting))
        if full[-1] is None:
            admitted += each.tasks
            for bound in each.bounds:
                waiting[bound.name] += len(each.tasks)
    refused = await store.insert(c, admitted) if admitted else set()
    written = await _written(c, [each for each, bound in zip(inserts, full, strict=True) if bound])
    return [
        bound
        if bound is not None and each.tasks[0].id not in written
        else refused.intersection([task.id for task in each.tasks])
        for each, bound in zip(inserts, full, strict=True)
    ]


async def _lock(dialect: Dialect, c: AsyncConnection) -> None:
    """Wait for the lock, as others hold it for a flush; but not for a node that is frozen."""
    if dialect.lock_backlog is None:
        return
    statement = text(dialect.lock_backlog)
    loop = asyncio.get_running_loop()
    end = loop.time() + LONGEST_WAIT
    while True:
        is_ours = (await c.execute(statement)).scalar()
        if is_ours or loop.time() >= end:
            return
        await asyncio.sleep(random.uniform(0, LOCK_PAUSE))


async def find_full(dialect: Dialect, c: AsyncConnection, insert: BoundedInsert) -> Bound | None:
    """The bound that leaves no room, as far as can be told without the lock."""
    waiting = await _count(dialect, c, insert.bounds)
    return _first_full(insert, waiting)


def _first_full(insert: BoundedInsert, waiting: Mapping[str | None, int]) -> Bound | None:
    return next((b for b in insert.bounds if waiting[b.name] + insert.rows > b.most), None)


async def _count(
    dialect: Dialect, c: AsyncConnection, bounds: Iterable[Bound]
) -> dict[str | None, int]:
    """How many tasks of each name, or of all, wait; counted up to the bound."""
    most: dict[str | None, int] = {}
    for bound in bounds:
        most[bound.name] = max(bound.most, most.get(bound.name, 0))
    waiting = {}
    for name, limit in most.items():
        table, which = dialect.pending_table, ""
        parameters: dict[str, Any] = {"limit": limit}
        if name is not None:
            table, which = dialect.pending_name_table, "AND name = :name"
            parameters |= {"name": name}
        statement = text(f"""
            SELECT COUNT(*) FROM (SELECT 1 FROM {table}
                WHERE status = 'pending' {which} LIMIT :limit) AS counted""")
        waiting[name] = int((await c.execute(statement, parameters)).scalar_one())
    return waiting


_WRITTEN = (
    text("SELECT id FROM lilota_task WHERE id IN :ids")
    .bindparams(bindparam("ids", expanding=True, type_=TaskIdType))
    .columns(id=TaskIdType)
)


async def _written(c: AsyncConnection, refused: Sequence[BoundedInsert]) -> set[TaskId[Any]]:
    """The first ids of those that have their rows: the answer of a first try was lost."""
    if not refused:
        return set()
    ids = [each.tasks[0].id for each in refused]
    return set((await c.execute(_WRITTEN, {"ids": ids})).scalars())
