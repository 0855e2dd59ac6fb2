"""Task processes that die: whom it concerns, what is said of it, what is left."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lilota_async.execution.cells import Cell
from lilota_async.execution.ends import Crash, Unstarted
from lilota_async.execution.protocol import Outcome
from tests.execution import tasks
from tests.execution.support import (
    Bench,
    Heard,
    bench,
    call_of,
    crash_of,
    is_alive,
    number_in,
    run,
    until,
    value_of,
)

pytestmark = pytest.mark.anyio
TAKEN = Unstarted(returned=True)


@pytest.mark.parametrize(
    ("function", "exit_code", "name"),
    [
        (tasks.exit_7, 7, None),
        (tasks.exit_0, 0, None),
        (tasks.segfault, None, "SIGSEGV"),
        (tasks.kill_itself, None, "SIGKILL"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
async def test_a_death_is_reported_with_its_cause(
    cells: Bench, function: Callable[..., Any], exit_code: int | None, name: str | None
) -> None:
    """A process that ends while it runs a call is a crash, with exit code 0 too."""
    dead: list[Cell] = []
    cell = await cells.cell(dead.append)
    pid = cell.pid
    started = time.monotonic()
    crash = crash_of(await cells.run(cell, function))
    assert (crash.pid, crash.exit_code, crash.signal) == (pid, exit_code, name)
    assert time.monotonic() - started < 10
    assert dead == [cell]
    assert not cell.is_usable
    assert isinstance(await cells.run(cell, tasks.ok), Unstarted)


async def test_a_segfault_says_where(cells: Bench) -> None:
    """What faulthandler writes is in the crash, and in the task's output."""
    cell = await cells.cell()
    heard = Heard()
    crash = crash_of(await run(cell, call_of(tasks.segfault), heard))
    assert crash.traceback.startswith("Fatal Python error: Segmentation fault")
    assert "in segfault" in crash.traceback
    assert crash.traceback in heard.text


@pytest.mark.usefixtures("whole_bursts")
async def test_a_crash_in_a_burst_concerns_one_call(cells: Bench, tmp_path: Path) -> None:
    """What came before a crash is neither lost nor repeated, what would have come is free."""
    cell = await cells.cell()
    marker = tmp_path / "marker"
    heard = [Heard() for _ in range(5)]
    calls = [
        call_of(tasks.say, "first"),
        call_of(tasks.say, "second"),
        call_of(tasks.exit_7),
        call_of(tasks.touch, str(marker)),
        call_of(tasks.ok),
    ]
    ended = await asyncio.gather(
        *(run(cell, call, listener) for call, listener in zip(calls, heard, strict=True))
    )
    assert [value_of(each) for each in ended[:2]] == [None, None]
    assert crash_of(ended[2]).exit_code == 7
    assert ended[3:] == [TAKEN, TAKEN]
    assert [each.text for each in heard] == ["first\n", "second\n", "", "", ""]
    assert not marker.exists()


async def test_a_crash_leaves_its_neighbours_alone(cells: Bench) -> None:
    """Calls in other cells go on."""
    one, other = await asyncio.gather(cells.cell(), cells.cell())
    running = asyncio.ensure_future(cells.value(one, tasks.sleep, 0.3))
    crash_of(await cells.run(other, tasks.segfault))
    assert await running == "slept"
    assert one.is_usable


async def test_a_process_that_dies_while_it_sends(cells: Bench) -> None:
    """Half an outcome is none, and nobody waits for the other half."""
    cell = await cells.cell()
    crash = crash_of(await asyncio.wait_for(cells.run(cell, tasks.die_while_sending), 5))
    assert crash.signal == "SIGKILL"


async def test_a_daemon_that_lives_on_hides_no_death(cells: Bench, tmp_path: Path) -> None:
    """A fork in another session has every pipe of the dead process open, and is not waited for."""
    cell = await cells.cell()
    path = tmp_path / "pid"
    started = time.monotonic()
    crash = crash_of(
        await asyncio.wait_for(cells.run(cell, tasks.daemonise_and_die, str(path)), 10)
    )
    daemon = await number_in(path)
    try:
        assert crash.exit_code == 3
        assert time.monotonic() - started < 10
        await cell.close()
        assert is_alive(daemon)
    finally:
        os.kill(daemon, signal.SIGKILL)
    await until(lambda: not is_alive(daemon))


async def test_a_fork_that_comes_back_from_the_task_says_nothing(
    cells: Bench, tmp_path: Path
) -> None:
    """Only the process itself reports and goes on to the next call."""
    cell = await cells.cell()
    path = tmp_path / "code"
    assert await cells.value(cell, tasks.fork_and_return, str(path)) == "of the task"
    assert await number_in(path) == 0
    assert await cells.value(cell, tasks.fork_and_raise) == 1
    assert await cells.value(cell, tasks.pid) == cell.pid


async def test_children_end_with_the_process(cells: Bench, tmp_path: Path) -> None:
    """A kill reaches what the task has started, before the call's end is told."""
    cell = await cells.cell()
    path = tmp_path / "pid"
    call = call_of(tasks.sleep_with_child, str(path))
    running = asyncio.ensure_future(run(cell, call, Heard()))
    child = await number_in(path)
    assert cell.kill(call.serial)
    assert crash_of(await running).signal == "SIGKILL"
    assert not is_alive(child)


async def test_children_end_with_a_process_that_dies(cells: Bench, tmp_path: Path) -> None:
    """So does a death that nobody wanted."""
    cell = await cells.cell()
    path = tmp_path / "pid"
    running = asyncio.ensure_future(cells.run(cell, tasks.sleep_with_child, str(path)))
    child = await number_in(path)
    os.kill(cell.pid, signal.SIGSEGV)
    assert crash_of(await running).signal == "SIGSEGV"
    assert not is_alive(child)


@pytest.mark.parametrize("function", [tasks.hold_gil, tasks.stop_itself, tasks.loop_for_ever])
async def test_a_kill_ends_whatever_runs(
    cells: Bench, tmp_path: Path, function: Callable[..., Any]
) -> None:
    """C code that holds the GIL, a stopped process and a loop end within a moment."""
    cell = await cells.cell()
    path = tmp_path / "begun"
    call = call_of(function, str(path))
    running = asyncio.ensure_future(run(cell, call, Heard()))
    await until(path.exists)
    started = time.monotonic()
    assert cell.kill(call.serial)
    assert crash_of(await running).signal == "SIGKILL"
    assert time.monotonic() - started < 5


async def test_what_a_killed_call_has_used_is_known(cells: Bench, tmp_path: Path) -> None:
    """Its processor time and its peak are read before the kill."""
    cell = await cells.cell()
    path = tmp_path / "burnt"
    await cells.value(cell, tasks.use_memory, 10)
    call = call_of(tasks.burn_then_sleep, str(path))
    running = asyncio.ensure_future(run(cell, call, Heard()))
    await until(path.exists)
    assert cell.kill(call.serial)
    crash = crash_of(await running)
    assert crash.cpu_seconds is not None
    assert 0.15 < crash.cpu_seconds < 2
    assert crash.peak_memory_bytes is not None
    assert 64 * 1024 * 1024 < crash.peak_memory_bytes < 200 * 1024 * 1024
    assert not crash.out_of_memory


async def test_a_sigterm_that_is_not_ours_ends_the_process(cells: Bench, tmp_path: Path) -> None:
    """It does what it does to any process, and is taken for no interruption."""
    cell = await cells.cell()
    path = tmp_path / "begun"
    running = asyncio.ensure_future(cells.run(cell, tasks.sleep_for_ever, str(path)))
    await until(path.exists)
    os.kill(cell.pid, signal.SIGTERM)
    assert crash_of(await running).signal == "SIGTERM"


async def test_a_process_that_closes_its_descriptors_is_a_crash(cells: Bench) -> None:
    """It cannot tell of its end any more, which is found out at once."""
    cell = await cells.cell()
    crash_of(await asyncio.wait_for(cells.run(cell, tasks.close_everything), 5))


async def test_a_task_that_puts_something_else_in_the_place_of_its_pipe(cells: Bench) -> None:
    """Its outcome is lost, which is noticed: nobody waits for it for ever."""
    cell = await cells.cell()
    crash_of(await asyncio.wait_for(cells.run(cell, tasks.replace_channel), 5))


async def test_what_a_left_handler_raises_stays_in_the_process(
    cells: Bench, tmp_path: Path
) -> None:
    """An exception outside of a task would be pickled, and run code in the application."""
    dead: list[Cell] = []
    cell = await cells.cell(dead.append)
    marker = tmp_path / "marker"
    assert await cells.value(cell, tasks.leave_alarm, str(marker)) is None
    failed = False
    while not dead and not failed:  # the alarm comes in one of these, between them, or while idle
        ended = await cells.run(cell, tasks.ok)
        failed = isinstance(ended, Outcome) and ended.failure is not None
    await cell.close()
    assert not marker.exists()


async def test_an_idle_process_that_dies_is_noticed(cells: Bench) -> None:
    """Its owner hears of it without a call."""
    dead: list[Cell] = []
    cell = await cells.cell(dead.append)
    os.kill(cell.pid, signal.SIGKILL)
    await until(lambda: dead)
    assert not cell.is_usable


async def test_thirty_crashes_leave_no_descriptor(method: str) -> None:
    """Each gives back what it had, before the garbage collector comes."""
    async with bench(method) as cells:
        for _ in range(30 if method == "forkserver" else 10):
            cell = await cells.cell()
            assert isinstance(await cells.run(cell, tasks.exit_7), Crash)
            await cell.close()
            cells.cells.clear()


@pytest.mark.usefixtures("whole_bursts")
async def test_who_waited_and_was_cancelled_costs_nothing(cells: Bench) -> None:
    """The call goes on, the cell stays usable."""
    cell = await cells.cell()
    running = asyncio.ensure_future(cells.run(cell, tasks.sleep, 0.08))
    await asyncio.sleep(0.02)
    running.cancel()
    assert await cells.value(cell, tasks.ok) == "ok"
