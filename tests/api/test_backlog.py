"""max_pending: schedule() refuses when as many tasks wait as may."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from lilota_async import Lilota, QueueFull, TaskId
from lilota_async.errors import ConfigurationError, InvalidInput
from tests.api.support import DEADLINE, MakeLilota, marked
from tests.api.tasks import echo, hold, nothing

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


def _bounded(lilota: Lilota, most: int) -> None:
    lilota.register("bounded", max_pending=most)(nothing)


async def test_a_name_of_its_own_bound(make_lilota: MakeLilota, fast_database_url: str) -> None:
    """The bound of a name is for that name; the error tells which, how many, and for how long."""
    lilota = make_lilota(echo, db_url=fast_database_url, number_of_processes=0)
    _bounded(lilota, 3)
    async with lilota:
        for _ in range(3):
            await lilota.schedule("bounded")
        with pytest.raises(QueueFull, match=r"'bounded'.*max_pending") as caught:
            await lilota.schedule("bounded")
        assert (caught.value.name, caught.value.max_pending) == ("bounded", 3)
        assert caught.value.retry_after > 0
        await lilota.schedule(echo, 1)
        assert len(await lilota.get_all_tasks(name="bounded")) == 3


async def test_the_bound_of_all(make_lilota: MakeLilota) -> None:
    """Lilota(max_pending=) counts every name; a batch that does not fit leaves nothing."""
    lilota = make_lilota(echo, nothing, number_of_processes=0, max_pending=4)
    async with lilota:
        await lilota.schedule(nothing)
        await lilota.schedule_many(echo, [1, 2])
        with pytest.raises(QueueFull, match="4 tasks") as caught:
            await lilota.schedule_many(echo, [3, 4])
        assert caught.value.name is None
        assert len(await lilota.get_all_tasks()) == 3
        await lilota.schedule(nothing)
        with pytest.raises(QueueFull):
            await lilota.schedule(nothing)
        with pytest.raises(InvalidInput):  # what can never be scheduled says so first
            await lilota.schedule(echo, float("nan"))


async def test_a_batch_of_many_chunks(make_lilota: MakeLilota) -> None:
    """A list that does not fit as a whole is refused before its first thousand is written."""
    lilota = make_lilota(echo, number_of_processes=0, max_pending=2500)
    async with lilota:
        with pytest.raises(QueueFull):
            await lilota.schedule_many(echo, range(2501))
        assert await lilota.get_all_tasks(limit=1) == []
        assert len(await lilota.schedule_many(echo, range(2500))) == 2500


async def test_room_comes_back(make_lilota: MakeLilota, directory: Path) -> None:
    """What runs takes no room, and after what waited has ended there is some again."""
    lilota = make_lilota(hold, echo, max_pending=2)
    async with lilota:
        await lilota.schedule(hold, str(directory))
        await marked(directory)
        waiting = [await lilota.schedule(echo, number) for number in range(2)]
        with pytest.raises(QueueFull):
            await lilota.schedule(echo, 2)
        (directory / "release").touch()
        for task_id in waiting:
            await lilota.wait(task_id, DEADLINE)
        ended = await lilota.schedule(echo, 3)
        assert await lilota.result(ended, DEADLINE) == 3


async def test_fifty_callers_on_each_of_two_nodes(
    make_lilota: MakeLilota, database_url: str
) -> None:
    """However many call at once, no more rows are there than may be, and no fewer."""
    nodes = []
    for _ in range(2):
        nodes.append(make_lilota(db_url=database_url, number_of_processes=0))
        _bounded(nodes[-1], 20)
    async with nodes[0], nodes[1]:
        calls = [node.schedule("bounded") for _ in range(50) for node in nodes]
        outcomes: list[Any] = await asyncio.gather(*calls, return_exceptions=True)
        accepted = {each for each in outcomes if isinstance(each, TaskId)}
        refused = [each for each in outcomes if isinstance(each, QueueFull)]
        assert (len(accepted), len(refused)) == (20, 80)
        assert {task.id for task in await nodes[0].get_all_tasks()} == accepted


async def test_scheduling_the_same_id_again(make_lilota: MakeLilota) -> None:
    """A row that is there already is no new one, and is not refused."""
    lilota = make_lilota(number_of_processes=0)
    _bounded(lilota, 1)
    async with lilota:
        own = TaskId[Any]()
        for _ in range(2):
            assert await lilota.schedule("bounded", task_id=own) == own
        with pytest.raises(QueueFull):
            await lilota.schedule("bounded", task_id=TaskId())


async def test_in_the_transaction_of_the_application(
    make_lilota: MakeLilota, fast_database_url: str
) -> None:
    """schedule(session=) counts what is committed, and leaves the transaction usable."""
    lilota = make_lilota(db_url=fast_database_url, number_of_processes=0)
    _bounded(lilota, 1)
    async with lilota:
        await lilota.schedule("bounded")
        engine = create_async_engine(fast_database_url)
        async with engine.begin() as connection:
            with pytest.raises(QueueFull):
                await lilota.schedule("bounded", session=connection)
        await engine.dispose()
        assert len(await lilota.get_all_tasks()) == 1


async def test_the_estimate_follows_the_throughput(make_lilota: MakeLilota) -> None:
    """With tasks that end quickly, the pause is the shortest; without any it is a guess."""
    lilota = make_lilota(echo, max_pending=50)
    async with lilota:
        for number in range(30):
            await lilota.wait(await lilota.schedule(echo, number), DEADLINE)
        with pytest.raises(QueueFull) as caught:
            await lilota.schedule_many(echo, range(51))
    assert 1.0 <= caught.value.retry_after < 10.0


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "10"])
def test_what_is_no_bound(value: Any) -> None:
    """A bound is a whole number from 1 on, for all and for a name."""
    with pytest.raises(ConfigurationError, match="max_pending"):
        Lilota(max_pending=value)
    with pytest.raises(ConfigurationError, match="max_pending"):
        Lilota().register(max_pending=value)


async def test_a_database_that_reads_repeatably(
    make_lilota: MakeLilota, postgresql_url: str
) -> None:
    """The bound holds over several nodes, whatever isolation the database gives by default."""
    name = make_url(postgresql_url).database
    engine = create_async_engine(postgresql_url, isolation_level="AUTOCOMMIT")
    async with engine.connect() as admin:
        change = f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'"
        await admin.execute(text(change))
        try:
            nodes = [
                make_lilota(nothing, db_url=postgresql_url, max_pending=10, number_of_processes=0)
                for _ in range(3)
            ]
            for node in nodes:
                await node.start()
            answers = await asyncio.gather(
                *(node.schedule(nothing) for _ in range(20) for node in nodes),
                return_exceptions=True,
            )
        finally:
            await admin.execute(text(f"ALTER DATABASE {name} RESET ALL"))
    await engine.dispose()
    assert {type(each) for each in answers} == {TaskId, QueueFull}
    assert len(await nodes[0].get_all_tasks()) == 10
