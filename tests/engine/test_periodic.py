"""Periodic tasks: one row for each tick, whoever is there to write it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from lilota_async.engine import periodic as module
from lilota_async.engine.periodic import PeriodicTasks
from lilota_async.registry import RegisteredTask, Registry, Settings
from lilota_async.storage.database import Database
from lilota_async.storage.migrate import migrate
from lilota_async.storage.queries import delete_task, get_tasks
from lilota_async.storage.stores import create_store
from lilota_async.storage.writer import Writer
from lilota_async.ticks import read_periodic
from tests.api.tasks import nothing

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
START = datetime(2026, 1, 1, 10, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


class Cluster:
    """A database whose clock the test sets, and nodes that do nothing but write ticks."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.now = START
        self._parts = AsyncExitStack()

    async def node(self, **options: Any) -> PeriodicTasks:
        """Another node; it does not look by itself."""
        store = create_store(self.database)
        store.clock = self._clock  # type: ignore[method-assign, assignment]
        writer = Writer(self.database, store)
        await writer.start()
        self._parts.push_async_callback(writer.close)
        registry = Registry()
        given = {"cron": None, "timezone": None, "every": 60.0, "catch_up": "one", **options}
        registry.add(
            RegisteredTask(
                "nothing",
                nothing,
                input_model=None,
                output_model=None,
                task_progress=None,
                settings=Settings(periodic=read_periodic(**given)),
                limit=100,
            )
        )
        node = PeriodicTasks(registry, writer, store, lambda: None)
        await node.start()
        await node.close()
        return node

    async def look(self, node: PeriodicTasks) -> None:
        """Have the node write what is due."""
        while not await node._look():
            pass

    async def ticks(self) -> list[datetime]:
        """The nominal times of all rows, in minutes since the start."""
        return [task.nominal_time or START for task in await get_tasks(self.database)]

    async def close(self) -> None:
        await self._parts.aclose()

    async def _clock(self, _connection: Any) -> datetime:
        return self.now


@pytest.fixture
async def cluster(database_url: str) -> AsyncIterator[Cluster]:
    """An empty database of each kind."""
    database = Database(database_url)
    await database.open()
    await migrate(database)
    cluster = Cluster(database)
    yield cluster
    await cluster.close()
    await database.close()


def minutes(*numbers: float) -> list[datetime]:
    """So many minutes after the start."""
    return [START + number * MINUTE for number in numbers]


async def test_each_node_looks_and_one_writes(cluster: Cluster) -> None:
    """Several nodes at the same time make one row for each tick."""
    nodes = [await cluster.node() for _ in range(3)]
    for minute in range(1, 4):
        cluster.now = START + minute * MINUTE
        await asyncio.gather(*(node._look() for node in nodes))
        for node in nodes:  # one that found the row locked looks again
            await cluster.look(node)
    assert await cluster.ticks() == minutes(1, 2, 3)


@pytest.mark.parametrize(
    ("catch_up", "expected"), [("skip", []), ("one", [60]), ("all", list(range(1, 61)))]
)
async def test_after_downtime(cluster: Cluster, catch_up: str, expected: list[int]) -> None:
    """An hour without any node: the next one to start does what was asked for."""
    await cluster.node(catch_up=catch_up)
    cluster.now = START + 60.5 * MINUTE
    node = await cluster.node(catch_up=catch_up)
    await cluster.look(node)
    assert await cluster.ticks() == minutes(*expected)
    cluster.now = START + 61 * MINUTE
    await cluster.look(node)
    assert await cluster.ticks() == minutes(*expected, 61)


@pytest.mark.parametrize(
    ("catch_up", "expected"), [("skip", []), ("one", [60]), ("all", list(range(1, 61)))]
)
async def test_after_a_standstill(cluster: Cluster, catch_up: str, expected: list[int]) -> None:
    """A node that was there, but could not do anything for an hour, does the same."""
    node = await cluster.node(catch_up=catch_up)
    cluster.now = START + 60.5 * MINUTE
    await cluster.look(node)
    assert await cluster.ticks() == minutes(*expected)


@pytest.mark.parametrize("catch_up", ["skip", "one", "all"])
async def test_a_few_seconds_late(cluster: Cluster, catch_up: str) -> None:
    """A node that is busy for some seconds leaves no tick out."""
    node = await cluster.node(catch_up=catch_up, every=1.0)
    cluster.now = START + timedelta(seconds=5.5)
    await cluster.look(node)
    assert await cluster.ticks() == minutes(*(second / 60 for second in range(1, 6)))


async def test_nothing_was_missed_before_the_first_start(cluster: Cluster) -> None:
    """A task that is new has no past, whatever it does about missed ticks."""
    node = await cluster.node(catch_up="all")
    await cluster.look(node)
    assert await cluster.ticks() == []


async def test_more_than_fits_into_a_transaction(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come in several, and none is left out or doubled."""
    monkeypatch.setattr(module, "TICKS_AT_ONCE", 7)
    await cluster.node(catch_up="all")
    cluster.now = START + 20 * MINUTE
    await cluster.look(await cluster.node(catch_up="all"))
    assert await cluster.ticks() == minutes(*range(1, 21))


async def test_a_start_does_not_skip_for_others(cluster: Cluster) -> None:
    """A node that starts right after a tick leaves it to those that were there."""
    old = await cluster.node(catch_up="skip")
    cluster.now = START + 1.0001 * MINUTE
    new = await cluster.node(catch_up="skip")
    await cluster.look(new)
    assert await cluster.ticks() == []
    await cluster.look(old)
    assert await cluster.ticks() == minutes(1)


async def test_a_node_that_stood_still(cluster: Cluster) -> None:
    """It writes no tick again whose row has been deleted since."""
    frozen, awake = await cluster.node(catch_up="all"), await cluster.node(catch_up="all")
    cluster.now = START + 3 * MINUTE
    await cluster.look(awake)
    for task in await get_tasks(cluster.database):
        await delete_task(cluster.database, task.id)
    await cluster.look(frozen)
    assert await cluster.ticks() == []


async def test_another_rhythm(cluster: Cluster) -> None:
    """A new one begins now, and an old one that comes back goes on where the new one ended."""
    await cluster.node(catch_up="all")
    cluster.now = START + 30 * MINUTE
    changed = await cluster.node(catch_up="all", every=600.0)
    cluster.now = START + 40 * MINUTE
    await cluster.look(changed)
    assert await cluster.ticks() == minutes(40)
    cluster.now = START + 43 * MINUTE
    await cluster.look(await cluster.node(catch_up="all"))
    assert await cluster.ticks() == minutes(40, 41, 42, 43)


async def test_the_table_is_emptied(cluster: Cluster) -> None:
    """Nodes begin anew."""
    node = await cluster.node()
    async with cluster.database.connect() as connection:
        await connection.exec_driver_sql("DELETE FROM lilota_schedule")
    cluster.now = START + MINUTE
    assert await node._look() == module.RETRY_SECONDS
    cluster.now = START + 2 * MINUTE
    await cluster.look(node)
    assert await cluster.ticks() == minutes(2)


async def test_a_node_that_stood_still_passes_over_no_tick_of_now(cluster: Cluster) -> None:
    """What it has missed others have seen to; the tick that is due just now is on time."""
    frozen = await cluster.node(catch_up="skip")
    awake = await cluster.node(catch_up="skip")
    for minute in range(1, 6):
        cluster.now = START + minute * MINUTE
        await cluster.look(awake)
    cluster.now = START + 6.0001 * MINUTE
    await cluster.look(frozen)
    await cluster.look(awake)
    assert await cluster.ticks() == minutes(1, 2, 3, 4, 5, 6)
