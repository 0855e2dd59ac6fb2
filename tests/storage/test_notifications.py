"""What PostgreSQL tells the other nodes about new rows."""

from __future__ import annotations

import pytest

from lilota_async.storage.database import Database
from lilota_async.storage.migrate import migrate
from lilota_async.storage.postgresql_sql import CHANNEL
from lilota_async.storage.stores import create_store
from tests.api.support import until
from tests.storage.support import NODE, insert, new_task, transacting

pytestmark = pytest.mark.anyio


async def test_only_rows_that_wait_are_news(postgresql_url: str) -> None:
    """Of one that runs already nobody else has anything to do, until its end is wanted."""
    database = Database(postgresql_url)
    await database.open()
    await migrate(database)
    store = create_store(database)
    store.has_listeners, store.origin = True, "node"
    heard: list[str] = []
    async with database.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        await driver.add_listener(CHANNEL, lambda *told: heard.append(told[-1]))
        running = [new_task(node_id=NODE, pid=1) for _ in range(3)]
        await insert(database, store, running[:1])
        await insert(database, store, running[1:])
        await insert(database, store, [new_task()])
        await insert(database, store, [new_task(node_id=NODE, pid=1), new_task(delay_seconds=60)])
        async with transacting(database) as c:
            for task in (running[0], new_task()):
                await store.request_cancel(c, task.id)
        await until(lambda: len(heard) >= 3, "the news")
        await connection.invalidate()
    assert heard == ["node rows", "node look", "node cancel"]
    await database.close()
