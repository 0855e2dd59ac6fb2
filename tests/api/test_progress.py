"""TaskProgress: what is shown, how often it is written, and that it never harms the task."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from lilota_async import Lilota, TaskProgress
from tests.api.support import DEADLINE, MakeLilota, marked, row, row_when, session, until
from tests.api.tasks import (
    echo,
    fail,
    nothing,
    progress_and_hold,
    progress_async,
    progress_through_current_task,
    set_odd_progress,
    set_progress,
    set_progress_often,
)

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
EXECUTORS = ("process", "thread", "loop")


@pytest.mark.parametrize("executor", EXECUTORS)
async def test_clamping(make_lilota: MakeLilota, executor: Any) -> None:
    """What is outside of 0..100 becomes the nearer end, fractions are cut, on every executor."""
    lilota = make_lilota(set_progress_manually=True)
    lilota.register(executor=executor)(set_progress)
    async with lilota:
        for value, shown in (
            (-5, 0),
            (0, 0),
            (12.9, 12),
            (100, 100),
            (250, 100),
            (1e308, 100),
        ):
            task_id = await lilota.schedule(set_progress, value)
            assert await lilota.result(task_id, DEADLINE) == shown
            assert (await row(lilota, task_id)).progress_percentage == shown


@pytest.mark.parametrize("executor", EXECUTORS)
async def test_what_is_no_number_is_ignored(make_lilota: MakeLilota, executor: Any) -> None:
    """NaN, None and texts neither fail the task nor change what is shown."""
    lilota = make_lilota(set_progress_manually=True)
    lilota.register(executor=executor)(set_odd_progress)
    async with lilota:
        task_id = await lilota.schedule(set_odd_progress)
        assert await lilota.result(task_id, DEADLINE) == 20
    assert (await row(lilota, task_id)).progress_percentage == 20


def test_infinity_and_huge_numbers() -> None:
    """What no JSON can hold is clamped as well, and NaN ignored."""
    published: list[int] = []
    progress = TaskProgress(published.append)
    for value in (float("inf"), float("-inf"), 10**400, float("nan"), 7, -(10**400), True):
        progress.set(value)
    assert published == [100, 0, 100, 7, 0, 1]


def test_values_that_cannot_be_compared() -> None:
    """What raises when it is compared is ignored as well."""
    published: list[int] = []
    TaskProgress(published.append).set(Decimal("NaN"))  # type: ignore[arg-type]
    TaskProgress(published.append).set(Decimal("41.5"))  # type: ignore[arg-type]
    assert published == [41]


async def test_progress_becomes_100_at_the_end(make_lilota: MakeLilota) -> None:
    """Without set_progress_manually what has ended has 100, whatever was set."""
    lilota = make_lilota(set_progress, nothing, fail)
    async with lilota:
        for task in (
            await lilota.wait(await lilota.schedule(set_progress, 40), DEADLINE),
            await lilota.wait(await lilota.schedule(nothing), DEADLINE),
            await lilota.wait(await lilota.schedule(fail, "no"), DEADLINE),
        ):
            assert task.progress_percentage == 100


async def test_manual_progress_stays(make_lilota: MakeLilota) -> None:
    """With set_progress_manually nothing but the task sets it."""
    lilota = make_lilota(nothing, fail, set_progress_manually=True)
    async with lilota:
        for task in (
            await lilota.wait(await lilota.schedule(nothing), DEADLINE),
            await lilota.wait(await lilota.schedule(fail, "no"), DEADLINE),
        ):
            assert task.progress_percentage == 0


async def test_async_and_current_task(make_lilota: MakeLilota) -> None:
    """Coroutines set it, and so does code that only knows current_task()."""
    lilota = make_lilota(progress_async, progress_through_current_task, set_progress_manually=True)
    async with lilota:
        for function in (progress_async, progress_through_current_task):
            task = await lilota.wait(await lilota.schedule(function, 33), DEADLINE)
            assert (task.status, task.progress_percentage) == ("completed", 33)


async def test_the_row_follows_while_the_task_runs(
    make_lilota: MakeLilota, directory: Path, fast_database_url: str
) -> None:
    """Others can read the progress before the end."""
    lilota = make_lilota(progress_and_hold, db_url=fast_database_url)
    async with lilota, asyncio.timeout(DEADLINE):
        task_id = await lilota.schedule(progress_and_hold, str(directory))
        await marked(directory)
        task = await row_when(lilota, task_id, lambda task: task.progress_percentage == 30)
        assert task.status == "running"
        (directory / "release").touch()


async def _record_progress(url: str) -> None:
    """Have the database keep every value that a row's progress was set to."""
    async with session(url) as own:
        await own.execute(text("CREATE TABLE history (progress INTEGER)"))
        await own.execute(
            text(
                "CREATE TRIGGER record AFTER UPDATE OF progress_percentage ON lilota_task"
                " WHEN OLD.progress_percentage <> NEW.progress_percentage"
                " BEGIN INSERT INTO history VALUES (NEW.progress_percentage); END"
            )
        )
        await own.commit()


@pytest.mark.parametrize("executor", ["process", "thread"])
async def test_set_very_often(make_lilota: MakeLilota, sqlite_url: str, executor: Any) -> None:
    """A hundred thousand values cost the database a few writes a second; the last one stays."""
    lilota = make_lilota(echo, set_progress_manually=True)
    lilota.register(executor=executor)(set_progress_often)
    async with lilota:
        await _record_progress(sqlite_url)
        task_id = await lilota.schedule(set_progress_often, 100_000)
        loop = asyncio.get_running_loop()
        start = loop.time()
        seconds = await lilota.result(task_id, DEADLINE)
        took = loop.time() - start
        assert (await row(lilota, task_id)).progress_percentage == 55
        async with session(sqlite_url) as own:
            written = (await own.execute(text("SELECT progress FROM history"))).scalars().all()
    assert seconds < 20
    assert len(written) <= 4 * took + 3
    assert written[-1] == 55


async def test_watchers_of_a_flood(make_lilota: MakeLilota) -> None:
    """A watcher of a task that floods gets an end, and no more events than it can read."""
    lilota = make_lilota(set_progress_often)
    async with lilota, asyncio.timeout(DEADLINE):
        task_id = await lilota.schedule(set_progress_often, 20_000)
        events = [event async for event in lilota.watch(task_id)]
    assert events[-1].status == "completed"


async def test_progress_after_the_end_is_not_written(
    make_lilota: MakeLilota, directory: Path
) -> None:
    """What was reported for a finished row changes nothing."""
    lilota: Lilota = make_lilota(set_progress)
    async with lilota:
        ids = [await lilota.schedule(set_progress, 10) for _ in range(20)]
        for task_id in ids:
            await lilota.wait(task_id, DEADLINE)
        assert lilota._node is not None
        node = lilota._node
        await until(lambda: not node.running, "the end")
        assert {(await row(lilota, task_id)).progress_percentage for task_id in ids} == {100}
