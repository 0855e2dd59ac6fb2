"""timeout=: any code ends in time, with what it has started, and its neighbours do not."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from lilota_async import Retry, Task, TaskFailed
from lilota_async.errors import ConfigurationError
from tests.api import tasks
from tests.api.support import DEADLINE, MakeLilota, is_gone, marked, row
from tests.api.tasks import echo, hold, sleep, spin

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


def _took(task: Task) -> float:
    assert task.start_date_time is not None
    assert task.end_date_time is not None
    return (task.end_date_time - task.start_date_time).total_seconds()


def _assert_timed_out(task: Task) -> None:
    assert task.exception is not None
    assert (task.status, task.exception["kind"]) == ("failed", "timeout")
    assert task.exception["type"] == "TaskTimeout"
    assert task.output is None


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
async def test_any_code_ends(make_lilota: MakeLilota, directory: Path, function: Any) -> None:
    """Loops, what swallows exceptions, C code with the GIL and stopped processes: all end."""
    # Who cleans up must come to it, also on a busy machine.
    grace = DEADLINE if function is tasks.spin_and_clean_up else 0.3
    lilota = make_lilota(echo, grace=grace)
    lilota.register(timeout=1)(function)  # by then any of them has left its mark
    async with lilota, asyncio.timeout(DEADLINE):
        task_id = await lilota.schedule(function, str(directory))
        pid = int(await marked(directory))
        task = await lilota.wait(task_id)
        _assert_timed_out(task)
        assert "timeout of 1 s" in (task.exception or {})["message"]
        assert 1 <= _took(task) < DEADLINE
        assert is_gone(pid)
        assert await lilota.result(await lilota.schedule(echo, 1)) == 1
    assert (directory / "cleaned").exists() == (function is tasks.spin_and_clean_up)


async def test_traceback_shows_where_it_was(make_lilota: MakeLilota, directory: Path) -> None:
    """A task that was interrupted softly says where."""
    lilota = make_lilota(grace=DEADLINE)
    lilota.register(timeout=0.2)(spin)
    async with lilota:
        task_id = await lilota.schedule(spin, str(directory))
        with pytest.raises(TaskFailed, match="timeout") as caught:
            await lilota.result(task_id, DEADLINE)
    assert "in spin" in (caught.value.task.exception or {})["traceback"]


async def test_children_end(make_lilota: MakeLilota, directory: Path) -> None:
    """What the task has started would outlive it, and does not."""
    lilota = make_lilota()
    lilota.register(timeout=1.5)(tasks.start_a_child)
    async with lilota:
        task_id = await lilota.schedule(tasks.start_a_child, str(directory))
        child = int(await marked(directory, "child"))
        _assert_timed_out(await lilota.wait(task_id, DEADLINE))
        assert is_gone(child)


async def test_children_of_a_task_that_ends_well(make_lilota: MakeLilota, directory: Path) -> None:
    """In time there is nothing to end: a quick task is completed, and its timer is gone."""
    lilota = make_lilota(echo)
    lilota.register(timeout=2)(sleep)
    async with lilota:
        ids = [await lilota.schedule(sleep, 0.01) for _ in range(3)]
        for task_id in ids:
            assert (await lilota.wait(task_id, DEADLINE)).status == "completed"
        first = (await row(lilota, ids[0])).pid
        await asyncio.sleep(2.1)  # a timer that was left would strike now
        assert await lilota.result(await lilota.schedule(echo, 1), DEADLINE) == 1
        assert (await row(lilota, ids[-1])).pid == first


async def test_timeout_of_schedule(make_lilota: MakeLilota, directory: Path) -> None:
    """schedule(timeout=...) wins over register(timeout=...), in seconds or as a timedelta."""
    lilota = make_lilota(number_of_processes=2)
    lilota.register(timeout=60)(spin)
    lilota.register(timeout=0.05)(sleep)
    async with lilota:
        quick = await lilota.schedule(spin, str(directory), timeout=timedelta(milliseconds=200))
        patient = await lilota.schedule(sleep, 0.3, timeout=60)
        _assert_timed_out(await lilota.wait(quick, DEADLINE))
        assert (await row(lilota, quick)).timeout_seconds == 0.2
        assert (await lilota.wait(patient, DEADLINE)).status == "completed"
        for value in (-1, float("nan"), "3"):
            with pytest.raises(ConfigurationError, match="timeout"):
                await lilota.schedule(sleep, 0, timeout=value)  # type: ignore[arg-type]


async def test_counted_from_the_start_of_the_code(make_lilota: MakeLilota, tmp_path: Path) -> None:
    """Waiting for a slot costs no time."""
    lilota = make_lilota(hold)
    lilota.register(timeout=2)(sleep)
    async with lilota:
        await lilota.schedule(hold, str(tmp_path))
        await marked(tmp_path)
        waiting = await lilota.schedule(sleep, 0.05)
        with pytest.raises(TimeoutError):
            await lilota.wait(waiting, timeout=2.1)
        (tmp_path / "release").touch()
        assert (await lilota.wait(waiting, DEADLINE)).status == "completed"


async def test_many_at_once(make_lilota: MakeLilota, tmp_path: Path) -> None:
    """Ten timeouts on two processes: each its own, and the processes come back."""
    lilota = make_lilota(echo, number_of_processes=2)
    lilota.register(timeout=0.1)(tasks.spin)
    async with lilota, asyncio.timeout(DEADLINE):
        ids = await lilota.schedule_many(tasks.spin, [str(tmp_path)] * 10)
        for task_id in ids:
            task = await lilota.wait(task_id)
            _assert_timed_out(task)
            assert task.attempts == 1
        ids = await lilota.schedule_many(echo, range(4))
        assert [await lilota.result(task_id) for task_id in ids] == [0, 1, 2, 3]


async def test_a_timeout_beside_a_long_task(make_lilota: MakeLilota, tmp_path: Path) -> None:
    """The neighbour of tasks that time out runs on in its process."""
    lilota = make_lilota(hold, number_of_processes=2)
    lilota.register(timeout=0.05)(spin)
    quiet = tmp_path / "quiet"
    quiet.mkdir()
    async with lilota, asyncio.timeout(DEADLINE):
        neighbour = await lilota.schedule(hold, str(quiet))
        pid = int(await marked(quiet))
        for task_id in await lilota.schedule_many(spin, [str(tmp_path)] * 4):
            _assert_timed_out(await lilota.wait(task_id))
        (quiet / "release").touch()
        task = await lilota.wait(neighbour)
    assert (task.status, task.attempts, task.pid) == ("completed", 1, pid)


async def test_timeouts_are_retried_by_policy(make_lilota: MakeLilota, directory: Path) -> None:
    """A timeout is an attempt: retried with on=() or TaskTimeout, and not otherwise."""
    from lilota_async import TaskTimeout

    lilota = make_lilota()
    for name, on in (("every", ()), ("named", (TaskTimeout,)), ("others", (OSError,))):
        lilota.register(name, timeout=0.1, retry=Retry(max_attempts=2, delay=0, on=on))(spin)
    async with lilota, asyncio.timeout(DEADLINE):
        for name, attempts in (("every", 2), ("named", 2), ("others", 1)):
            task = await lilota.wait(await lilota.schedule(name, str(directory)))
            _assert_timed_out(task)
            assert task.attempts == attempts


@pytest.mark.parametrize("executor", ["thread", "loop"])
async def test_elsewhere(make_lilota: MakeLilota, directory: Path, executor: Any) -> None:
    """A thread that looks and a coroutine that waits time out as well."""
    function: Any = tasks.cooperate if executor == "thread" else tasks.hold_async
    lilota = make_lilota()
    lilota.register(executor=executor, timeout=0.1)(function)
    async with lilota:
        task = await lilota.wait(await lilota.schedule(function, str(directory)), DEADLINE)
    _assert_timed_out(task)
