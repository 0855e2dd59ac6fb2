"""register(cron=, every=): tasks that schedule themselves, over all nodes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from lilota_async import Lilota, Task
from lilota_async.errors import ConfigurationError
from lilota_async.ticks import LATE, Every
from tests.api.support import DEADLINE, MakeLilota
from tests.api.tasks import add, echo_or_default, nominal_time, nothing

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


def test_an_input_that_nobody_gives() -> None:
    """A periodic task takes no input, or has a default for it."""
    lilota = Lilota()
    with pytest.raises(ConfigurationError, match="takes an input, which nobody gives it"):
        lilota.register(every=60)(add)
    assert lilota.registered_tasks == ()
    lilota.register(every=60)(echo_or_default)
    lilota.register(every=60)(nothing)


def test_what_cannot_be_kept() -> None:
    """Nonsense is refused at registration."""
    lilota = Lilota()
    with pytest.raises(ConfigurationError, match="catch_up must be"):
        lilota.register(every=60, catch_up="maybe")  # type: ignore[call-overload]
    with pytest.raises(ConfigurationError, match="The cron expression 'daily' cannot be read"):
        lilota.register(cron="daily")


@asynccontextmanager
async def running(*lilotas: Any) -> AsyncIterator[None]:
    """All of them, started."""
    async with AsyncExitStack() as stack:
        for lilota in lilotas:
            await stack.enter_async_context(lilota)
        yield


async def test_three_nodes(make_lilota: MakeLilota, database_url: str) -> None:
    """Each tick runs once, in time by the clock of the database."""
    lilotas = [make_lilota(db_url=database_url) for _ in range(3)]
    for lilota in lilotas:
        lilota.register(every=timedelta(seconds=0.2), executor="thread")(nothing)
    first = lilotas[0]
    found: list[Task] = []
    async with running(*lilotas), asyncio.timeout(DEADLINE):
        node: Any = first._node
        since = await node.writer.execute(node.store.clock)  # one that starts passes over the past
        while len(found) < 10:
            await asyncio.sleep(0.1)
            found = [
                task
                for task in await first.get_all_tasks()
                if task.nominal_time is not None and task.nominal_time > since
            ]
        found = [await first.wait(task.id) for task in found]
    every = Every(period=timedelta(seconds=0.2))
    ticks = [task.nominal_time for task in found]
    assert ticks[0] is not None
    expected = every.after(ticks[0] - every.period)
    assert ticks == [next(expected) for _ in ticks]
    for task in found:
        assert task.nominal_time is not None
        assert timedelta(0) <= task.created_at - task.nominal_time < LATE
        assert (task.attempts, task.run_at) == (1, task.nominal_time)


@pytest.mark.parametrize("skew", [-300, 300])
async def test_the_clock_of_a_node_does_not_matter(
    make_lilota: MakeLilota, fast_database_url: str, monkeypatch: pytest.MonkeyPatch, skew: int
) -> None:
    """One that is five minutes wrong writes the same ticks at the same time."""
    real = time.time_ns
    monkeypatch.setattr("time.time", lambda: real() / 1e9 + skew)
    monkeypatch.setattr("time.time_ns", lambda: real() + skew * 1_000_000_000)
    lilota = make_lilota(db_url=fast_database_url)
    lilota.register(every=0.3, executor="thread")(nothing)
    async with lilota, asyncio.timeout(DEADLINE):
        while not (found := await lilota.get_all_tasks(status="completed")):
            await asyncio.sleep(0.05)
    (task, *_) = found
    assert task.nominal_time is not None
    assert abs(task.nominal_time.timestamp() - real() / 1e9) < 30
    assert timedelta(0) <= task.created_at - task.nominal_time < LATE


async def test_a_task_knows_its_nominal_time(make_lilota: MakeLilota) -> None:
    """In its own process; a task that somebody has scheduled has none."""
    lilota = make_lilota()
    lilota.register(cron="* * * * * *", timezone="Europe/Berlin")(nominal_time)
    async with lilota, asyncio.timeout(DEADLINE):
        by_hand = await lilota.schedule(nominal_time)
        assert await lilota.result(by_hand) is None
        while not (ticks := [t for t in await lilota.get_all_tasks() if t.nominal_time]):
            await asyncio.sleep(0.05)
        (task, *_) = ticks
        assert task.nominal_time is not None
        assert await lilota.result(task.id) == task.nominal_time.isoformat()
