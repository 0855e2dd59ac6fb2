"""The process pool: it comes up, keeps its size, says when it cannot, and leaves nothing."""

from __future__ import annotations

import asyncio
import gc
import logging
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from lilota_async.errors import WorkerStartFailed
from lilota_async.execution import processes, runtime
from lilota_async.execution.ends import Crash, Ended, Unstarted
from lilota_async.execution.processes import ProcessPool, Recycling
from lilota_async.execution.worker_process import END_TIMEOUT, WorkerProcess
from tests.execution import tasks
from tests.execution.support import (
    Belongings,
    Heard,
    call_of,
    crash_of,
    fork_server,
    is_alive,
    nothing_left,
    number_in,
    run,
    until,
    value_of,
    warm_up,
)

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def pool_of(method: Any, size: int = 1, **options: Any) -> AsyncIterator[ProcessPool]:
    warm_up(method)
    with nothing_left():
        pool = ProcessPool(size, lambda: None, start_method=method, **options)
        await pool.start()
        try:
            yield pool
        finally:
            await pool.close()


async def _run(pool: ProcessPool, function: Any, input: Any = None) -> Any:
    [cell, *_] = await until(pool.slots)
    return value_of(await run(cell, call_of(function, input), Heard()))


async def test_a_dead_cell_is_replaced_at_once(method: str) -> None:
    """The pool is whole again before the call's end is concluded, or a moment later."""
    async with pool_of(method, size=2) as pool:
        for _ in range(3):
            victim, other = pool.slots()
            crash_of(await run(victim, call_of(tasks.exit_7), Heard()))
            await until(lambda: len(pool.slots()) == 2)
            assert other in pool.slots()
            assert victim not in pool.slots()


async def test_a_close_ends_what_runs_and_what_comes_up(method: str) -> None:
    """At any moment of a replacement, and with calls under way."""
    for delay in (0, 0.002, 0.01, 0.03):
        async with pool_of(method, size=2) as pool:
            first, second = pool.slots()
            running = asyncio.ensure_future(run(second, call_of(tasks.sleep, 600), Heard()))
            os.kill(first.pid, signal.SIGKILL)
            await asyncio.sleep(delay)
        assert isinstance(await running, Crash | Unstarted)


async def test_threads_that_tasks_have_left_hold_up_the_close_once(method: str) -> None:
    """Idle processes may end by themselves, all at the same time, and then they are ended."""
    async with pool_of(method, size=5) as pool:
        await asyncio.gather(
            *(run(cell, call_of(tasks.leave_thread), Heard()) for cell in pool.slots())
        )
        started = time.monotonic()
        await pool.close()
        assert time.monotonic() - started < 4 * END_TIMEOUT  # one after the other, five


async def test_a_start_without_descriptors_leaves_nothing() -> None:
    """Wherever they run out on the way; the client of the fork server itself loses a pipe then."""
    method: Any = "spawn"
    warm_up(method)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for more in range(0, 26, 2):
        with nothing_left():
            used = max(map(int, os.listdir("/proc/self/fd")))
            pool = ProcessPool(1, lambda: None, start_method=method)
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + more, hard))
            try:
                await pool.start()
            except (WorkerStartFailed, OSError):
                pass
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            await pool.close()


async def test_a_start_that_is_cancelled_leaves_nothing(method: Any) -> None:
    """Its processes are ended wherever they were on their way up."""
    warm_up(method)
    for delay in (0, 0.005, 0.03):
        with nothing_left():
            pool = ProcessPool(2, lambda: None, start_method=method)
            starting = asyncio.ensure_future(pool.start())
            await asyncio.sleep(delay)
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            await pool.close()


async def test_starting_cells_does_not_stop_the_loop(method: str) -> None:
    """The loop serves others meanwhile: a lag of 20 ms at most, in one of several starts."""
    async with pool_of(method, size=1) as pool:
        lags = [1.0]
        while min(lags) >= 0.02 and len(lags) < 30:  # what blocks does so each time
            os.kill(pool.slots()[0].pid, signal.SIGKILL)
            await until(lambda: not pool.slots())
            lag = 0.0
            while not pool.slots():
                started = time.perf_counter()
                await asyncio.sleep(0.001)
                lag = max(lag, time.perf_counter() - started - 0.001)
            lags.append(lag)
        assert min(lags) < 0.02


async def test_what_keeps_a_process_from_starting_is_said(
    method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An initializer that raises: what it writes is in the exception."""
    warm_up(method)
    monkeypatch.setattr(runtime, "boot", _fail_to_boot)
    with nothing_left():
        pool = ProcessPool(2, lambda: None, start_method=method)
        with pytest.raises(WorkerStartFailed, match=r"(?s)exit code 0.*no boot today"):
            await pool.start()


async def test_a_pool_that_cannot_start_processes_says_so_and_goes_on(
    method: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After three failures, once; when the cause is gone it recovers."""
    monkeypatch.setattr(processes, "FIRST_PAUSE_SECONDS", 0.01)
    caplog.set_level(logging.INFO, "lilota_async")
    async with pool_of(method) as pool:
        boot = runtime.boot
        monkeypatch.setattr(runtime, "boot", _fail_to_boot)
        os.kill(pool.slots()[0].pid, signal.SIGKILL)
        await until(lambda: "do not come up" in caplog.text)
        assert pool.slots() == []
        await until(lambda: pool._failures > processes.FAILURES_BEFORE_ERROR)
        monkeypatch.setattr(runtime, "boot", boot)
        assert await _run(pool, tasks.ok) == "ok"
        assert caplog.text.count("do not come up") == 1
        assert "come up again" in caplog.text


async def test_a_killed_fork_server_is_started_again(tmp_path: Any) -> None:
    """What it has started ends as a crash, and the next process comes from a new one."""
    async with pool_of("forkserver", size=2) as pool:
        path = tmp_path / "pid"
        first, second = pool.slots()
        running = asyncio.ensure_future(
            run(first, call_of(tasks.sleep_with_child, str(path)), Heard())
        )
        child = await number_in(path)
        _kill_fork_server()
        crash = crash_of(await asyncio.wait_for(running, 5))
        assert crash.pid == first.pid
        assert not is_alive(child)
        await until(lambda: len(pool.slots()) == 2 and second not in pool.slots())
        assert await _run(pool, tasks.ok) == "ok"


async def test_a_fork_server_that_others_have_waited_for_is_started_again() -> None:
    """An application that reaps all its children keeps multiprocessing from noticing."""
    async with pool_of("forkserver") as pool:
        _reap(_kill_fork_server())
        await until(lambda: not pool.slots())
        assert await _run(pool, tasks.ok) == "ok"


async def test_a_process_that_others_have_waited_for_is_a_crash() -> None:
    """Its exit code is lost, its end is not."""
    async with pool_of("spawn") as pool:
        [cell] = pool.slots()
        running = asyncio.ensure_future(run(cell, call_of(tasks.exit_7), Heard()))
        reaper = asyncio.get_running_loop().run_in_executor(None, os.waitpid, cell.pid, 0)
        crash = crash_of(await asyncio.wait_for(running, 5))
        await asyncio.gather(reaper, return_exceptions=True)
        assert crash.exit_code in (None, 7)
        assert await _run(pool, tasks.ok) == "ok"
        await asyncio.get_running_loop().shutdown_default_executor()


@pytest.mark.usefixtures("whole_bursts")
async def test_cells_are_recycled_after_some_calls(method: str) -> None:
    """What a cell was given it still runs; no call is lost, and never are there more."""
    async with pool_of(method, size=2, recycling=Recycling(calls=5)) as pool:
        pids: set[int] = set()
        for _ in range(8):
            burst = [
                asyncio.ensure_future(run(cell, call_of(tasks.pid), Heard()))
                for cell in await until(pool.slots)
                for _ in range(3)
            ]
            pids |= {value_of(ended) for ended in await asyncio.gather(*burst)}
            assert len(pool.slots()) <= 2
        assert len(pids) >= 3
        await until(lambda: len(pool.slots()) == 2)


async def test_a_successor_stands_by_before_a_cell_is_recycled(method: str) -> None:
    """No slot is without a process while calls wait, and never are there more than slots."""
    async with pool_of(method, recycling=Recycling(calls=200)) as pool:
        pids: set[int] = set()
        for number in range(450):
            if number % 200 == 100:
                await until(lambda: len(pool._cells) == 2 and pool._coming_up == 0)
            [cell] = pool.slots()
            pids.add(value_of(await run(cell, call_of(tasks.pid), Heard())))
        assert len(pids) == 3


async def test_a_successor_that_dies_is_replaced(method: str) -> None:
    """It takes no calls yet, so that nobody would miss it before its time."""
    async with pool_of(method, recycling=Recycling(calls=4)) as pool:
        [cell] = pool.slots()
        await run(cell, call_of(tasks.pid), Heard())
        await until(lambda: pool._successors)
        [first] = pool._successors
        first.worker.kill()
        await until(lambda: pool._successors and pool._successors != [first])
        [second] = pool._successors
        for _ in range(3):
            await run(cell, call_of(tasks.pid), Heard())
        assert pool.slots() == [second]
        assert value_of(await run(second, call_of(tasks.pid), Heard())) == second.pid


async def test_a_call_for_a_cell_that_is_being_recycled_is_not_begun(method: str) -> None:
    """It was claimed for it a moment before, and is run elsewhere instead of being killed."""
    async with pool_of(method, recycling=Recycling(calls=1)) as pool:
        [cell] = pool.slots()
        first = run(cell, call_of(tasks.pid), Heard())
        first.add_done_callback(lambda _: second.append(run(cell, call_of(tasks.pid), Heard())))
        second: list[asyncio.Future[Ended]] = []
        value_of(await first)
        assert await (await until(lambda: second))[0] == Unstarted()
        assert await _run(pool, tasks.pid) != cell.pid


async def test_cells_that_have_grown_are_recycled(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Growth counts from the first call on; a size that stays does not."""
    monkeypatch.setattr(processes, "GROWTH_CHECK_SECONDS", 0.0)
    async with pool_of(method, recycling=Recycling(growth_bytes=50_000_000)) as pool:
        pid = await _run(pool, tasks.pid)
        await _run(pool, tasks.grow, 20)
        assert await _run(pool, tasks.pid) == pid
        await _run(pool, tasks.grow, 60)
        assert await _run(pool, tasks.pid) != pid


async def test_a_process_that_is_forgotten_is_ended(method: Any) -> None:
    """The garbage collector leaves no task running for nobody, and nothing else."""
    warm_up(method)
    before = Belongings.now()
    [pid] = await asyncio.ensure_future(_forget_a_cell(method))

    def is_everything_gone() -> bool:
        gc.collect()
        return (
            not is_alive(pid) and Belongings.now().descriptors.keys() <= before.descriptors.keys()
        )

    await until(is_everything_gone)


async def _forget_a_cell(method: str) -> list[int]:
    worker = WorkerProcess(multiprocessing.get_context(method), b"token")
    worker.spawn().result()
    worker.executor.submit(time.sleep, 600)
    return [worker.pid]


BOOT = runtime.boot


def _fail_to_boot(*args: Any) -> None:
    BOOT(*args)
    raise RuntimeError("no boot today")


def _kill_fork_server() -> int:
    server = fork_server()
    assert server is not None
    os.kill(server, signal.SIGKILL)
    return server


def _reap(pid: int) -> None:
    """Wait on the loop's thread: meanwhile no pool starts a process, which would reap as well."""
    os.waitpid(pid, 0)
