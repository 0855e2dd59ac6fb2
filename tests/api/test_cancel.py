"""cancel(): pending, running, unwilling, elsewhere; what True and False mean."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from lilota_async import Retry, TaskCancelled, TaskId
from lilota_async.errors import NotRunning
from tests.api import tasks
from tests.api.quick import nap
from tests.api.support import DEADLINE, MakeLilota, is_gone, marked, row, row_when
from tests.api.tasks import echo, hold, spin

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


async def test_pending(make_lilota: MakeLilota, directory: Path, fast_database_url: str) -> None:
    """A pending task is cancelled at once and never runs."""
    lilota = make_lilota(hold, echo, db_url=fast_database_url)
    async with lilota, asyncio.timeout(DEADLINE):
        running = await lilota.schedule(hold, str(directory))
        await marked(directory)
        pending = await lilota.schedule(echo, 1)
        assert await lilota.cancel(pending)
        assert not await lilota.cancel(pending)
        (directory / "release").touch()
        assert await lilota.result(running) == "released"
    task = await row(lilota, pending)
    assert (task.status, task.attempts, task.pid) == ("cancelled", 0, None)
    assert task.start_date_time is None
    assert task.end_date_time is not None


@pytest.mark.parametrize(
    "function",
    [
        tasks.spin,
        tasks.spin_and_clean_up,
        tasks.swallow,
        tasks.hold_the_interpreter,
        tasks.stop_itself,
        tasks.hold_async,
    ],
)
async def test_running(make_lilota: MakeLilota, directory: Path, function: Any) -> None:
    """Any code ends: when cancel() has returned True the process is gone and the row says so."""
    # Who cleans up must come to it, also on a busy machine.
    grace = DEADLINE if function is tasks.spin_and_clean_up else 0.3
    lilota = make_lilota(function, echo, grace=grace)
    async with lilota, asyncio.timeout(DEADLINE):
        task_id = await lilota.schedule(function, str(directory))
        pid = int(await marked(directory))
        assert await lilota.cancel(task_id)
        assert is_gone(pid)
        task = await row(lilota, task_id)
        assert (task.status, task.pid, task.attempts) == ("cancelled", pid, 1)
        assert (task.output, task.exception) == (None, None)
        assert task.end_date_time is not None
        assert not await lilota.cancel(task_id)
        with pytest.raises(TaskCancelled):
            await lilota.result(task_id)
        # The slot works on.
        assert await lilota.result(await lilota.schedule(echo, 1)) == 1
    assert (directory / "cleaned").exists() == (function is tasks.spin_and_clean_up)


async def test_children_end_with_their_task(make_lilota: MakeLilota, directory: Path) -> None:
    """What a cancelled task has started is gone as well."""
    lilota = make_lilota(tasks.start_a_child)
    async with lilota, asyncio.timeout(DEADLINE):
        task_id = await lilota.schedule(tasks.start_a_child, str(directory))
        child = int(await marked(directory, "child"))
        await marked(directory)
        assert not is_gone(child)
        assert await lilota.cancel(task_id)
        assert is_gone(child)


async def test_neighbours_are_not_touched(make_lilota: MakeLilota, tmp_path: Path) -> None:
    """Cancels beside a task neither end it nor begin it again."""
    lilota = make_lilota(hold, spin, number_of_processes=2)
    quiet = tmp_path / "quiet"
    quiet.mkdir()
    async with lilota, asyncio.timeout(DEADLINE):
        neighbour = await lilota.schedule(hold, str(quiet))
        await marked(quiet)
        for number in range(5):
            directory = tmp_path / str(number)
            directory.mkdir()
            task_id = await lilota.schedule(spin, str(directory))
            await marked(directory)
            assert await lilota.cancel(task_id)
        (quiet / "release").touch()
        assert await lilota.result(neighbour) == "released"
    assert (await row(lilota, neighbour)).attempts == 1


async def test_from_another_node(
    make_lilota: MakeLilota, directory: Path, fast_database_url: str
) -> None:
    """Another Lilota of the same database cancels as well; the owner ends the process."""
    worker = make_lilota(spin, db_url=fast_database_url)
    other = make_lilota(spin, db_url=fast_database_url, number_of_processes=0)
    async with worker, other, asyncio.timeout(DEADLINE):
        task_id = await other.schedule(spin, str(directory))
        pid = int(await marked(directory))
        loop = asyncio.get_running_loop()
        start = loop.time()
        assert await other.cancel(task_id)
        assert loop.time() - start < DEADLINE / 2
        assert is_gone(pid)
        assert (await row(other, task_id)).status == "cancelled"
        assert not await other.cancel(task_id)


async def test_from_several_at_once(make_lilota: MakeLilota, directory: Path) -> None:
    """Several cancels of one running task agree, and the task ends once."""
    worker = make_lilota(spin)
    other = make_lilota(spin, number_of_processes=0)
    async with worker, other, asyncio.timeout(DEADLINE):
        task_id = await worker.schedule(spin, str(directory))
        await marked(directory)
        cancels = [lilota.cancel(task_id) for lilota in (worker, other, worker)]
        assert await asyncio.gather(*cancels) == [True, True, True]
    assert (await row(worker, task_id)).attempts == 1


async def test_unknown_and_final(make_lilota: MakeLilota) -> None:
    """What is final, failed included, or not there, cannot be cancelled."""
    lilota = make_lilota(echo, tasks.fail)
    async with lilota, asyncio.timeout(DEADLINE):
        assert not await lilota.cancel(TaskId())
        for task_id in (await lilota.schedule(echo, 1), await lilota.schedule(tasks.fail, "no")):
            before = await lilota.wait(task_id)
            assert not await lilota.cancel(task_id)
            after = await row(lilota, task_id)
            assert (after.status, after.end_date_time) == (before.status, before.end_date_time)


async def test_needs_a_running_lilota(make_lilota: MakeLilota) -> None:
    """Without start() there is nobody who could cancel."""
    lilota = make_lilota(echo)
    with pytest.raises(NotRunning, match=r"cancel\(\)"):
        await lilota.cancel(TaskId())


@pytest.mark.parametrize("executor", ["process", "thread"])
async def test_cooperation(make_lilota: MakeLilota, directory: Path, executor: Any) -> None:
    """A task that looks at current_task().cancelled ends by itself, and is cancelled."""
    lilota = make_lilota()
    lilota.register(executor=executor)(tasks.cooperate)
    async with lilota, asyncio.timeout(DEADLINE):
        task_id = await lilota.schedule(tasks.cooperate, str(directory))
        await marked(directory)
        assert await lilota.cancel(task_id)
        assert (await row(lilota, task_id)).status == "cancelled"
    assert (directory / "stopped").exists() == (executor == "thread")


async def test_a_thread_that_does_not_look(make_lilota: MakeLilota, directory: Path) -> None:
    """A thread cannot be killed: cancel() waits for it, or says that it is not done yet."""
    lilota = make_lilota()
    lilota.register(executor="thread")(hold)
    async with lilota, asyncio.timeout(DEADLINE):
        task_id = await lilota.schedule(hold, str(directory))
        await marked(directory)
        with pytest.raises(TimeoutError):
            await lilota.cancel(task_id, timeout=0.1)
        assert (await row(lilota, task_id)).status == "running"
        cancelling = asyncio.ensure_future(lilota.cancel(task_id))
        await asyncio.sleep(0)
        (directory / "release").touch()
        assert not await cancelling  # its result came first
        assert await lilota.result(task_id) == "released"


@pytest.mark.parametrize("executor", ["loop", "thread"])
async def test_coroutines(make_lilota: MakeLilota, directory: Path, executor: Any) -> None:
    """A coroutine on the loop is cancelled where it waits; in a thread it has to look."""
    function: Any = tasks.hold_async if executor == "loop" else tasks.cooperate
    lilota = make_lilota()
    lilota.register(executor=executor)(function)
    async with lilota, asyncio.timeout(DEADLINE):
        task_id = await lilota.schedule(function, str(directory))
        await marked(directory)
        assert await lilota.cancel(task_id)
        assert (await row(lilota, task_id)).status == "cancelled"


async def test_a_retrying_task_is_not_retried(make_lilota: MakeLilota, directory: Path) -> None:
    """A cancelled task is not begun again, whatever its policy; nor is one that waits for it."""
    lilota = make_lilota(echo)
    lilota.register(retry=Retry(max_attempts=5, delay=0))(spin)
    lilota.register(retry=Retry(max_attempts=5, delay=300))(tasks.fail)
    async with lilota, asyncio.timeout(DEADLINE):
        task_id = await lilota.schedule(spin, str(directory))
        await marked(directory)
        assert await lilota.cancel(task_id)
        assert (await row(lilota, task_id)).attempts == 1
        waiting = await lilota.schedule(tasks.fail, "once")
        await row_when(lilota, waiting, lambda task: task.failures is not None)
        assert await lilota.cancel(waiting)
    assert (await row(lilota, waiting)).status == "cancelled"


async def test_cancel_against_completion(make_lilota: MakeLilota, fast_database_url: str) -> None:
    """However they race, each row has one outcome, cancel() tells it, and no slot is lost."""
    lilota = make_lilota(nap, echo, db_url=fast_database_url, number_of_processes=2)
    async with lilota, asyncio.timeout(2 * DEADLINE):

        async def race(number: int) -> None:
            task_id = await lilota.schedule(nap, 0.002)
            await asyncio.sleep(number % 20 * 0.0005)
            was_cancelled = await lilota.cancel(task_id)
            task = await row(lilota, task_id)
            assert task.status == ("cancelled" if was_cancelled else "completed")
            assert task.attempts <= 1

        for start in range(0, 250, 4):
            await asyncio.gather(*(race(number) for number in range(start, start + 4)))
        ids = await lilota.schedule_many(echo, range(4))
        assert [await lilota.result(task_id) for task_id in ids] == [0, 1, 2, 3]


async def test_cancels_in_a_flood_of_short_tasks(make_lilota: MakeLilota) -> None:
    """Short tasks share a process in bursts: a cancel concerns its own task alone."""
    lilota = make_lilota(echo, number_of_processes=2, grace=0.05)
    async with lilota, asyncio.timeout(2 * DEADLINE):
        for task_id in await lilota.schedule_many(echo, range(100)):
            await lilota.wait(task_id)  # short tasks are known by now
        ids = await lilota.schedule_many(echo, range(2000))
        cancelled: set[TaskId[Any]] = set()
        for task_id in ids[10::25]:
            if await lilota.cancel(task_id):
                cancelled.add(task_id)
        for task_id in ids:
            task = await lilota.wait(task_id)
            assert task.status == ("cancelled" if task_id in cancelled else "completed")
            assert task.attempts <= 1
