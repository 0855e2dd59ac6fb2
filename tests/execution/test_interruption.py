"""Stopping a call: softly in its own code, by a kill, or before it has begun."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lilota_async.execution import cells as module
from lilota_async.execution.ends import Ended, Reason, Unstarted
from lilota_async.execution.protocol import Call, Outcome
from tests.execution import tasks
from tests.execution.support import (
    Bench,
    Heard,
    call_of,
    crash_of,
    failure_of,
    is_alive,
    number_in,
    run,
    until,
    value_of,
)

pytestmark = pytest.mark.anyio
TAKEN = Unstarted(returned=True)


@pytest.mark.parametrize(
    "function",
    [tasks.loop_for_ever, tasks.sleep_for_ever, tasks.wait_for_ever, tasks.loop_for_ever_async],
)
@pytest.mark.parametrize(
    ("reason", "name"), [("cancel", "TaskStopped"), ("timeout", "TaskTimeout")]
)
async def test_an_interruption_is_raised_in_the_tasks_code(
    cells: Bench, tmp_path: Path, function: Callable[..., Any], reason: Reason, name: str
) -> None:
    """Whether it loops, sleeps or awaits; its `finally` blocks run."""
    cell = await cells.cell()
    heard = Heard()
    path = tmp_path / "begun"
    call = call_of(function, str(path))
    running = asyncio.ensure_future(run(cell, call, heard))
    await until(path.exists)
    cell.interrupt(call.serial, reason)
    ended = await asyncio.wait_for(running, 5)
    assert isinstance(ended, Outcome)
    assert ended.interrupted
    assert failure_of(ended)["type"].endswith(name)
    assert heard.text == "cleaned up\n"


async def test_a_signal_that_gets_lost_is_sent_again(
    cells: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that comes just before a system call does not end that call."""
    sent: list[int] = []

    def lose_the_first(pid: int, number: int) -> None:
        sent.append(number)
        if len(sent) > 1:
            send(pid, number)

    send = os.kill
    cell = await cells.cell()
    path = tmp_path / "begun"
    call = call_of(tasks.sleep_for_ever, str(path))
    running = asyncio.ensure_future(run(cell, call, Heard()))
    await until(path.exists)
    monkeypatch.setattr(os, "kill", lose_the_first)
    cell.interrupt(call.serial, "cancel")
    assert failure_of(await asyncio.wait_for(running, 5))["type"].endswith("TaskStopped")
    assert len(sent) >= 2


async def test_a_signal_that_comes_while_a_request_is_read_is_ours(
    cells: Bench, tmp_path: Path
) -> None:
    """It finds no request of its own, and is not taken for one that others have sent."""
    cell = await cells.cell()
    await cells.run(cell, tasks.signal_while_a_request_is_read)
    path = tmp_path / "begun"
    call = call_of(tasks.sleep_for_ever, str(path))
    running = asyncio.ensure_future(run(cell, call, Heard()))
    await until(path.exists)
    cell.interrupt(call.serial, "cancel")
    assert failure_of(await asyncio.wait_for(running, 5))["type"].endswith("TaskStopped")


async def test_signals_that_come_again_do_not_disturb_the_cleaning_up(
    cells: Bench, tmp_path: Path
) -> None:
    """A task is interrupted once, however often it is asked."""
    cell = await cells.cell()
    heard = Heard()
    path = tmp_path / "begun"
    call = call_of(tasks.clean_up_slowly, str(path))
    running = asyncio.ensure_future(run(cell, call, heard))
    await until(path.exists)
    cell.interrupt(call.serial, "cancel")
    assert failure_of(await asyncio.wait_for(running, 5))["type"].endswith("TaskStopped")
    assert heard.text == "cleaned up\n"


async def test_a_coroutine_is_interrupted_at_any_moment(cells: Bench, tmp_path: Path) -> None:
    """While it runs, while its loop does, and while that waits; its `finally` can await."""
    for round in range(40):
        cell = await cells.cell()
        heard = Heard()
        path = tmp_path / str(round)
        call = call_of(tasks.wait_and_clean_up, str(path))
        running = asyncio.ensure_future(run(cell, call, heard))
        while not path.exists() and not running.done():
            await asyncio.sleep(0)
        await asyncio.sleep(round % 20 * 0.00005)
        cell.interrupt(call.serial, "cancel")
        ended = await asyncio.wait_for(running, 5)
        assert isinstance(ended, Outcome)
        assert ended.interrupted
        assert failure_of(ended)["type"].endswith("TaskStopped")
        assert heard.text == "cleaned up\n"


async def test_what_swallows_an_interruption_is_killed(cells: Bench, tmp_path: Path) -> None:
    """A call may go on after it, until the kill."""
    cell = await cells.cell()
    heard = Heard()
    path = tmp_path / "begun"
    call = call_of(tasks.swallow, str(path))
    running = asyncio.ensure_future(run(cell, call, heard))
    await until(path.exists)
    cell.interrupt(call.serial, "cancel")
    await until(lambda: heard.text == "swallowed\n")
    assert cell.kill(call.serial)
    assert crash_of(await running).signal == "SIGKILL"


async def test_a_result_in_spite_of_an_interruption_counts(cells: Bench, tmp_path: Path) -> None:
    """What arrived first wins; the outcome tells of the interruption all the same."""
    cell = await cells.cell()
    path = tmp_path / "begun"
    call = call_of(tasks.swallow_and_return, str(path))
    running = asyncio.ensure_future(run(cell, call, Heard()))
    await until(path.exists)
    cell.interrupt(call.serial, "cancel")
    ended = await running
    assert value_of(ended) == "all the same"
    assert isinstance(ended, Outcome)
    assert ended.interrupted


async def test_a_task_can_look_whether_it_is_to_stop(cells: Bench, tmp_path: Path) -> None:
    """Where the exception cannot come through, as in another thread."""
    cell = await cells.cell()
    path = tmp_path / "begun"
    call = call_of(tasks.wait_until_cancelled, str(path))
    running = asyncio.ensure_future(run(cell, call, Heard()))
    await until(path.exists)
    cell.interrupt(call.serial, "cancel")
    assert isinstance(await asyncio.wait_for(running, 5), Outcome)


async def test_an_interruption_that_comes_late_reaches_nobody(cells: Bench) -> None:
    """The call has ended; the next one is not meant."""
    cell = await cells.cell()
    for _ in range(30):
        late = call_of(tasks.ok)
        assert value_of(await run(cell, late, Heard())) == "ok"
        next_call = call_of(tasks.sleep, 0.005)
        running = asyncio.ensure_future(run(cell, next_call, Heard()))
        await asyncio.sleep(0)
        # The cell itself knows better: what counts here is what the process makes of it.
        cell.worker.interrupt(f"cancel {late.serial}", signals=True)
        assert value_of(await running) == "slept"


@pytest.mark.usefixtures("whole_bursts")
async def test_interruptions_that_keep_coming_late_end_nothing(cells: Bench) -> None:
    """They come in at every step that the process makes between two calls."""
    cell = await cells.cell()
    over = threading.Event()

    def keep_interrupting() -> None:
        for serial in itertools.count(-1, -1):
            if over.wait(0.0002):
                return
            cell.worker.interrupt(f"cancel {serial}", signals=True)

    interrupting = asyncio.create_task(asyncio.to_thread(keep_interrupting))
    try:
        for number in range(1000):
            assert await cells.value(cell, tasks.echo, str(number)) == str(number)
    finally:
        over.set()
        await interrupting


async def test_interruption_and_end_race_and_each_call_has_one_end(cells: Bench) -> None:
    """At every moment of a short call: a result, a stop, or it had not begun."""
    cell = await cells.cell()
    ends: set[str] = set()
    for round in range(60):
        call = call_of(tasks.sleep, 0.002)
        running = asyncio.ensure_future(run(cell, call, Heard()))
        await asyncio.sleep(round * 0.0001)
        cell.interrupt(call.serial, "cancel")
        ended = await asyncio.wait_for(running, 5)
        ends.add(_kind(ended))
        if not cell.is_usable:
            cell = await cells.cell()
    assert "crash" not in ends
    assert len(ends) > 1
    assert await cells.value(cell, tasks.ok) == "ok"


async def test_a_call_that_was_not_sent_never_begins(cells: Bench, tmp_path: Path) -> None:
    """It ends at once, and neither its neighbour nor the process notices."""
    cell = await cells.cell()
    marker, go = tmp_path / "marker", tmp_path / "go"
    first = asyncio.ensure_future(cells.run(cell, tasks.wait_for_file, str(go)))
    await asyncio.sleep(0.05)
    calls = [call_of(tasks.touch, str(marker)) for _ in range(2)]
    waiting = [asyncio.ensure_future(run(cell, call, Heard())) for call in calls]
    cell.interrupt(calls[0].serial, "cancel")
    assert cell.kill(calls[1].serial)
    assert await asyncio.gather(*waiting) == [Unstarted(), Unstarted()]
    await asyncio.wait_for(cell.retire(), 1)
    go.touch()
    assert value_of(await first) == "there"
    assert cell.is_usable
    assert not marker.exists()


async def test_a_call_that_was_taken_back_never_begins(
    cells: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with the ticket of a later one either, which the process finds before it."""
    cell = await cells.cell()
    marker, go = tmp_path / "marker", tmp_path / "go"
    first = asyncio.ensure_future(cells.run(cell, tasks.wait_for_file, str(go)))
    await asyncio.sleep(0.05)
    assert await cells.run(cell, tasks.touch, str(marker)) == Unstarted(returned=True)
    monkeypatch.setattr(module, "HELD_UP_SECONDS", 60.0)  # the last one is not
    last = asyncio.ensure_future(cells.run(cell, tasks.ok))
    await asyncio.sleep(0.05)
    go.touch()
    assert value_of(await first) == "there"
    assert value_of(await asyncio.wait_for(last, 5)) == "ok"
    assert not marker.exists()


@pytest.mark.usefixtures("whole_bursts")
async def test_a_call_that_waits_in_its_burst_never_begins(cells: Bench, tmp_path: Path) -> None:
    """It is not killed for while another runs, and is left out when its turn comes."""
    cell = await cells.cell()
    marker, go = tmp_path / "marker", tmp_path / "go"
    calls = [
        call_of(tasks.wait_for_file, str(go)),
        call_of(tasks.touch, str(marker)),
        call_of(tasks.pid),
    ]
    running = [asyncio.ensure_future(run(cell, call, Heard())) for call in calls]
    await asyncio.sleep(0.1)
    cell.interrupt(calls[1].serial, "cancel")
    assert not cell.kill(calls[1].serial)
    go.touch()
    ended = await asyncio.gather(*running)
    assert value_of(ended[0]) == "there"
    assert ended[1] == Unstarted()
    await asyncio.wait_for(cell.retire(), 1)
    assert value_of(ended[2]) == cell.pid
    assert not marker.exists()


async def test_a_stopped_call_is_the_last_of_its_burst(cells: Bench, tmp_path: Path) -> None:
    """Its process is not to be trusted, and retiring it costs no other call anything."""
    cell = await cells.cell()
    begun, marker = tmp_path / "begun", tmp_path / "marker"
    calls = [call_of(tasks.sleep_for_ever, str(begun)), call_of(tasks.touch, str(marker))]
    running = [asyncio.ensure_future(run(cell, call, Heard())) for call in calls]
    await until(begun.exists)
    cell.interrupt(calls[0].serial, "cancel")
    ended = await running[0]
    assert isinstance(ended, Outcome)
    assert ended.interrupted
    await cell.retire()
    assert await running[1] == TAKEN
    assert not marker.exists()
    assert not is_alive(cell.pid)


async def test_what_comes_after_a_stopped_call_gets_another_process(
    cells: Bench, tmp_path: Path
) -> None:
    """It is not begun in one that is about to be retired, whatever the stopped call made of it."""
    for function in (tasks.sleep_for_ever, tasks.swallow_and_return):
        dead: list[object] = []
        cell = await cells.cell(dead.append)
        begun, marker = tmp_path / f"begun {function.__name__}", tmp_path / "marker"
        call = call_of(function, str(begun))
        running = asyncio.ensure_future(run(cell, call, Heard()))
        await until(begun.exists)
        next_run = asyncio.ensure_future(run(cell, call_of(tasks.touch, str(marker)), Heard()))
        await asyncio.sleep(0)
        cell.interrupt(call.serial, "cancel")
        ended = await running
        assert isinstance(ended, Outcome)
        assert not cell.is_usable
        assert await run(cell, call_of(tasks.touch, str(marker)), Heard()) == Unstarted()
        assert await next_run == TAKEN
        await until(dead.copy)
        assert not marker.exists()


async def test_a_process_that_does_not_react_is_killed_before_the_call_begins(
    cells: Bench,
) -> None:
    """It was stopped while it was idle: the call never began."""
    cell = await cells.cell()
    os.kill(cell.pid, signal.SIGSTOP)
    calls = [call_of(tasks.ok), call_of(tasks.ok)]
    running = [asyncio.ensure_future(run(cell, call, Heard())) for call in calls]
    await asyncio.sleep(0.05)
    cell.interrupt(calls[0].serial, "cancel")
    assert not cell.kill(calls[1].serial)
    assert cell.kill(calls[0].serial)
    assert await asyncio.gather(*running) == [TAKEN, TAKEN]


async def test_retiring_waits_for_the_whole_group(cells: Bench, tmp_path: Path) -> None:
    """After an interruption that the task obeyed, what it has started may still live."""
    cell = await cells.cell()
    path = tmp_path / "pid"
    call = call_of(tasks.sleep_with_child, str(path))
    running = asyncio.ensure_future(run(cell, call, Heard()))
    child = await number_in(path)
    cell.interrupt(call.serial, "cancel")
    assert failure_of(await running)["type"].endswith("TaskStopped")
    started = time.monotonic()
    await cell.retire()
    assert time.monotonic() - started < 5
    assert not is_alive(child)


async def test_a_task_that_ignores_the_signal_does_not_deafen_the_next(
    cells: Bench, tmp_path: Path
) -> None:
    """The signal's handler is set again for each burst."""
    cell = await cells.cell()
    assert await cells.value(cell, tasks.ignore_sigterm) is None
    path = tmp_path / "begun"
    call = call_of(tasks.sleep_for_ever, str(path))
    running = asyncio.ensure_future(run(cell, call, Heard()))
    await until(path.exists)
    cell.interrupt(call.serial, "cancel")
    assert failure_of(await asyncio.wait_for(running, 5))["type"].endswith("TaskStopped")


async def test_a_close_ends_what_runs(cells: Bench, tmp_path: Path) -> None:
    """And answers whoever waits, for calls that had not begun too."""
    cell = await cells.cell()
    path = tmp_path / "begun"
    calls: list[Call] = [call_of(tasks.sleep_for_ever, str(path)), call_of(tasks.ok)]
    running = [asyncio.ensure_future(run(cell, call, Heard())) for call in calls]
    await until(path.exists)
    await cell.close()
    assert crash_of(await running[0]).signal == "SIGKILL"
    assert await running[1] == TAKEN


def _kind(ended: Ended) -> str:
    if isinstance(ended, Outcome):
        return "result" if ended.failure is None else "stopped"
    return "unstarted" if isinstance(ended, Unstarted) else "crash"
