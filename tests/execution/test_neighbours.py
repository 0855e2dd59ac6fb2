"""What a task leaves behind or says does not meet the others of its process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lilota_async.execution.ends import Unstarted
from lilota_async.execution.pools import LocalPool
from lilota_async.execution.protocol import Outcome
from tests.execution import neighbours, tasks
from tests.execution.support import (
    Bench,
    Heard,
    call_of,
    crash_of,
    failure_of,
    run,
    until,
    value_of,
)

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "json", ['"a"', '{\n  "a": [1.50,\n 2]\n}', "\n".join(["[0", ",1" * 99_999, "]"])]
)
async def test_json_of_the_tasks_own_is_passed_on(cells: Bench, json: str) -> None:
    """Whatever its lines, and its numbers as they are."""
    ended = await cells.run(await cells.cell(), neighbours.pass_on, json)
    assert isinstance(ended, Outcome)
    assert bytes(ended.output) == json.replace("\n", "").replace(" ", "").encode()


@pytest.mark.usefixtures("whole_bursts")
@pytest.mark.parametrize("text", ["no JSON", "1 2", "[1", ""])
async def test_what_is_no_json_is_no_output(cells: Bench, text: str) -> None:
    """It fails its own task, and the process goes on."""
    cell = await cells.cell()
    calls = [call_of(neighbours.pass_on, each) for each in ("1", text, "2")]
    ends = await asyncio.gather(*(run(cell, call, Heard()) for call in calls))
    assert [value_of(ends[0]), value_of(ends[2])] == [1, 2]
    assert failure_of(ends[1])["kind"] == "invalid_output"


@pytest.mark.parametrize("kind", neighbours.RECORDS)
async def test_a_record_of_odd_values(cells: Bench, kind: str) -> None:
    """It is heard, or is none; the task and its process go on."""
    cell = await cells.cell()
    assert await cells.value(cell, neighbours.log_record, kind) == "logged"
    assert await cells.value(cell, tasks.echo, "1") == "1"


@pytest.mark.usefixtures("whole_bursts")
async def test_nonsense_ends_whose_it_is(cells: Bench, tmp_path: Path) -> None:
    """What was said before it counts, the task says why, and those behind it are put back."""
    cell = await cells.cell()
    calls = [call_of(tasks.echo, "1"), call_of(neighbours.write_nonsense, str(tmp_path / "a"))]
    calls.append(call_of(tasks.echo, "2"))
    first, second, third = await asyncio.gather(*(run(cell, call, Heard()) for call in calls))
    assert value_of(first) == "1"
    assert "no message" in crash_of(second).traceback
    assert isinstance(third, Unstarted)


async def test_last_words_are_of_the_task_that_dies(cells: Bench) -> None:
    """What another one of the process has printed before is no part of them."""
    cell = await cells.cell()
    assert await cells.value(cell, neighbours.say_fatal_error) == "alive"
    assert crash_of(await cells.run(cell, neighbours.kill_itself)).traceback == ""


@pytest.mark.usefixtures("whole_bursts")
@pytest.mark.parametrize(
    "function",
    [
        neighbours.leave_an_alarm,
        neighbours.leave_another_directory,
        neighbours.leave_logging_off,
    ],
)
async def test_what_is_put_back(cells: Bench, function: Callable[..., Any]) -> None:
    """An alarm, the working directory, and that nothing is logged."""
    cell = await cells.cell()
    heard = Heard()
    calls = [call_of(function), call_of(neighbours.look_around)]
    _, ended = await asyncio.gather(*(run(cell, call, heard) for call in calls))
    assert value_of(ended) == os.getcwd()
    assert [record.message for record in heard.records] == ["still heard"]


@pytest.mark.usefixtures("whole_bursts")
async def test_the_next_one_can_be_interrupted(cells: Bench, tmp_path: Path) -> None:
    """Though the one before it in the burst has left its signal ignored."""
    cell = await cells.cell()
    heard = Heard()
    path = tmp_path / "begun"
    first = call_of(neighbours.leave_the_signal_ignored)
    last = call_of(tasks.sleep_for_ever, str(path))
    running = [run(cell, first, Heard()), run(cell, last, heard)]
    await until(path.exists)
    cell.interrupt(last.serial, "cancel")
    _, ended = await asyncio.wait_for(asyncio.gather(*running), 5)
    assert failure_of(ended)["type"].endswith("TaskStopped")
    assert heard.text == "cleaned up\n"


async def test_the_one_before_is_not_disturbed(cells: Bench, tmp_path: Path) -> None:
    """A task that waits in the process is asked to stop when its turn comes."""
    cell = await cells.cell()
    path = tmp_path / "begun"
    first, second = call_of(neighbours.hold_the_signal, str(path)), call_of(tasks.echo, "1")
    running = [run(cell, call, Heard()) for call in (first, second)]
    await until(path.exists)
    cell.interrupt(second.serial, "cancel")
    await asyncio.sleep(0.05)  # its first repetition has come
    (tmp_path / "begun.release").touch()
    ends = await asyncio.wait_for(asyncio.gather(*running), 5)
    assert value_of(ends[0]) == "undisturbed"
    assert isinstance(ends[1], Unstarted)


async def test_many_requests_at_once(cells: Bench, tmp_path: Path) -> None:
    """More of them than can be read at a time ask those that they mean, and no other."""
    cell = await cells.cell()
    path = tmp_path / "begun"
    calls = [call_of(neighbours.hold_the_interpreter, str(path))]
    calls += [call_of(tasks.echo, str(number)) for number in range(600)]
    running = [run(cell, call, Heard()) for call in calls]
    await until(path.exists)
    for call in calls[1:]:
        cell.interrupt(call.serial, "cancel")
    first, *others = await asyncio.wait_for(asyncio.gather(*running), 20)
    assert value_of(first) == 7
    assert all(isinstance(each, Unstarted) for each in others)


async def test_a_process_without_tickets_ends(cells: Bench) -> None:
    """One whose pipe a task has closed does not go on refusing all that it is given."""
    gone = asyncio.Event()
    cell = await cells.cell(lambda _: gone.set())
    assert await cells.value(cell, neighbours.close_the_tickets) is None
    assert isinstance(await asyncio.wait_for(cells.run(cell, tasks.echo, "1"), 5), Unstarted)
    await asyncio.wait_for(gone.wait(), 5)


async def test_a_thread_that_a_task_has_left(tmp_path: Path) -> None:
    """It asks for its own task, whatever becomes of the next one of its slot."""
    pool = LocalPool(1, lambda: None, threads=True)
    (slot,) = pool.slots()
    path = tmp_path / "looks"
    left = call_of(neighbours.leave_a_thread_that_looks, str(path))
    assert value_of(await run(slot, left, Heard())) == "left"
    call = call_of(neighbours.wait_for_release, str(tmp_path / "next"))
    running = run(slot, call, Heard())
    await until((tmp_path / "next.begun").exists)
    slot.interrupt(call.serial, "cancel")
    await asyncio.sleep(0.05)  # the thread has looked since
    (tmp_path / "next.release").touch()
    assert value_of(await running) == 7  # it never looked: its result came first
    assert not (tmp_path / "looks.told").exists()
    path.unlink()
    await pool.close()
