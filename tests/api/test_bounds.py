"""max_concurrency=, rate=, concurrency_key=, pause() and resume(): over all nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lilota_async import Lilota, Task, TaskId
from lilota_async.engine import dispatcher
from lilota_async.errors import ConfigurationError, NotRunning, UnknownTask
from lilota_async.storage.limited import CROWD
from lilota_async.storage.transitions import LimitedClaim
from tests.api.support import DEADLINE, MakeLilota, marked, row, until
from tests.api.tasks import echo, hold, nothing, sleep, sleep_async

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]


def most_at_once(tasks: Sequence[Task]) -> int:
    """How many of them ran at the same time, by the database's clock."""
    changes = [(task.start_date_time, 1) for task in tasks]
    changes += [(task.end_date_time, -1) for task in tasks]
    at_once = most = 0
    for _, change in sorted(changes):  # an end before a start at the same moment
        at_once += change
        most = max(most, at_once)
    return most


async def finished(lilota: Lilota, ids: Sequence[TaskId[Any]]) -> list[Task]:
    tasks = [await lilota.wait(task_id, DEADLINE) for task_id in ids]
    assert {task.status for task in tasks} == {"completed"}
    assert {task.attempts for task in tasks} == {1}
    return tasks


@pytest.mark.parametrize("most", [1, 3])
async def test_max_concurrency(make_lilota: MakeLilota, database_url: str, most: int) -> None:
    """On two nodes with room for many, no more run at once; other tasks are not held up."""
    nodes = [make_lilota(db_url=database_url, number_of_processes=1) for _ in range(2)]
    for node in nodes:
        node.register("limited", executor="loop", max_concurrency=most)(sleep_async)
        node.register(executor="loop")(nothing)
    async with nodes[0], nodes[1]:
        ids = [await nodes[n % 2].schedule("limited", 0.05) for n in range(12)]
        others = [await nodes[n % 2].schedule(nothing) for n in range(4)]
        await finished(nodes[0], others)
        tasks = await finished(nodes[1], ids)
    assert most_at_once(tasks) <= most


async def test_a_place_that_becomes_free_elsewhere(
    make_lilota: MakeLilota, directory: Path, fast_database_url: str
) -> None:
    """A node that waits for a place starts its task when the other node's one has ended."""
    nodes = [make_lilota(db_url=fast_database_url, number_of_processes=1) for _ in range(2)]
    for node in nodes:
        node.register(max_concurrency=1)(hold)
        node.register("limited", executor="loop", max_concurrency=1)(sleep_async)
    async with nodes[0]:
        first = await nodes[0].schedule(hold, str(directory))
        await marked(directory)
        async with nodes[1]:
            (directory / "second").mkdir()
            (directory / "second" / "release").touch()
            second = await nodes[1].schedule(hold, str(directory / "second"))
            assert (await row(nodes[1], second)).status == "pending"
            (directory / "release").touch()
            await finished(nodes[0], [first])
            (task,) = await finished(nodes[1], [second])
            first_end = (await row(nodes[0], first)).end_date_time
            assert first_end is not None
            assert task.start_date_time is not None
            assert 0 <= (task.start_date_time - first_end).total_seconds() < DEADLINE


async def test_concurrency_keys(make_lilota: MakeLilota, database_url: str) -> None:
    """Of each key one task at a time, of whatever name, on whichever node; and in order."""
    nodes = [make_lilota(db_url=database_url, number_of_processes=1) for _ in range(2)]
    for node in nodes:
        node.register("one", executor="loop")(sleep_async)
        node.register("two", executor="loop")(sleep_async)
    keys = [f"customer {number % 3}" for number in range(15)]
    async with nodes[0], nodes[1]:
        ids = [
            await nodes[number % 2].schedule(
                ("one", "two")[number % 2], 0.03 if number > 2 else 1.0, concurrency_key=key
            )
            for number, key in enumerate(keys)
        ]
        tasks = await finished(nodes[0], ids)
    for key in set(keys):
        assert most_at_once([task for task in tasks if task.concurrency_key == key]) == 1
    assert most_at_once(tasks) > 1


async def test_a_key_is_in_order(
    make_lilota: MakeLilota, fast_database_url: str, without_polling: None
) -> None:
    """Tasks of one key run one after the other as they were scheduled, at once each time."""
    lilota = make_lilota(echo, db_url=fast_database_url, number_of_processes=2)
    async with lilota:
        ids = await lilota.schedule_many(echo, range(20), concurrency_key="k")
        tasks = await finished(lilota, ids)
    started = sorted(tasks, key=lambda task: task.start_date_time or task.created_at)
    assert [task.id for task in started] == ids
    assert most_at_once(tasks) == 1


async def test_a_delayed_task_with_a_key(
    make_lilota: MakeLilota, fast_database_url: str, without_polling: None
) -> None:
    """One that waits for its time holds nobody up, and starts when it is due."""
    lilota = make_lilota(echo, db_url=fast_database_url)
    async with lilota:
        later = await lilota.schedule(echo, 1, concurrency_key="k", delay=3)
        now = await lilota.schedule(echo, 2, concurrency_key="k")
        tasks = await finished(lilota, [now, later])
    assert tasks[0].start_date_time is not None
    assert tasks[0].start_date_time < tasks[1].run_at
    assert tasks[1].start_date_time is not None
    assert tasks[1].start_date_time >= tasks[1].run_at


async def test_a_rate(make_lilota: MakeLilota, database_url: str) -> None:
    """Over two nodes, no window of a second has more starts; they go on by themselves."""
    nodes = [make_lilota(db_url=database_url, number_of_processes=1) for _ in range(2)]
    for node in nodes:
        node.register("limited", executor="loop", rate="5/second")(nothing)
    async with nodes[0], nodes[1]:
        ids = [await nodes[n % 2].schedule("limited") for n in range(13)]
        tasks = await finished(nodes[0], ids)
    starts = sorted(task.start_date_time for task in tasks if task.start_date_time)
    for first, beyond in zip(starts, starts[5:], strict=False):
        assert (beyond - first).total_seconds() >= 1
    assert (starts[-1] - starts[0]).total_seconds() < DEADLINE


async def test_stop_works_off_what_is_limited(
    make_lilota: MakeLilota, fast_database_url: str
) -> None:
    """stop() finishes what was scheduled, though little may run at a time; but for rates."""
    lilota = make_lilota(db_url=fast_database_url)
    lilota.register("one", executor="loop", max_concurrency=1)(nothing)
    lilota.register("often", executor="loop", rate="3/hour")(nothing)
    async with asyncio.timeout(DEADLINE), lilota:
        await lilota.schedule_many("one", [None] * 8)
        await lilota.schedule_many("often", [None] * 5)
        await lilota.schedule_many("one", [None] * 5, concurrency_key="k")
    assert {task.status for task in await lilota.get_all_tasks(name="one")} == {"completed"}
    often = [task.status for task in await lilota.get_all_tasks(name="often")]
    assert often == ["completed"] * 3 + ["pending"] * 2


async def test_pause_and_resume(
    make_lilota: MakeLilota, database_url: str, directory: Path, without_polling: None
) -> None:
    """Of a paused name nothing starts, what runs goes on, others run; resume() lets it go on."""
    lilota = make_lilota(echo, hold, sleep, db_url=database_url, number_of_processes=2)
    async with lilota:
        running = await lilota.schedule(hold, str(directory))
        await marked(directory)
        await lilota.pause(sleep)
        await lilota.pause(hold)
        waiting = await lilota.schedule(sleep, 0)
        keyed = await lilota.schedule("sleep", 0, concurrency_key="k")
        assert await lilota.result(await lilota.schedule(echo, 1), DEADLINE) == 1
        (directory / "release").touch()
        await finished(lilota, [running])
        assert [(await row(lilota, each)).status for each in (waiting, keyed)] == ["pending"] * 2
        await lilota.resume("sleep")
        await finished(lilota, [waiting, keyed])


@pytest.mark.parametrize("everything", [False, True])
async def test_a_pause_holds_elsewhere_at_once(
    make_lilota: MakeLilota, database_url: str, without_polling: None, everything: bool
) -> None:
    """A node that has not heard of it yet starts nothing either, and lets others run."""
    first, second = (make_lilota(echo, nothing, db_url=database_url) for _ in range(2))
    async with first, second:
        await second.result(await second.schedule(echo, 0), DEADLINE)
        await second.result(await second.schedule(echo, 0), DEADLINE)
        await first.pause(None if everything else echo)
        ids = [await second.schedule(echo, 1), *(await second.schedule_many(echo, [2, 3]))]
        if not everything:
            await finished(second, [await second.schedule(nothing)])
        await asyncio.sleep(1.2)  # by then a look does not take them for what has just become due
        assert [(await row(first, each)).status for each in ids] == ["pending"] * 3
        await second.resume(None if everything else echo)
        await finished(second, ids)


async def test_pause_everything(make_lilota: MakeLilota, fast_database_url: str) -> None:
    """A pause of all holds on every node and over a restart, until it is ended anywhere."""
    first, second = (make_lilota(echo, db_url=fast_database_url) for _ in range(2))
    async with second:
        async with first:
            await first.pause()
            await first.pause("echo")
        ids = [await second.schedule(echo, 1)]
        async with first:
            ids.append(await first.schedule(echo, 2))
            await asyncio.sleep(0.3)
            assert [(await row(first, each)).status for each in ids] == ["pending"] * 2
            await first.resume()
            await asyncio.sleep(0.3)
            assert [(await row(first, each)).status for each in ids] == ["pending"] * 2
            await second.resume("echo")
            await finished(first, ids)


async def test_stop_leaves_what_is_paused(make_lilota: MakeLilota) -> None:
    """stop() does not wait for what may not start."""
    lilota = make_lilota(echo)
    async with asyncio.timeout(DEADLINE), lilota:
        await lilota.pause(echo)
        left = await lilota.schedule(echo, 1)
    assert (await row(lilota, left)).status == "pending"


async def test_unlimited_tasks_go_the_short_way(make_lilota: MakeLilota) -> None:
    """A node that knows of no limit inserts as running, and claims by its one statement."""
    lilota = make_lilota(echo)
    async with lilota:
        node: Any = lilota._node
        claims: list[Any] = []
        within = node.dispatcher.limits.within

        def noted(claim: Any) -> Any:
            got = within(claim)
            claims.extend([got] if isinstance(got, LimitedClaim) else [])
            return got

        node.dispatcher.limits.within = noted
        await finished(lilota, await lilota.schedule_many(echo, range(20)))
        tasks = [
            each
            for _ in range(5)
            for each in await finished(lilota, [await lilota.schedule(echo, 1)])
        ]
        assert any(task.start_date_time == task.created_at for task in tasks)
        assert claims == []
        await finished(lilota, [await lilota.schedule(echo, 1, concurrency_key="k")])
        assert claims
        await until(lambda: not node.dispatcher.limits._in_use.keyed, "the end of limited claims")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"max_concurrency": "2"}, "max_concurrency"),
        ({"rate": "often"}, "100/minute"),
        ({"rate": 5}, "100/minute"),
    ],
)
async def test_limits_that_are_none(options: dict[str, Any], message: str) -> None:
    """A limit that cannot be meant is refused when the task is registered."""
    with pytest.raises(ConfigurationError, match=message):
        Lilota().register(**options)(nothing)


async def test_keys_and_names_that_are_none(make_lilota: MakeLilota) -> None:
    """A key that cannot be kept, a pause of no name, a pause before start()."""
    lilota = make_lilota(nothing, number_of_processes=0)
    with pytest.raises(NotRunning):
        await lilota.pause()
    async with lilota:
        with pytest.raises(ConfigurationError, match="concurrency_key"):
            await lilota.schedule(nothing, concurrency_key="a\0b")
        with pytest.raises(ConfigurationError, match="name"):
            await lilota.pause("")
        with pytest.raises(UnknownTask):
            await lilota.resume(echo)
        assert await lilota.get_all_tasks() == []


async def test_many_paused_tasks_are_in_nobodys_way(
    make_lilota: MakeLilota, database_url: str
) -> None:
    """Claims of the other tasks go by their names then; and as before when the pause is over."""
    lilota = make_lilota(echo, db_url=database_url)
    lilota.register("threaded", executor="thread")(echo)
    lilota.register("many")(echo)
    async with lilota:
        await lilota.pause("many")
        many = await lilota.schedule_many("many", range(CROWD + 1), priority=9)
        node: Any = lilota._node
        node.dispatcher.look()
        await until(lambda: "many" in node.dispatcher.limits.crowded, "the look")
        ids = await lilota.schedule_many(echo, range(20))
        ids += await lilota.schedule_many("threaded", range(20))
        await finished(lilota, ids)
        assert (await row(lilota, many[0])).status == "pending"
        await lilota.resume("many")
        await finished(lilota, many)


async def test_a_slow_claim_makes_the_node_look(
    make_lilota: MakeLilota, fast_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What others have written since the last look may be why, and polls may come once a minute."""
    lilota = make_lilota(echo, db_url=fast_database_url)
    other = make_lilota(db_url=fast_database_url, number_of_processes=0)
    other.register("many")(echo)
    async with lilota, other:
        node: Any = lilota._node
        monkeypatch.setattr(dispatcher, "NOTIFIED_POLL_SECONDS", 1e6)
        monkeypatch.setattr(dispatcher, "POLL_SECONDS", 1e6)
        await lilota.result(
            await lilota.schedule(echo, 1, delay=0.1)
        )  # those of the start are over
        await other.schedule_many("many", range(CROWD + 1))
        monkeypatch.setattr(dispatcher, "SLOW_CLAIM_SECONDS", 0.0)
        node.dispatcher._looked_at = float("-inf")
        await finished(lilota, [await lilota.schedule(echo, 1, delay=0.01)])
        await until(lambda: "many" in node.dispatcher.limits.crowded, "the look")
