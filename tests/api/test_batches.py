"""schedule_many(): collections, iterators, what fails in the middle, and memory."""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from lilota_async import InvalidInput, Lilota, PartlyScheduled, QueueFull, TaskId
from lilota_async.batches import ROWS_PER_CHUNK
from lilota_async.errors import ConfigurationError
from tests.api.support import MakeLilota
from tests.api.tasks import AddInput, add, echo, nothing

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]
MIB = 2**20


async def _ids(lilota: Lilota) -> list[TaskId[Any]]:
    return [task.id for task in await lilota.get_all_tasks()]


async def _asynchronous(inputs: Iterator[Any]) -> AsyncIterator[Any]:
    for each in inputs:
        yield each
        await asyncio.sleep(0)


def _with_one_bad(bad: int, number: int) -> Iterator[Any]:
    return (AddInput(n, 1) if n != bad else {"a": 1, "b": "x"} for n in range(number))


@pytest.mark.parametrize("number", [0, 1, 999, 1000, 1001, 2500])
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_iterators_of_any_length(
    make_lilota: MakeLilota, number: int, asynchronous: bool
) -> None:
    """One row for each input, with ids that sort in the order of the inputs."""
    lilota = make_lilota(echo, number_of_processes=0)
    inputs: Any = iter(range(number))
    async with lilota:
        ids = await lilota.schedule_many(
            echo, _asynchronous(inputs) if asynchronous else inputs, priority=3, tags=["t"]
        )
        assert len(ids) == len(set(ids)) == number
        tasks = {task.id: task for task in await lilota.get_all_tasks()}
    assert [tasks[task_id].input for task_id in ids] == list(range(number))
    assert {(task.priority, tuple(task.tags or ())) for task in tasks.values()} <= {(3, ("t",))}


async def test_a_collection_is_checked_as_a_whole(
    make_lilota: MakeLilota, database_url: str
) -> None:
    """However late the input that does not fit comes, nothing is written; its index is told."""
    lilota = make_lilota(add, db_url=database_url, number_of_processes=0)
    async with lilota:
        for inputs in (list(_with_one_bad(2300, 2500)), tuple(_with_one_bad(2300, 2301))):
            with pytest.raises(InvalidInput, match=r"input \[2300\] of task 'add'") as caught:
                await lilota.schedule_many(add, inputs)
            assert (caught.value.index, caught.value.field) == (2300, "$.b")
        assert await _ids(lilota) == []


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_iterator_is_written_chunk_by_chunk(
    make_lilota: MakeLilota, database_url: str, asynchronous: bool
) -> None:
    """The error has the ids of exactly those rows that are there, and what was wrong."""
    lilota = make_lilota(add, db_url=database_url, number_of_processes=0)
    inputs: Any = _with_one_bad(2300, 5000)
    async with lilota:
        with pytest.raises(PartlyScheduled, match="first 2000 tasks are committed") as caught:
            await lilota.schedule_many(add, _asynchronous(inputs) if asynchronous else inputs)
        assert caught.value.task_ids == await _ids(lilota)
        reason = caught.value.reason
        assert isinstance(reason, InvalidInput)
        assert reason.index == 2300
        assert caught.value.__cause__ is reason


async def test_an_iterator_that_fails_in_its_first_chunk(make_lilota: MakeLilota) -> None:
    """Nothing is written then, and the error is the plain one."""
    lilota = make_lilota(add, number_of_processes=0)
    async with lilota:
        with pytest.raises(InvalidInput):
            await lilota.schedule_many(add, _with_one_bad(ROWS_PER_CHUNK - 1, 5000))
        assert await _ids(lilota) == []


async def test_an_iterator_that_raises(make_lilota: MakeLilota) -> None:
    """What the application's own iterator raises is the reason, or comes as it is."""

    def broken(number: int) -> Iterator[int]:
        yield from range(number)
        raise ZeroDivisionError

    lilota = make_lilota(echo, number_of_processes=0)
    async with lilota:
        with pytest.raises(ZeroDivisionError):
            await lilota.schedule_many(echo, broken(10))
        with pytest.raises(PartlyScheduled) as caught:
            await lilota.schedule_many(echo, broken(1500))
        assert isinstance(caught.value.reason, ZeroDivisionError)
        assert caught.value.task_ids == await _ids(lilota)
        assert len(caught.value.task_ids) == 1000


async def test_an_iterator_beyond_max_pending(
    make_lilota: MakeLilota, fast_database_url: str
) -> None:
    """Chunks are written while there is room; the reason tells when to go on."""
    lilota = make_lilota(echo, db_url=fast_database_url, number_of_processes=0, max_pending=2500)
    async with lilota:
        with pytest.raises(PartlyScheduled) as caught:
            await lilota.schedule_many(echo, iter(range(5000)))
        assert isinstance(caught.value.reason, QueueFull)
        assert caught.value.task_ids == await _ids(lilota)
        assert len(caught.value.task_ids) == 2000


async def test_settings_that_cannot_be(make_lilota: MakeLilota) -> None:
    """A setting is refused before anything is written."""
    lilota = make_lilota(echo, number_of_processes=0)
    async with lilota:
        with pytest.raises(ConfigurationError):
            await lilota.schedule_many(echo, [1], priority=2**40)
        assert await _ids(lilota) == []


async def test_in_the_transaction_of_the_application(
    make_lilota: MakeLilota, fast_database_url: str
) -> None:
    """All chunks are in it: a failure leaves nothing to be told, and a rollback nothing at all."""
    lilota = make_lilota(add, db_url=fast_database_url, number_of_processes=0)
    engine = create_async_engine(fast_database_url)
    async with lilota:
        with pytest.raises(InvalidInput):
            async with engine.begin() as connection:
                await lilota.schedule_many(add, _with_one_bad(2300, 5000), session=connection)
        assert await _ids(lilota) == []
        async with engine.begin() as connection:
            ids = await lilota.schedule_many(add, _with_one_bad(-1, 2300), session=connection)
        assert await _ids(lilota) == ids
    await engine.dispose()


async def test_a_caller_that_is_cancelled(make_lilota: MakeLilota) -> None:
    """Whole chunks are there, or not; the rest is not looked at."""
    lilota = make_lilota(echo, number_of_processes=0)
    looked_at = 0

    def inputs() -> Iterator[int]:
        nonlocal looked_at
        for number in range(1_000_000):
            looked_at = number
            yield number

    async with lilota:
        calling = asyncio.create_task(lilota.schedule_many(echo, inputs()))
        while looked_at < 3500:
            await asyncio.sleep(0)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        assert looked_at < 10_000
    assert len(await _ids(lilota)) % ROWS_PER_CHUNK == 0


async def test_large_inputs_make_small_chunks(make_lilota: MakeLilota, database_url: str) -> None:
    """A hundred inputs of a megabyte each are not one statement."""
    lilota = make_lilota(echo, db_url=database_url, number_of_processes=0)
    async with lilota:
        ids = await lilota.schedule_many(echo, ("x" * MIB for _ in range(40)))
        assert await _ids(lilota) == ids


async def test_others_are_served_meanwhile(make_lilota: MakeLilota) -> None:
    """The loop does not stand still for a chunk."""
    lilota = make_lilota(add, number_of_processes=0)
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            before = time.thread_time()  # of the loop, however much else runs on the machine
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - before)

    async with lilota:
        gc.freeze()  # a collection of all that the tests have piled up takes longer than a chunk
        try:
            watching = asyncio.create_task(watch())
            began = time.thread_time()
            await lilota.schedule_many(add, [AddInput(n, 1) for n in range(20_000)])
            used = time.thread_time() - began
            watching.cancel()
        finally:
            gc.unfreeze()
    assert longest < used / 4


async def test_memory_does_not_grow_with_the_inputs(
    make_lilota: MakeLilota, fast_database_url: str
) -> None:
    """Of 50,000 inputs from an iterator no more is held than of 5,000, but for their ids."""
    asynchronous = fast_database_url.startswith("sqlite")
    lilota = make_lilota(echo, db_url=fast_database_url, number_of_processes=0)

    async def peak(number: int) -> int:
        inputs: Any = ("x" * 200 for _ in range(number))
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        ids = await lilota.schedule_many(echo, _asynchronous(inputs) if asynchronous else inputs)
        highest = tracemalloc.get_traced_memory()[1] - before
        gc.collect()
        held = tracemalloc.get_traced_memory()[0] - before
        assert len(ids) == number
        del ids
        gc.collect()
        of_ids = held - (tracemalloc.get_traced_memory()[0] - before)
        return highest - of_ids

    async with lilota:
        await lilota.schedule_many(echo, range(2000))
        tracemalloc.start()
        try:
            small, large = await peak(5_000), await peak(50_000)
        finally:
            tracemalloc.stop()
    assert large < small + 2 * MIB


async def test_a_task_without_input(make_lilota: MakeLilota) -> None:
    """Each None is one task."""
    lilota = make_lilota(nothing, number_of_processes=0)
    async with lilota:
        assert len(await lilota.schedule_many(nothing, [None] * 3)) == 3
        with pytest.raises(InvalidInput, match="takes no input"):
            await lilota.schedule_many(nothing, [None, 1])
