"""Retention, prune(), and listing by filters."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from lilota_async import Lilota, TaskId, TaskStatus
from lilota_async.errors import ConfigurationError
from tests.api.support import DEADLINE, MakeLilota
from tests.api.tasks import echo, fail, nothing

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


async def _ended(lilota: Lilota, *tasks: str, number: int = 2) -> list[TaskId[Any]]:
    ids = [await lilota.schedule(name, "x") for name in tasks for _ in range(number)]
    for task_id in ids:
        await lilota.wait(task_id, DEADLINE)
    return ids


async def _until_left(lilota: Lilota, names: set[str]) -> None:
    """Wait until tasks of these names are left, and no others."""
    async with asyncio.timeout(DEADLINE):
        while {task.name for task in await lilota.get_all_tasks()} != names:
            await asyncio.sleep(0.02)


async def test_retention_of_all_and_of_a_name(
    make_lilota: MakeLilota, fast_database_url: str
) -> None:
    """What Lilota() says is for every name that does not say otherwise, status by status."""
    lilota = make_lilota(
        echo, fail, db_url=fast_database_url, retention={"completed": timedelta(0)}
    )
    lilota.register("kept", retention={"completed": None})(echo)
    lilota.register("failing", retention=0.0)(fail)
    async with lilota:
        for name in ("echo", "fail", "kept", "failing"):
            await lilota.schedule_many(name, ["x"] * 2)  # of some nobody sees the end
        await _until_left(lilota, {"fail", "kept"})
        for task in await lilota.get_all_tasks():
            await lilota.wait(task.id, DEADLINE)
        assert len(await lilota.get_all_tasks()) == 4


async def test_nothing_is_deleted_by_default(make_lilota: MakeLilota) -> None:
    """Without retention there is nothing to keep house for."""
    lilota = make_lilota(echo)
    async with lilota:
        ids = await _ended(lilota, "echo")
        node = lilota._node
        assert node is not None
        assert node._housekeeping.rules() == []
        assert [task.id for task in await lilota.get_all_tasks()] == ids


@pytest.mark.parametrize(
    "value", [-1, "7 days", {"pending": 1}, {"done": 1}, {"failed": "1"}, {"completed": -1}]
)
def test_what_is_no_retention(value: Any) -> None:
    """Durations, by statuses of an end; anything else is refused with what can be."""
    with pytest.raises(ConfigurationError, match="retention"):
        Lilota(retention=value)
    with pytest.raises(ConfigurationError, match="retention"):
        Lilota().register(retention=value)


async def test_prune(make_lilota: MakeLilota, fast_database_url: str) -> None:
    """By age, status and name, also when it does not run; the number of rows comes back."""
    lilota = make_lilota(echo, fail, db_url=fast_database_url)
    async with lilota:
        await _ended(lilota, "echo", "fail")
        assert await lilota.prune(timedelta(hours=1)) == 0
        assert await lilota.prune(0, status="failed", name="echo") == 0
        assert await lilota.prune(0, status=TaskStatus.FAILED) == 2
    assert await lilota.prune(older_than=0.0, name="echo") == 2
    assert await lilota.get_all_tasks() == []
    with pytest.raises(ConfigurationError, match="has not ended"):
        await lilota.prune(0, status="running")
    with pytest.raises(ConfigurationError, match="older_than"):
        await lilota.prune(-1)
    with pytest.raises(ConfigurationError, match="older_than must be 100 years at most"):
        await lilota.prune(timedelta.max)


async def test_listing_by_tags_and_time(make_lilota: MakeLilota, database_url: str) -> None:
    """All filters together, and page by page, on every database."""
    lilota = make_lilota(echo, nothing, db_url=database_url, number_of_processes=0)
    async with lilota:
        tags = [["a"], ["a", "b"], ["b"], [], ['x","b'], ["ä%_\\"], ["A"]]
        ids = [await lilota.schedule(echo, n, tags=each) for n, each in enumerate(tags)]
        found = {
            "a": [ids[0], ids[1]],
            "b": [ids[1], ids[2]],
            'x","b': [ids[4]],
            "ä%_\\": [ids[5]],
            "%": [],
        }
        for tag, expected in found.items():
            assert [task.id for task in await lilota.get_all_tasks(tags=[tag])] == expected
        (both,) = await lilota.get_all_tasks(tags=["b", "a"], name="echo", status="pending")
        assert both.id == ids[1]
        assert await lilota.get_all_tasks(tags=["a"], name="nothing") == []
        assert [t.id for t in await lilota.get_all_tasks(tags=["a"], limit=1)] == [ids[0]]
        rest = await lilota.get_all_tasks(tags=["a"], limit=1, after=ids[0])
        assert [task.id for task in rest] == [ids[1]]

        all_tasks = await lilota.get_all_tasks()
        middle = all_tasks[3].created_at
        later = [task.id for task in all_tasks if task.created_at >= middle]
        assert [t.id for t in await lilota.get_all_tasks(created_after=middle)] == later
        earlier = [task.id for task in all_tasks if task.created_at < middle]
        listed = await lilota.get_all_tasks(created_before=middle, status="pending")
        assert [task.id for task in listed] == earlier
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        assert await lilota.get_all_tasks(created_after=tomorrow) == []
        assert len(await lilota.get_all_tasks(created_before=tomorrow)) == len(ids)


async def test_filters_that_cannot_be(make_lilota: MakeLilota) -> None:
    """Naive times, and a text for the tags, are refused with what to give instead."""
    lilota = make_lilota(nothing, number_of_processes=0)
    naive = datetime(2025, 1, 1)
    async with lilota:
        with pytest.raises(ConfigurationError, match="timezone"):
            await lilota.get_all_tasks(created_after=naive)
        with pytest.raises(ConfigurationError, match="timezone"):
            await lilota.get_all_tasks(created_before="2025-01-01")  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="tags"):
            await lilota.get_all_tasks(tags="a")
