"""The claim within limits: over all nodes, in order, and without reading what waits."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from typing import Any

import pytest
from sqlalchemy import text

from lilota_async.models import TaskStatus
from lilota_async.models.rates import Rate
from lilota_async.storage.database import Database
from lilota_async.storage.limited import ALL
from lilota_async.storage.store import Store
from lilota_async.storage.stores import create_store
from lilota_async.storage.transitions import (
    Claim,
    Claimed,
    ClaimedTask,
    Finish,
    InUse,
    LimitedClaim,
    NameLimit,
    NewTask,
)
from lilota_async.storage.writer import Writer
from tests.storage.plans import recording
from tests.storage.support import (
    NODE,
    OTHER_NODE,
    claim,
    ended,
    insert,
    new_task,
    raw,
    row_of,
    transacting,
)

pytestmark = pytest.mark.anyio
NAMES = ("add", "other")


def wanted(
    *limits: NameLimit, places: int = 10, node: Any = NODE, names: tuple[str, ...] = NAMES
) -> LimitedClaim:
    request = Claim(node_id=node, names=names, pids=tuple(range(1, places + 1)))
    return LimitedClaim(claim=request, limits=limits, keyed=frozenset(names))


async def limited(database: Database, store: Store, request: LimitedClaim) -> Claimed:
    async with transacting(database) as c:
        return await store.limits.claim(c, request)


async def finish(database: Database, store: Store, *tasks: ClaimedTask) -> None:
    async with transacting(database) as c:
        ends = [Finish(attempt=task.attempt, status=TaskStatus.COMPLETED) for task in tasks]
        await store.finish(c, ends)


def keyed(key: str, name: str = "add", **values: Any) -> NewTask:
    return new_task(name, concurrency_key=key, **values)


async def test_the_row_is_like_any_claimed_one(database: Database, store: Store) -> None:
    """It says whose attempt it is; the attempt has all that it needs."""
    task = new_task(input='{"a":1}', timeout_seconds=2.5, tags='["x"]', max_attempts=3)
    await insert(database, store, [task])
    (claimed,) = (await limited(database, store, wanted(places=3))).tasks
    assert (claimed.attempt.id, claimed.attempt.number) == (task.id, 1)
    assert (claimed.name, claimed.input, claimed.tags) == ("add", '{"a":1}', '["x"]')
    assert (claimed.max_attempts, claimed.timeout_seconds) == (3, 2.5)
    assert not claimed.is_limited
    row = await row_of(database, task.id)
    assert (row.status, row.attempts, row.pid, row.locked_by) == ("running", 1, 1, NODE)
    assert row.start_date_time is not None
    assert row.start_date_time >= row.created_at
    await finish(database, store, claimed)
    assert (await row_of(database, task.id)).status == "completed"


async def test_no_more_of_a_name_than_may_run(database: Database, store: Store) -> None:
    """Whatever node they run on; others of the name follow when one has ended."""
    most = NameLimit(name="add", most_running=2)
    tasks = [new_task() for _ in range(4)]
    await insert(database, store, [*tasks, new_task("other")])
    first = (await limited(database, store, wanted(most))).tasks
    assert Counter(task.name for task in first) == {"add": 2, "other": 1}
    assert [task.is_limited for task in first] == [True, True, False]
    assert (await limited(database, store, wanted(most, node=OTHER_NODE))).tasks == []
    await finish(database, store, first[0])
    (next_one,) = (await limited(database, store, wanted(most, node=OTHER_NODE))).tasks
    assert next_one.attempt.id == tasks[2].id


async def test_order_over_all_names(database: Database, store: Store) -> None:
    """Priority, due time and id count over limited and other names, with keys and without."""
    tasks = [
        new_task("other", priority=9),
        keyed("a", priority=8),
        new_task(priority=7),
        keyed("b", "other", priority=6),
        new_task(priority=5, delay_seconds=-60),
        new_task(priority=5),
    ]
    await insert(database, store, tasks[::-1])
    most = NameLimit(name="add", most_running=3)
    claimed = (await limited(database, store, wanted(most))).tasks
    assert [task.attempt.id for task in claimed] == [task.id for task in tasks[:5]]


async def test_one_of_each_key(database: Database, store: Store) -> None:
    """Of any name; the next follows when it is over, in their order."""
    tasks = [keyed("a"), keyed("a", "other"), keyed("b"), keyed("a", priority=1)]
    await insert(database, store, tasks)
    assert await claim(database, store) == []  # it is none of the claim without limits
    first = (await limited(database, store, wanted())).tasks
    assert [task.attempt.id for task in first] == [tasks[3].id, tasks[2].id]
    assert all(task.is_limited for task in first)
    assert (await limited(database, store, wanted(node=OTHER_NODE))).tasks == []
    await finish(database, store, *first)
    for expected in tasks[:2]:
        (one,) = (await limited(database, store, wanted())).tasks
        assert one.attempt.id == expected.id
        await finish(database, store, one)


async def test_a_rate(database: Database, store: Store) -> None:
    """No more starts than that in its time; it says when there is room again."""
    often = NameLimit(name="add", rate=Rate(3, 3600.0))
    await insert(database, store, [new_task() for _ in range(5)])
    first = await limited(database, store, wanted(often, places=2))
    assert len(first.tasks) == 2
    assert first.seconds_to_room is None
    await finish(database, store, *first.tasks)
    second = await limited(database, store, wanted(often, node=OTHER_NODE))
    assert len(second.tasks) == 1
    assert second.seconds_to_room is not None
    assert 3500 < second.seconds_to_room < 3700
    assert (await limited(database, store, wanted(often))).tasks == []
    await raw(database, "UPDATE lilota_limit SET starts = 'edited' WHERE name = 'add'")
    assert len((await limited(database, store, wanted(often))).tasks) == 2


async def test_pauses(database: Database, store: Store) -> None:
    """Nothing of a paused name is claimed, with limits or without; nor anything when all are."""
    await insert(database, store, [new_task(), keyed("k"), new_task("other")])
    async with transacting(database) as c:
        await store.limits.pause(c, "add")
        await store.limits.pause(c, "add")
        assert await store.limits.in_use(c) == InUse(
            keyed=frozenset({"add"}), paused=frozenset({"add"})
        )
    assert [t.name for t in (await limited(database, store, wanted())).tasks] == ["other"]
    assert await claim(database, store) == []
    async with transacting(database) as c:
        await store.limits.pause(c, ALL)
        await store.limits.resume(c, "add")
    assert await claim(database, store) == []
    assert (await limited(database, store, wanted())).tasks == []
    async with transacting(database) as c:
        await store.limits.resume(c, ALL)
    assert len(await claim(database, store)) == 1
    assert len((await limited(database, store, wanted())).tasks) == 1


async def test_a_cancelled_or_locked_row_is_left(database: Database, store: Store) -> None:
    """A row that another transaction holds is none of this claim, which does not wait."""
    if database.dialect == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    tasks = [new_task(), new_task()]
    await insert(database, store, tasks)
    async with transacting(database) as held:
        await store.request_cancel(held, tasks[0].id)
        got = await limited(database, store, wanted())
    assert [task.attempt.id for task in got.tasks] == [tasks[1].id]
    assert got.is_contended


async def test_two_nodes_at_once(database: Database) -> None:
    """However they claim at the same time, no limit is exceeded for a moment."""
    stores = [create_store(database), create_store(database)]
    most = NameLimit(name="add", most_running=3)
    await insert(
        database, stores[0], [keyed(f"k{n % 3}", "other") for n in range(30)] + [new_task()] * 1
    )
    await insert(database, stores[0], [new_task() for _ in range(29)])
    running: Counter[str] = Counter()
    done = 0
    async with Writer(database, stores[0]) as first, Writer(database, stores[1]) as second:

        async def work(writer: Writer, node: Any) -> None:
            nonlocal done
            while done < 60:
                got = await writer.claim(lambda: wanted(most, places=2, node=node))
                rows = [await row_of(database, task.attempt.id) for task in got.tasks]
                for row in rows:
                    running[row.concurrency_key or row.name] += 1
                assert running["add"] <= 3
                assert max((running[f"k{n}"] for n in range(3)), default=0) <= 1
                await asyncio.sleep(0)
                for task, row in zip(got.tasks, rows, strict=True):
                    running[row.concurrency_key or row.name] -= 1
                    finishing = Finish(attempt=task.attempt, status=TaskStatus.COMPLETED)
                    assert await ended(writer, finishing)
                    done += 1

        async with asyncio.timeout(30):
            await asyncio.gather(
                *(work(first, NODE) for _ in range(3)),
                *(work(second, OTHER_NODE) for _ in range(3)),
            )


async def test_a_large_backlog_is_not_read(database: Database, store: Store) -> None:
    """Behind a hundred thousand that may not start, the claim finds what may at once."""
    many = 100_000 if database.dialect == "postgresql" else 20_000
    await _backlog(database, many)
    most = NameLimit(name="add", most_running=1)
    busy, free, last = keyed("busy"), keyed("zz free", "other"), new_task("last")
    await insert(database, store, [busy, free, last])
    await raw(
        database,
        "UPDATE lilota_task SET status = 'running', locked_by = id WHERE concurrency_key = 'busy'"
        " AND name = 'add'",
    )
    request = wanted(most, places=2, names=("add", "other", "last"))
    async with database.connect() as c:
        await store.prepare(c)
        seconds = []
        for _ in range(5):  # on a machine that is busy with other tests, one may take long
            started = time.perf_counter()
            await c.exec_driver_sql("BEGIN" if database.dialect != "sqlite" else "BEGIN IMMEDIATE")
            got = await store.limits.claim(c, request)
            await c.exec_driver_sql("ROLLBACK")
            seconds.append(time.perf_counter() - started)
            assert {task.attempt.id for task in got.tasks} == {free.id, last.id}
        await c.invalidate()
    assert min(seconds) < 0.25, seconds


async def _backlog(database: Database, many: int) -> None:
    """As many of a name that is full as of a key that is taken, in front of all others."""
    columns = (
        "id, name, status, priority, created_at, run_at, progress_percentage, attempts,"
        " max_attempts, interruptions, concurrency_key"
    )
    numbers = {
        "postgresql": f"SELECT n FROM generate_series(1, {2 * many}) AS s (n)",
        "sqlite": f"WITH RECURSIVE s (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s"
        f" WHERE n < {2 * many}) SELECT n FROM s",
        "mariadb": f"SELECT seq AS n FROM seq_1_to_{2 * many}",
    }[database.dialect]
    new_id = {
        "postgresql": "gen_random_uuid()",
        "sqlite": "printf('%032x', n)",
        "mariadb": "LPAD(HEX(n), 32, '0')",
    }[database.dialect]
    early = "'2020-01-01 00:00:00.000000'"
    if database.dialect == "mariadb":
        new_id = f"LOWER({new_id})"
    if database.dialect == "postgresql":
        early = f"CAST({early} AS timestamptz)"
    await raw(
        database,
        f"INSERT INTO lilota_task ({columns}) SELECT {new_id}, CASE WHEN n % 2 = 0 THEN 'add'"
        f" ELSE 'other' END, 'pending', 5, {early}, {early}, 0, 0, 1, 0,"
        f" CASE WHEN n % 2 = 1 THEN 'busy' END FROM ({numbers}) AS numbers",
    )


async def test_the_claim_goes_by_the_index_of_names(database: Database, store: Store) -> None:
    """Rows are read in the order of the index, and neither sorted nor searched through."""
    if database.dialect != "postgresql":
        pytest.skip("SQLite and MariaDB are told the index")
    await _backlog(database, 5_000)
    statement = text(f"EXPLAIN (ANALYZE) {store.limits.first_statement(2)}")
    parameters: dict[str, Any] = {"created_before": None}
    for number, name in enumerate(("add", "other")):
        parameters |= {f"name_{number}": name, f"keyed_{number}": False, f"limit_{number}": 3}
    async with transacting(database) as c:
        await store.prepare(c)  # a reserved connection's, which is dropped after the test
        plan = await c.execute(statement, {**parameters, "now": await store.clock(c)})
        lines = "\n".join(row[0] for row in plan.all())
    assert lines.count("ix_lilota_task_pending_name") == 2
    assert "Seq Scan on lilota_task" not in lines
    assert "Sort" not in lines
    assert max(map(int, re.findall(r"rows=(\d+) loops", lines))) <= 6


async def test_chosen_rows_are_found_by_their_ids(database: Database, store: Store) -> None:
    """And not among all that is pending, whatever the planner believes of it."""
    if database.dialect != "postgresql":
        pytest.skip("the plan is read on PostgreSQL")
    await _backlog(database, 5_000)
    with recording(database) as recorded:
        assert (await limited(database, store, wanted())).tasks
    recorded.statements = [each for each in recorded.statements if "SKIP LOCKED" in each[0]]
    async with transacting(database) as c:
        await store.prepare(c)  # a reserved connection's, which is dropped after the test
        (plan,) = await recorded.plans(c)
    assert "lilota_task_pkey" in plan


async def test_many_names(database: Database, store: Store) -> None:
    """More than a database can look for in one statement."""
    names = tuple(f"name-{number:04}" for number in range(1200))
    for some in (names[:100], names):
        await insert(database, store, [new_task(name) for name in some[1:]])
        limit = NameLimit(name="name-0001", most_running=2)
        claimed = await limited(database, store, wanted(limit, places=1200, names=names))
        assert sorted(task.name for task in claimed.tasks) == list(some[1:])
