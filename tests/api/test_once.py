"""unique_key=: one task of a name with a key, whoever schedules it and where."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from lilota_async import AlreadyScheduled, Lilota, QueueFull, TaskId, UniqueKeyTaken
from lilota_async.errors import ConfigurationError
from tests.api.support import DEADLINE, MakeLilota, marked, row
from tests.api.tasks import echo, hold, nothing

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
CALLERS = 50


async def test_the_existing_one_is_returned(make_lilota: MakeLilota, database_url: str) -> None:
    """While a task is not final, scheduling its key again returns its id; then it makes a row."""
    lilota = make_lilota(echo, nothing, db_url=database_url)
    async with lilota:
        first = await lilota.schedule(echo, 1, unique_key="a", delay=1.5)
        assert await lilota.schedule(echo, 2, unique_key="a") == first
        assert await lilota.schedule(nothing, unique_key="a") != first  # another name
        assert await lilota.schedule(echo, 2, unique_key="b") != first
        assert await lilota.result(first, DEADLINE) == 1
        second = await lilota.schedule(echo, 2, unique_key="a")
        assert second != first
        assert await lilota.result(second, DEADLINE) == 2
        assert len(await lilota.get_all_tasks()) == 4


async def test_a_running_one_is_found(
    make_lilota: MakeLilota, directory: Path, fast_database_url: str
) -> None:
    """A running task has its key, is not replaced, and is returned."""
    lilota = make_lilota(hold, db_url=fast_database_url)
    async with lilota:
        first = await lilota.schedule(hold, str(directory), unique_key="a")
        await marked(directory)
        assert await lilota.schedule(hold, "x", unique_key="a") == first
        for on_conflict in ("reject", "replace"):
            with pytest.raises(AlreadyScheduled, match="running") as caught:
                await lilota.schedule(hold, "x", unique_key="a", on_conflict=on_conflict)
            assert caught.value.task_id == first
            assert caught.value.unique_key == "a"
        (directory / "release").touch()
        assert (await lilota.wait(first, DEADLINE)).status == "completed"
        assert len(await lilota.get_all_tasks()) == 1


async def test_reject(make_lilota: MakeLilota, fast_database_url: str) -> None:
    """A caller who wants no other is told which task has the key."""
    lilota = make_lilota(echo, db_url=fast_database_url)
    async with lilota:
        first = await lilota.schedule(
            echo, 1, unique_key="a", on_conflict="reject", delay=timedelta(hours=1)
        )
        with pytest.raises(AlreadyScheduled, match=str(first)):
            await lilota.schedule(echo, 2, unique_key="a", on_conflict="reject")
        assert await lilota.cancel(first)
        second = await lilota.schedule(echo, 2, unique_key="a", on_conflict="reject")
        assert await lilota.result(second, DEADLINE) == 2
        third = await lilota.schedule(echo, 3, unique_key="a", delay=60)
        with pytest.raises(AlreadyScheduled):
            await lilota.schedule(echo, 4, unique_key="a", on_conflict="reject")
        with pytest.raises(UniqueKeyTaken, match=str(third)):
            await lilota.retry(second)
        assert await lilota.cancel(third)
        assert await lilota.retry(second)
        assert await lilota.result(second, DEADLINE) == 2


async def test_replace(make_lilota: MakeLilota, database_url: str, without_polling: None) -> None:
    """A pending task takes the new input and time under its id: the last one counts."""
    lilota = make_lilota(echo, db_url=database_url)
    async with lilota:
        first = await lilota.schedule(echo, 1, unique_key="a", delay=3600, tags=["old"])
        for number, delay in ((2, 1800), (3, 0.3)):
            again = await lilota.schedule(
                echo, number, unique_key="a", on_conflict="replace", delay=delay, priority=number
            )
            assert again == first
        task = await lilota.wait(first, DEADLINE)
        assert (task.output, task.priority, task.tags, task.attempts) == (3, 3, None, 1)
        assert len(await lilota.get_all_tasks()) == 1


async def test_unique_for(make_lilota: MakeLilota, database_url: str) -> None:
    """The key is taken for that long after it was scheduled, by a final task too."""
    lilota = make_lilota(echo, db_url=database_url)
    async with lilota:
        await lilota.result(await lilota.schedule(echo, 0), DEADLINE)  # so that the next is quick
        first = await lilota.schedule(echo, 1, unique_key="a", unique_for=4)
        assert await lilota.result(first, DEADLINE) == 1
        assert (
            await lilota.schedule(echo, 2, unique_key="a", unique_for=timedelta(hours=1)) == first
        )
        with pytest.raises(AlreadyScheduled, match="completed"):
            await lilota.schedule(echo, 2, unique_key="a", on_conflict="reject")
        async with asyncio.timeout(DEADLINE):
            while (second := await lilota.schedule(echo, 2, unique_key="a")) == first:
                await asyncio.sleep(0.05)
        tasks = [await lilota.wait(task_id, DEADLINE) for task_id in (first, second)]
        assert (tasks[1].created_at - tasks[0].created_at).total_seconds() >= 4


@pytest.mark.parametrize("on_conflict", ["return_existing", "reject", "replace"])
async def test_fifty_callers_on_two_nodes(
    make_lilota: MakeLilota, database_url: str, on_conflict: Any
) -> None:
    """Of fifty concurrent callers on two nodes one makes the row; the others are told of it."""
    nodes = [make_lilota(echo, db_url=database_url, number_of_processes=0) for _ in range(2)]
    async with nodes[0], nodes[1]:
        for key in ("first", "second"):
            answers = await asyncio.gather(
                *(
                    nodes[number % 2].schedule(
                        echo, number, unique_key=key, on_conflict=on_conflict
                    )
                    for number in range(CALLERS)
                ),
                *(nodes[number % 2].schedule(echo, -1) for number in range(20)),
                return_exceptions=True,
            )
            plain = answers[CALLERS:]
            ids = {answer for answer in answers[:CALLERS] if isinstance(answer, TaskId)}
            errors = [answer for answer in answers[:CALLERS] if not isinstance(answer, TaskId)]
            assert all(isinstance(answer, TaskId) for answer in plain)
            assert len(ids) == 1
            assert len(errors) == (CALLERS - 1 if on_conflict == "reject" else 0)
            assert all(isinstance(error, AlreadyScheduled) for error in errors)
            assert {error.task_id for error in errors if isinstance(error, AlreadyScheduled)} <= ids
    tasks = await nodes[0].get_all_tasks()
    assert sum(task.unique_key is not None for task in tasks) == 2
    assert len(tasks) == 42


async def test_in_the_callers_transaction(make_lilota: MakeLilota, database_url: str) -> None:
    """A key counts with the commit; while it is open, nobody but those who want it waits."""
    is_sqlite = database_url.startswith("sqlite")
    lilota = make_lilota(echo, db_url=database_url)
    engine = create_async_engine(lilota._database().url)
    async with lilota:
        async with engine.connect() as own:
            first = await lilota.schedule(echo, 1, unique_key="a", session=own, delay=60)
            if not is_sqlite:  # where a transaction that writes keeps every other from writing
                other = asyncio.create_task(lilota.schedule(echo, 2, unique_key="a"))
                assert await lilota.result(await lilota.schedule(echo, 3), DEADLINE) == 3
                assert not other.done()
            assert await lilota.schedule(echo, 1, unique_key="a", session=own) == first
            await own.commit()
            if not is_sqlite:
                assert await other == first
        async with engine.connect() as own:
            taken = await lilota.schedule(echo, 4, unique_key="b", session=own)
            await own.rollback()
        free = await lilota.schedule(echo, 5, unique_key="b", on_conflict="reject")
        assert free != taken
        assert await lilota.result(free, DEADLINE) == 5
    await engine.dispose()


async def test_a_full_queue(make_lilota: MakeLilota, fast_database_url: str) -> None:
    """Where there is no room for a new row, the existing one is returned all the same."""
    lilota: Lilota = make_lilota(db_url=fast_database_url, number_of_processes=0)
    lilota.register(max_pending=2)(echo)
    async with lilota:
        first = await lilota.schedule(echo, 1, unique_key="a")
        await lilota.schedule(echo, 2)
        assert await lilota.schedule(echo, 3, unique_key="a") == first
        with pytest.raises(QueueFull):
            await lilota.schedule(echo, 3, unique_key="b")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unique_key": ""}, "unique_key"),
        ({"unique_key": 3}, "unique_key"),
        ({"unique_key": "a\nb"}, "unique_key"),
        ({"unique_key": "x" * 201}, "unique_key"),
        ({"unique_key": "a", "on_conflict": "ignore"}, "on_conflict"),
        ({"on_conflict": "reject"}, "unique_key"),
        ({"unique_for": 60}, "unique_key"),
        ({"unique_key": "a", "unique_for": -1}, "unique_for"),
        ({"unique_key": "a", "unique_for": timedelta.max}, "100 years"),
    ],
)
async def test_settings_that_are_none(
    make_lilota: MakeLilota, options: dict[str, Any], message: str
) -> None:
    """A key that cannot be kept is refused before anything is written."""
    lilota = make_lilota(nothing, number_of_processes=0)
    async with lilota:
        with pytest.raises(ConfigurationError, match=message):
            await lilota.schedule(nothing, **options)
        assert await lilota.get_all_tasks() == []


async def test_a_key_of_any_text(make_lilota: MakeLilota, database_url: str) -> None:
    """Keys compare byte by byte on every database, as long as they may be."""
    lilota = make_lilota(nothing, db_url=database_url, number_of_processes=0)
    keys = ["ä" * 200, "Ä" * 200, "a", "A", "a ", "%'\"\\", "😀"]
    async with lilota:
        ids = [await lilota.schedule(nothing, unique_key=key, delay=60) for key in keys]
        again = [await lilota.schedule(nothing, unique_key=key, delay=60) for key in keys]
        assert len(set(ids)) == len(keys)
        assert again == ids
        assert (await row(lilota, ids[0])).unique_key == keys[0]
