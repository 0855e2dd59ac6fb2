"""start(), stop(), async with, lifespan: what they promise and what they leave behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from lilota_async import Lilota, NotRunning, StoreUnavailable, TaskId
from lilota_async.errors import AlreadyRunning, ConfigurationError, SchemaMissing
from tests.api.support import (
    DEADLINE,
    MakeLilota,
    is_gone,
    marked,
    row,
    task_processes,
    until,
)
from tests.api.tasks import crash, echo, fail, hold, hold_async, spin

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]


async def test_is_running(make_lilota: MakeLilota) -> None:
    """It runs between start() and stop(), and can be started again after that."""
    lilota = make_lilota(echo)
    assert not lilota.is_running
    for _ in range(2):
        await lilota.start()
        assert lilota.is_running
        with pytest.raises(AlreadyRunning):
            await lilota.start()
        task_id = await lilota.schedule(echo, 1)
        await lilota.stop()
        assert not lilota.is_running
        assert (await row(lilota, task_id)).status == "completed"
        with pytest.raises(NotRunning):
            await lilota.stop()


async def test_what_is_not_there_while_starting(make_lilota: MakeLilota) -> None:
    """Until start() has returned there is nothing to schedule with, to stop or to start again."""
    lilota = make_lilota(echo)
    starting = asyncio.ensure_future(lilota.start())
    await asyncio.sleep(0)
    assert not lilota.is_running
    for call in (lilota.schedule(echo, 1), lilota.stop()):
        with pytest.raises(NotRunning):
            await call
    with pytest.raises(AlreadyRunning):
        await lilota.start()
    await starting
    assert await lilota.result(await lilota.schedule(echo, 1), DEADLINE) == 1


async def test_async_with(make_lilota: MakeLilota, directory: Path) -> None:
    """The block finishes what was accepted; after an exception only what runs."""
    lilota = make_lilota(echo, hold)
    async with lilota as same:
        assert same is lilota
        ids = [await lilota.schedule(echo, number) for number in range(20)]
    assert {(await row(lilota, task_id)).status for task_id in ids} == {"completed"}

    async def fail_within() -> None:
        async with lilota:
            ids[0] = await lilota.schedule(hold, str(directory))
            await marked(directory)
            ids[1] = await lilota.schedule(echo, 1)
            (directory / "release").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_within()
    assert (await row(lilota, ids[0])).status == "completed"
    assert (await row(lilota, ids[1])).status == "pending"


async def test_stop_within_the_block(make_lilota: MakeLilota) -> None:
    """Who has stopped already may leave the block, and the lifespan, as usual."""
    lilota = make_lilota(echo)
    async with lilota:
        task_id = await lilota.schedule(echo, 1)
        await lilota.stop()
        assert (await row(lilota, task_id)).output == 1
    async with lilota.lifespan():
        await lilota.stop()
    assert not lilota.is_running


async def test_lifespan(make_lilota: MakeLilota, directory: Path) -> None:
    """The lifespan finishes what runs for a time, and puts the rest back."""
    lilota = make_lilota(hold, spin, echo, stop_timeout=0.2, number_of_processes=2)
    async with asyncio.timeout(DEADLINE):
        async with lilota.lifespan(object()):
            assert lilota.is_running
            finishing = await lilota.schedule(hold, str(directory))
            await marked(directory)
            (directory / "started").unlink()
            endless = await lilota.schedule(spin, str(directory))
            pid = int(await marked(directory))
            waiting = [await lilota.schedule(echo, number) for number in range(3)]
            (directory / "release").touch()
    assert (await row(lilota, finishing)).status == "completed"
    assert (await row(lilota, endless)).status == "pending"
    assert {(await row(lilota, each)).status for each in waiting} <= {"pending", "completed"}
    assert is_gone(pid)


@pytest.mark.parametrize("drain", [True, False])
async def test_stop_with_a_timeout(
    make_lilota: MakeLilota, directory: Path, fast_database_url: str, drain: bool
) -> None:
    """After the timeout what runs is stopped and goes back, and no attempt is counted."""
    lilota = make_lilota(spin, echo, db_url=fast_database_url)
    await lilota.start()
    running = await lilota.schedule(spin, str(directory))
    pid = int(await marked(directory))
    waiting = await lilota.schedule(echo, 1)
    loop = asyncio.get_running_loop()
    start = loop.time()
    async with asyncio.timeout(DEADLINE):
        await lilota.stop(drain=drain, timeout=0.2)
    assert loop.time() - start < 5
    assert is_gone(pid)
    task = await row(lilota, running)
    assert (task.status, task.pid, task.locked_by, task.exception) == ("pending", None, None, None)
    assert task.max_attempts - task.attempts == 1
    task = await row(lilota, waiting)
    assert (task.status, task.attempts) == ("pending", 0)


async def test_what_was_put_back_runs_at_the_next_start(
    make_lilota: MakeLilota, directory: Path
) -> None:
    """A task that stop() has put back runs to its end later, as attempt 2."""
    lilota = make_lilota(hold)
    await lilota.start()
    task_id = await lilota.schedule(hold, str(directory))
    await marked(directory)
    await lilota.stop(drain=False, timeout=0)
    (directory / "release").touch()
    async with lilota:
        task = await lilota.wait(task_id, DEADLINE)
    assert (task.status, task.output, task.attempts) == ("completed", "released", 2)


@pytest.mark.parametrize("timeout", [-1, "soon", float("nan")])
async def test_stop_timeouts_that_are_none(make_lilota: MakeLilota, timeout: Any) -> None:
    """A timeout that cannot be meant is refused, and lilota goes on."""
    lilota = make_lilota(echo)
    async with lilota:
        with pytest.raises(ConfigurationError, match="timeout"):
            await lilota.stop(timeout=timeout)
        assert lilota.is_running


async def test_stop_drains_behind_a_crash(make_lilota: MakeLilota) -> None:
    """What waits behind a task whose process dies is run by the replacement before the end."""
    lilota = make_lilota(crash, echo)
    async with asyncio.timeout(DEADLINE):
        await lilota.start()
        ids = await lilota.schedule_many(crash, [3] * 3)
        ids += await lilota.schedule_many(echo, range(5))
        await lilota.stop()
    statuses = [(await row(lilota, task_id)).status for task_id in ids]
    assert statuses == ["failed"] * 3 + ["completed"] * 5


async def test_stop_waits_only_for_what_was_there(make_lilota: MakeLilota) -> None:
    """A node that others go on scheduling for comes to an end."""
    lilota = make_lilota(echo)
    scheduler = make_lilota(echo, number_of_processes=0)

    async def schedule_on() -> None:
        while True:
            await scheduler.schedule(echo, 1)

    async with asyncio.timeout(DEADLINE), scheduler:
        await lilota.start()
        scheduling = asyncio.ensure_future(schedule_on())
        await asyncio.sleep(0.1)
        await lilota.stop()
        assert not scheduling.done()
        scheduling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await scheduling


async def test_500_schedules_against_stop(make_lilota: MakeLilota, fast_database_url: str) -> None:
    """Each schedule() commits or raises NotRunning; all that is committed is completed."""
    lilota = make_lilota(echo, db_url=fast_database_url, number_of_processes=2)
    await lilota.start()

    async def schedule(number: int) -> TaskId[Any] | None:
        for _ in range(number // 10):
            await asyncio.sleep(0)
        try:
            return await lilota.schedule(echo, number)
        except NotRunning:
            return None

    async with asyncio.timeout(DEADLINE):
        scheduling = [asyncio.ensure_future(schedule(number)) for number in range(500)]
        await until(lambda: any(each.done() for each in scheduling), "the first commit")
        await lilota.stop()
        ids = {task_id for task_id in await asyncio.gather(*scheduling) if task_id is not None}
    tasks = await lilota.get_all_tasks()
    assert {task.id for task in tasks} == ids
    assert {str(task.status) for task in tasks} == {"completed"}


async def test_a_cancelled_stop_goes_on(make_lilota: MakeLilota, directory: Path) -> None:
    """Who no longer waits for stop() does not keep lilota from stopping."""
    before = task_processes()
    lilota = make_lilota(hold)
    await lilota.start()
    task_id = await lilota.schedule(hold, str(directory))
    await marked(directory)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await lilota.stop()
    assert not lilota.is_running
    (directory / "release").touch()
    await until(lambda: lilota._node is None, "the end of stop()")
    assert (await row(lilota, task_id)).status == "completed"
    assert task_processes() <= before


async def test_the_loop_ends_during_stop(sqlite_url: str, directory: Path) -> None:
    """asyncio.run() that is left in the middle of stop() comes to its end."""
    lilota = Lilota(sqlite_url, number_of_processes=1)
    lilota.register(spin)

    async def leave_early() -> None:
        await lilota.start()
        await lilota.schedule(spin, str(directory))
        await marked(directory)
        async with asyncio.timeout(0.1):
            await lilota.stop()

    def run() -> None:
        with pytest.raises(TimeoutError):
            asyncio.run(leave_early())

    async with asyncio.timeout(DEADLINE):
        await asyncio.to_thread(run)
    pid = int((directory / "started").read_text())
    await until(lambda: is_gone(pid), "the end of the task's process")


@pytest.mark.parametrize("seconds", [0.0, 0.002, 0.01, 0.03, 0.08])
async def test_a_cancelled_start_leaves_nothing(
    make_lilota: MakeLilota, fast_database_url: str, seconds: float
) -> None:
    """A start() that is cancelled takes down what it had brought up, and can be repeated."""
    before = task_processes()
    lilota = make_lilota(echo, db_url=fast_database_url)
    async with asyncio.timeout(DEADLINE):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await lilota.start()
        if lilota.is_running:
            await lilota.stop()
        await until(lambda: task_processes() <= before, "the end of the processes")
        async with lilota:
            assert await lilota.result(await lilota.schedule(echo, 1)) == 1


async def test_a_failed_start_leaves_nothing(make_lilota: MakeLilota, tmp_path: Path) -> None:
    """A database that is not there is an error of start(), which can be called again."""
    before = task_processes()
    lilota = make_lilota(echo, db_url=f"sqlite:///{tmp_path / 'missing' / 'lilota.db'}")
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=r"missing' .* does not exist; create it"):
            await lilota.start()
        assert not lilota.is_running
        assert task_processes() <= before
    (tmp_path / "missing").mkdir()
    async with lilota:
        assert lilota.is_running


async def test_a_server_that_does_not_answer(make_lilota: MakeLilota) -> None:
    """A refused connection is StoreUnavailable, with the host and without the password."""
    lilota = make_lilota(echo, db_url="postgresql://user:secret@127.0.0.1:1/app")
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:1/app") as caught:
            await lilota.start()
    assert "secret" not in str(caught.value)


async def test_without_migration(make_lilota: MakeLilota, empty_database_url: str) -> None:
    """With migrate=False a database without tables is refused, and one with them is used."""
    careful = make_lilota(echo, db_url=empty_database_url, migrate=False)
    with pytest.raises(SchemaMissing):
        await careful.start()
    assert not careful.is_running
    async with make_lilota(echo, db_url=empty_database_url):
        pass
    async with careful:
        assert await careful.result(await careful.schedule(echo, 1), DEADLINE) == 1


async def test_several_start_at_once_on_databases_of_their_own(
    make_lilota: MakeLilota, tmp_path: Path
) -> None:
    """Each makes its own tables."""
    urls = [f"sqlite+aiosqlite:///{tmp_path / name}.db" for name in "abcd"]
    several = [make_lilota(echo, db_url=url) for url in urls]
    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(*(lilota.start() for lilota in several))
        assert [await each.result(await each.schedule(echo, 1)) for each in several] == [1] * 4


async def test_two_start_at_once_on_an_empty_database(
    make_lilota: MakeLilota, empty_database_url: str
) -> None:
    """Several applications that start together all come up, and share the work."""
    several = [make_lilota(echo, db_url=empty_database_url) for _ in range(3)]
    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(*(lilota.start() for lilota in several))
        ids = [await several[number % 3].schedule(echo, number) for number in range(30)]
        results = [await several[0].result(task_id) for task_id in ids]
        await asyncio.gather(*(lilota.stop() for lilota in several))
    assert results == list(range(30))
    tasks = await several[0].get_all_tasks()
    assert {task.attempts for task in tasks} == {1}


def _resources() -> tuple[int, int, set[int]]:
    gc.collect()
    process = psutil.Process()
    return process.num_fds(), threading.active_count(), task_processes()


async def _use(lilota: Lilota, directory: Path) -> None:
    (directory / "release").unlink(missing_ok=True)
    (directory / "started").unlink(missing_ok=True)
    async with lilota:
        await lilota.schedule(fail, "no")
        await lilota.schedule(crash, 3)
        await lilota.wait(await lilota.schedule(echo, 1), DEADLINE)
        await lilota.schedule(hold_async, str(directory))
        await marked(directory)
        with pytest.raises(TimeoutError):
            await lilota.wait(await lilota.schedule(spin, str(directory)), timeout=0.05)
        await lilota.stop(drain=False, timeout=0)
    for task in await lilota.get_all_tasks(status="pending"):
        await lilota.delete_task_by_id(task.id)


async def test_nothing_is_left_after_stop(
    make_lilota: MakeLilota, directory: Path, fast_database_url: str
) -> None:
    """After stop() there is no process, zombie, thread or descriptor more than before."""
    lilota = make_lilota(
        fail, crash, echo, hold_async, spin, db_url=fast_database_url, number_of_processes=2
    )
    async with asyncio.timeout(60):
        await _use(lilota, directory)  # brings the fork server up, which stays
        descriptors, threads, processes = _resources()
        for _ in range(3):
            await _use(lilota, directory)
    after = _resources()
    assert after[2] <= processes
    assert after[0] <= descriptors
    assert after[1] <= threads + 1  # asyncio's own pool for files and names may grow by one
    children = psutil.Process().children(recursive=True)
    assert [child for child in children if child.status() == psutil.STATUS_ZOMBIE] == []


async def test_the_first_start_of_a_process_collects_its_garbage(
    make_lilota: MakeLilota, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has imported makes that due, and later it would stop the event loop at work."""
    full: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "stop" and info["generation"] == 2:
            full.append(1)

    for is_first in (True, False):
        if is_first:
            monkeypatch.delitem(sys.modules, "lilota_async.node", raising=False)
        gc.collect()
        gc.callbacks.append(note)
        try:
            async with make_lilota(number_of_processes=0):
                assert full == [1]
        finally:
            gc.callbacks.remove(note)
