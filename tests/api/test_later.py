"""delay= and run_at=: due in so long or at a time, by the database's clock, and started then."""

from __future__ import annotations

import asyncio
import statistics
import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from lilota_async import Lilota, Task, TaskId
from lilota_async.errors import ConfigurationError
from lilota_async.storage.transitions import News
from tests.api.support import DEADLINE, MakeLilota, row, until
from tests.api.tasks import echo, nothing

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
MEDIAN_SECONDS = 0.02
ROUNDS = 10  # a machine that is busy with other tests may need more than one


def lateness(task: Task) -> float:
    """Seconds between when the task was due and its start."""
    assert task.start_date_time is not None
    return (task.start_date_time - task.run_at).total_seconds()


async def finished(lilota: Lilota, ids: list[TaskId[Any]]) -> list[Task]:
    return [await lilota.wait(task_id, DEADLINE) for task_id in ids]


async def test_delayed_tasks_start_in_time(
    make_lilota: MakeLilota, database_url: str, without_polling: None
) -> None:
    """Never too early, at the median within 20 ms, and earlier ones overtake later ones."""
    lilota = make_lilota(echo, db_url=database_url, number_of_processes=2)
    delays: list[float | timedelta] = [1.1, 0.7, 0.4, 0.2, timedelta(milliseconds=550), 0.3, 0.9]
    medians = []
    async with lilota:
        await lilota.result(await lilota.schedule(echo, 0), DEADLINE)
        for _ in range(ROUNDS):
            ids = [await lilota.schedule(echo, 1, delay=delay) for delay in delays]
            tasks = await finished(lilota, ids)
            late = [lateness(task) for task in tasks]
            assert min(late) >= 0
            medians.append(statistics.median(late))
            if medians[-1] <= MEDIAN_SECONDS:
                break
    assert min(medians) <= MEDIAN_SECONDS
    asked = (tasks[4].run_at - tasks[4].created_at).total_seconds()
    assert abs(asked - 0.55) < 0.01


async def test_at_a_time(make_lilota: MakeLilota, database_url: str, without_polling: None) -> None:
    """The database's clock decides when that is, in whatever timezone it was given."""
    lilota = make_lilota(echo, db_url=database_url)
    berlin = timezone(timedelta(hours=2))
    async with lilota:
        # Its process knows the module by then.
        await lilota.wait(await lilota.schedule(echo, 0), DEADLINE)
        now = (await row(lilota, await lilota.schedule(echo, 0))).created_at
        at = now + timedelta(seconds=2)
        ids = [
            await lilota.schedule(echo, 1, run_at=at.astimezone(berlin)),
            await lilota.schedule(echo, 2, run_at=now - timedelta(days=400_000)),
        ]
        tasks = await finished(lilota, ids)
    assert tasks[0].run_at == at
    assert lateness(tasks[0]) >= 0  # and it did not wait for a poll
    assert tasks[1].start_date_time is not None
    assert tasks[1].start_date_time < at


@pytest.mark.parametrize("shift", [-300, 300])
async def test_the_clock_of_the_host_is_not_asked(
    make_lilota: MakeLilota, fast_database_url: str, monkeypatch: pytest.MonkeyPatch, shift: int
) -> None:
    """A host whose clock is five minutes off starts delayed tasks in time all the same."""
    real_time, real_time_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: real_time() + shift)
    monkeypatch.setattr(time, "time_ns", lambda: real_time_ns() + shift * 10**9)
    lilota = make_lilota(echo, db_url=fast_database_url)
    async with lilota:
        first = await row(lilota, await lilota.schedule(echo, 0))
        ids = [
            await lilota.schedule(echo, 1, delay=0.5),
            await lilota.schedule(echo, 2, run_at=first.created_at + timedelta(seconds=0.7)),
        ]
        tasks = await finished(lilota, ids)
    assert all(0 <= lateness(task) < 60 for task in tasks)  # with the host's clock, 300 s more


async def test_another_node_schedules(
    make_lilota: MakeLilota, fast_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another node has scheduled for later starts in time here, without polling for it."""
    is_postgresql = fast_database_url.startswith("postgresql")
    if is_postgresql:  # where nodes tell each other, no poll may be needed
        name = "lilota_async.engine.dispatcher.NOTIFIED_POLL_SECONDS"
        monkeypatch.setattr(name, 10 * DEADLINE)
    runner = make_lilota(echo, db_url=fast_database_url)
    scheduler = make_lilota(echo, db_url=fast_database_url, number_of_processes=0)
    medians = []
    async with runner, scheduler:
        await runner.result(await scheduler.schedule(echo, 0), DEADLINE)
        for _ in range(ROUNDS):
            ids = [await scheduler.schedule(echo, 1, delay=delay) for delay in (2.0, 1.8, 1.6)]
            late = [lateness(task) for task in await finished(runner, ids)]
            assert min(late) >= 0
            medians.append(statistics.median(late))
            if medians[-1] <= MEDIAN_SECONDS:
                break
    assert min(medians) <= MEDIAN_SECONDS


async def test_a_node_knows_at_once_whether_it_is_alone(
    make_lilota: MakeLilota, fast_database_url: str
) -> None:
    """What nobody hears need not be said: not with the first heartbeat, a third of the lease on."""
    if not fast_database_url.startswith("postgresql"):
        pytest.skip("only PostgreSQL tells other nodes")
    alone = make_lilota(echo, db_url=fast_database_url, lease=300)
    async with alone:
        node: Any = alone._node
        await until(lambda: node._is_notified(), "listening")
        await until(lambda: not node.store.has_listeners, "knowing that there is nobody")
        async with make_lilota(echo, db_url=fast_database_url, lease=300):
            await until(lambda: node.store.has_listeners, "hearing of the other node")
        node._on_notify(News.ROWS)  # of one that is gone by now: what it heard is looked into
        assert node.store.has_listeners
        await until(lambda: not node.store.has_listeners, "knowing that there is nobody")


async def test_after_a_restart(make_lilota: MakeLilota, fast_database_url: str) -> None:
    """What becomes due while the application runs again is started in time."""
    lilota = make_lilota(echo, db_url=fast_database_url)
    async with lilota:
        task_id = await lilota.schedule(echo, 1, delay=2.5)
    assert (await row(lilota, task_id)).status == "pending"  # stop() waits only for what is due
    async with lilota:
        (task,) = await finished(lilota, [task_id])
    assert 0 <= lateness(task) < DEADLINE  # where nodes tell each other, the poll is later


async def test_many_for_later(make_lilota: MakeLilota, without_polling: None) -> None:
    """schedule_many() takes both settings for all of its tasks."""
    lilota = make_lilota(echo, number_of_processes=2)
    at = datetime.now(UTC) + timedelta(seconds=0.6)
    async with lilota:
        ids = await lilota.schedule_many(echo, range(30), delay=0.3)
        ids += await lilota.schedule_many(echo, range(30), run_at=at)
        tasks = await finished(lilota, ids)
    assert min(lateness(task) for task in tasks) >= 0
    assert {task.run_at for task in tasks[30:]} == {at}  # also of what was put back


async def test_a_delayed_task_leaves_slots_alone(
    make_lilota: MakeLilota, without_polling: None
) -> None:
    """While tasks wait for their time, others are inserted as running as ever."""
    lilota = make_lilota(echo)
    async with lilota:
        later = await lilota.schedule(echo, 1, delay=3600)
        for number in range(5):
            (task,) = await finished(lilota, [await lilota.schedule(echo, number)])
        assert task.start_date_time == task.created_at
        assert await lilota.cancel(later)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"run_at": datetime(2030, 1, 1)}, "timezone"),
        ({"run_at": "2030-01-01"}, "datetime"),
        ({"run_at": 1893456000}, "datetime"),
        ({"run_at": datetime.max.replace(tzinfo=UTC)}, "9999"),
        ({"delay": -1}, "delay"),
        ({"delay": timedelta(seconds=-1)}, "delay"),
        ({"delay": float("nan")}, "delay"),
        ({"delay": timedelta.max}, "100 years"),
        ({"delay": "soon"}, "delay"),
        ({"delay": 1, "run_at": datetime(2030, 1, 1, tzinfo=UTC)}, "not both"),
    ],
)
async def test_times_that_are_none(
    make_lilota: MakeLilota, options: dict[str, Any], message: str
) -> None:
    """A time that cannot be meant is refused before anything is written."""
    lilota = make_lilota(nothing, number_of_processes=0)
    async with lilota:
        with pytest.raises(ConfigurationError, match=message):
            await lilota.schedule(nothing, **options)
        with pytest.raises(ConfigurationError, match=message):
            await lilota.schedule_many(nothing, [None], **options)
        assert await lilota.get_all_tasks() == []


async def test_times_at_the_edge(make_lilota: MakeLilota, database_url: str) -> None:
    """The farthest times that are taken come back from every database."""
    lilota = make_lilota(nothing, db_url=database_url, number_of_processes=0)
    last = datetime(9998, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
    async with lilota:
        ids = [
            await lilota.schedule(nothing, run_at=last),
            await lilota.schedule(nothing, delay=timedelta(days=36_500)),
            await lilota.schedule(nothing, run_at=datetime.min.replace(tzinfo=UTC)),
        ]
        tasks = [await row(lilota, task_id) for task_id in ids]
    assert tasks[0].run_at == last
    assert tasks[1].run_at.year > 2100
    assert tasks[2].run_at < tasks[2].created_at


async def test_waiting_does_not_poll_faster(
    make_lilota: MakeLilota, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nothing is due, a node looks no more often than it polls."""
    lilota = make_lilota(echo)
    async with lilota:
        node: Any = lilota._node
        looks = 0
        look_ahead = node.store.seconds_to_next

        async def counted(*args: Any) -> Any:
            nonlocal looks
            looks += 1
            return await look_ahead(*args)

        monkeypatch.setattr(node.store, "seconds_to_next", counted)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await finished(lilota, [await lilota.schedule(echo, 1, delay=2.5)])
        seconds = loop.time() - began
    assert looks <= seconds + 1 + 3  # the polls, and when it is time
