"""The claim that looks name by name, for a node in whose way much waits that others run."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from lilota_async.storage.database import Database
from lilota_async.storage.limited import ALL, CROWD
from lilota_async.storage.store import Store
from lilota_async.storage.stores import create_store
from lilota_async.storage.transitions import Claim, Claimed, InUse, LimitedClaim
from lilota_async.storage.writer import Writer
from tests.storage.plans import recording
from tests.storage.support import NODE, OTHER_NODE, insert, new_task, raw, row_of, transacting

pytestmark = pytest.mark.anyio


def by_names(*names: str, places: int = 10, node: Any = NODE) -> LimitedClaim:
    return LimitedClaim(claim=Claim(node_id=node, names=names, pids=tuple(range(1, places + 1))))


async def claimed(database: Database, store: Store, request: LimitedClaim) -> Claimed:
    async with transacting(database) as c:
        return await store.limits.claim(c, request)


async def test_the_order_is_that_of_any_claim(database: Database, store: Store) -> None:
    """Priority, due time and id, over all its names; what others run is left."""
    tasks = [
        new_task("other", priority=9),
        new_task(priority=7),
        new_task("other", priority=5, delay_seconds=-60),
        new_task(priority=5),
        new_task("other", priority=5),
    ]
    later = [new_task(priority=9, delay_seconds=60), new_task("foreign", priority=10)]
    await insert(database, store, [*tasks, *later][::-1])
    got = await claimed(database, store, by_names("add", "other", places=4))
    assert [task.attempt.id for task in got.tasks] == [task.id for task in tasks[:4]]
    assert not any(task.is_limited for task in got.tasks)
    row = await row_of(database, tasks[0].id)
    assert (row.status, row.attempts, row.pid, row.locked_by) == ("running", 1, 1, NODE)
    rest = await claimed(database, store, by_names("add", "other"))
    assert [task.attempt.id for task in rest.tasks] == [tasks[4].id]


@pytest.mark.parametrize("many", [CROWD, CROWD + 1])
async def test_what_is_a_crowd(database: Database, store: Store, many: int) -> None:
    """Names of which more wait than a claim passes over as fast as it would avoid them."""
    await insert(database, store, [new_task("foreign") for _ in range(many)] + [new_task()])
    async with transacting(database) as c:
        crowded = frozenset({"foreign"} if many > CROWD else ())
        assert await store.limits.in_use(c) == InUse(crowded=crowded)


async def test_what_no_claim_passes_over_is_no_crowd(database: Database, store: Store) -> None:
    """What is due later, and what has a key."""
    later = [new_task("later", delay_seconds=3600) for _ in range(CROWD + 1)]
    await insert(database, store, [*later, new_task("later")])
    keyed = [new_task("keyed", concurrency_key="k") for _ in range(CROWD + 1)]
    await insert(database, store, keyed)
    async with transacting(database) as c:
        assert await store.limits.in_use(c) == InUse(keyed=frozenset({"keyed"}))


async def test_what_another_is_about_to_take_is_passed_over(
    database: Database, store: Store
) -> None:
    """Both get what they have slots for, as long as there is enough."""
    if database.dialect == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    tasks = [new_task() for _ in range(5)]
    await insert(database, store, tasks)
    async with transacting(database) as held:
        first = await store.limits.claim(held, by_names("add", places=2))
        second = await claimed(database, store, by_names("add", places=2, node=OTHER_NODE))
    ids = [task.attempt.id for task in (*first.tasks, *second.tasks)]
    assert ids == [task.id for task in tasks[:4]]
    assert not second.is_contended


async def test_one_that_is_put_off_meanwhile_is_left(
    database: Database, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a replacement that is due later, between the choice and the lock."""
    if database.dialect == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    task = new_task()
    await insert(database, store, [task])
    choose = store.limits._choose

    async def put_off_then(*asked: Any) -> Any:
        chosen = await choose(*asked)
        later = store.dialect.later("3600")
        await raw(database, f"UPDATE lilota_task SET run_at = {later}")
        return chosen

    monkeypatch.setattr(store.limits, "_choose", put_off_then)
    assert (await claimed(database, store, by_names("add"))).tasks == []
    assert (await row_of(database, task.id)).status == "pending"


async def test_the_lock_of_limits_is_none_of_its(database: Database, store: Store) -> None:
    """It does not wait for a node that claims within limits, or pauses something."""
    if database.dialect == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    await insert(database, store, [new_task()])
    async with transacting(database) as held:
        await store.limits.pause(held, ALL)
        async with asyncio.timeout(5):
            got = await claimed(database, store, by_names("add"))
    assert len(got.tasks) == 1


async def test_two_nodes_at_once(database: Database) -> None:
    """Each task goes to one of them; one that meets the other says so, and comes again."""
    stores = [create_store(database), create_store(database)]
    tasks = [new_task("add" if n % 2 else "other") for n in range(60)]
    await insert(database, stores[0], tasks)
    ids: list[Any] = []
    async with Writer(database, stores[0]) as first, Writer(database, stores[1]) as second:

        async def work(writer: Writer, node: Any) -> None:
            while True:
                got = await writer.claim(lambda: by_names("add", "other", places=7, node=node))
                ids.extend(task.attempt.id for task in got.tasks)
                if not got.tasks and not got.is_contended:
                    return

        async with asyncio.timeout(30):
            await asyncio.gather(work(first, NODE), work(second, OTHER_NODE))
    assert sorted(ids) == sorted(task.id for task in tasks)


async def test_nothing_of_a_crowd_is_read(database: Database, store: Store) -> None:
    """Of thousands in front of what it may run, the claim and the look read a few pages."""
    if database.dialect != "postgresql":
        pytest.skip("the rows that are read are counted on PostgreSQL")
    await insert(database, store, [new_task("foreign", priority=5) for _ in range(20_000)])
    mine = new_task()
    await insert(database, store, [mine])
    with recording(database) as recorded:
        async with transacting(database) as c:
            await store.limits.in_use(c)
        got = await claimed(database, store, by_names("add"))
    assert [task.attempt.id for task in got.tasks] == [mine.id]
    for statement, parameters in recorded.statements:
        if not statement.lstrip().startswith(("SELECT", "WITH")):
            continue
        async with transacting(database) as c:
            await store.prepare(c)  # a reserved connection's, which is dropped after the test
            explain = f"EXPLAIN (ANALYZE, BUFFERS) {statement}"
            lines = [row[0] for row in (await c.exec_driver_sql(explain, parameters)).all()]
        pages = max(map(int, re.findall(r"shared hit=(\d+)", "\n".join(lines))), default=0)
        assert pages < 200, "\n".join(lines)  # the index of them all has more than four hundred
