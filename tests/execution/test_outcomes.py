"""What a task returns or raises: always a value of ours, never the death of a process."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lilota_async.execution import cells as module
from lilota_async.execution import turns
from lilota_async.execution.ends import Unstarted
from lilota_async.execution.protocol import Checkpoint, Outcome, Progress
from tests.execution import tasks
from tests.execution.support import Bench, Heard, call_of, failure_of, run, value_of

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("function", "type_name", "message"),
    [
        (tasks.raise_needs_args, "NeedsArgs", "needs 1 and 2"),
        (tasks.raise_fails_to_pickle, "FailsToPickle", "here"),
        (tasks.raise_fails_to_speak, "FailsToSpeak", ""),
        (tasks.raise_group, "ExceptionGroup", "several (2 sub-exceptions)"),
        (tasks.raise_system_exit, "SystemExit", "3"),
        (tasks.raise_keyboard_interrupt, "KeyboardInterrupt", ""),
        (tasks.raise_stop_iteration, "StopIteration", "value"),
        (tasks.raise_cancelled, "CancelledError", "of my own"),
        (tasks.raise_generator_exit, "GeneratorExit", ""),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_whatever_is_raised_is_a_failure(
    cells: Bench, function: Callable[..., Any], type_name: str, message: str
) -> None:
    """Its type, its message and where it was raised; the process goes on."""
    cell = await cells.cell()
    failure = failure_of(await cells.run(cell, function))
    assert failure["kind"] == "error"
    assert failure["type"].rpartition(".")[2] == type_name
    assert message in failure["message"]
    assert f"in {function.__name__}" in failure["traceback"]
    assert "lilota_async" not in failure["traceback"]
    assert await cells.value(cell, tasks.pid) == cell.pid


async def test_the_lineage_names_the_bases(cells: Bench) -> None:
    """A retry policy sees subclasses as what they are."""
    cell = await cells.cell()
    ended = await cells.run(cell, tasks.raise_needs_args)
    assert isinstance(ended, Outcome)
    assert ended.lineage[0] == "tests.execution.tasks.NeedsArgs"
    assert "builtins.Exception" in ended.lineage


@pytest.mark.parametrize("function", [tasks.raise_evil, tasks.return_evil])
async def test_nothing_of_the_tasks_is_unpickled(
    cells: Bench, tmp_path: Path, function: Callable[..., Any]
) -> None:
    """An object that runs code where it is unpickled runs none here."""
    cell = await cells.cell()
    marker = tmp_path / "marker"
    failure_of(await cells.run(cell, function, str(marker)))
    assert not marker.exists()
    assert await cells.value(cell, tasks.pid) == cell.pid


@pytest.mark.parametrize(
    "function", [tasks.return_object, tasks.return_deep, tasks.return_large, tasks.return_evil]
)
async def test_what_is_no_output_is_said_to_be_none(
    cells: Bench, function: Callable[..., Any]
) -> None:
    """Values that JSON cannot hold, too deep or too large."""
    cell = await cells.cell()
    input = "/nowhere" if function is tasks.return_evil else None
    failure = failure_of(await cells.run(cell, function, input))
    assert failure["kind"] == "invalid_output"
    assert failure["message"]
    assert await cells.value(cell, tasks.pid) == cell.pid


async def test_an_outcome_that_cannot_be_said_is_a_failure(cells: Bench) -> None:
    """A class whose name no JSON can hold costs neither the process nor the answer."""
    cell = await cells.cell()
    assert failure_of(await cells.run(cell, tasks.raise_oddly_named))["kind"] == "error"
    assert await cells.value(cell, tasks.pid) == cell.pid


async def test_an_input_that_does_not_fit_is_a_failure(cells: Bench) -> None:
    """The row may be of an older version of the task."""
    cell = await cells.cell()
    failure = failure_of(await cells.run(cell, tasks.say, {"no": "text"}))
    assert failure["type"].endswith("InvalidInput")


async def test_an_outcome_says_what_it_has_cost(cells: Bench) -> None:
    """The peak is that of the task, and not of an earlier one."""
    cell = await cells.cell()
    large = await cells.run(cell, tasks.use_memory, 100)
    small = await cells.run(cell, tasks.ok)
    assert isinstance(large, Outcome)
    assert isinstance(small, Outcome)
    assert large.peak_memory_bytes is not None
    assert small.peak_memory_bytes is not None
    assert large.peak_memory_bytes > 100 * 1024 * 1024 > small.peak_memory_bytes
    assert large.cpu_seconds is not None
    assert 0 < large.cpu_seconds < 5


async def test_progress_and_checkpoint_are_heard(cells: Bench) -> None:
    """In their order; the last progress is in the outcome too."""
    cell = await cells.cell()
    heard = Heard()
    call = call_of(tasks.report, 50)
    ended = await run(cell, call, heard)
    assert isinstance(ended, Outcome)
    assert ended.progress == 49
    said = [message.percentage for message in heard.messages if isinstance(message, Progress)]
    assert said == sorted(said)
    kept = [bytes(m.state) for m in heard.messages if isinstance(m, Checkpoint)]
    assert kept == [b'{"step":50}']


@pytest.mark.usefixtures("whole_bursts")
async def test_a_burst_runs_in_order_and_each_call_has_its_end(cells: Bench) -> None:
    """Calls that come while others run are sent together."""
    cell = await cells.cell()
    heard = [Heard() for _ in range(40)]
    calls = [call_of(tasks.say, str(number)) for number in range(40)]
    ended = await asyncio.gather(
        *(run(cell, call, listener) for call, listener in zip(calls, heard, strict=True))
    )
    assert [value_of(each) for each in ended] == [None] * 40
    assert [each.text for each in heard] == [f"{number}\n" for number in range(40)]
    assert cell.load == 0
    assert cell.finished_calls == 40


async def test_what_waits_behind_a_long_call_is_taken_back(
    cells: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of its burst and what came later; the call itself and the cell go on."""
    monkeypatch.setattr(module, "HELD_UP_SECONDS", 1.0)  # what is short is so on a busy machine
    cell = await cells.cell()
    await cells.value(cell, tasks.ok)  # what comes next imports nothing
    first = run(cell, call_of(tasks.say, "first"), Heard())
    long = run(cell, call_of(tasks.wait_for_file, str(tmp_path / "go")), Heard())
    rest = [run(cell, call_of(tasks.say, "never"), Heard()) for _ in range(20)]
    assert value_of(await first) is None
    rest.append(run(cell, call_of(tasks.say, "never"), Heard()))
    assert [await each for each in rest] == [Unstarted(returned=True)] * 21
    assert not long.done()
    assert cell.is_held_up
    assert cell.load == 1
    (tmp_path / "go").touch()
    assert value_of(await long) == "there"
    assert not cell.is_held_up
    heard = [Heard(), Heard()]
    await asyncio.gather(*(run(cell, call_of(tasks.say, "next"), each) for each in heard))
    assert [each.text for each in heard] == ["next\n"] * 2


async def test_a_burst_of_calls_that_each_take_a_while_is_left_alone(
    cells: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on, longer as a whole than any of them may take."""
    monkeypatch.setattr(module, "HELD_UP_SECONDS", 1.5)
    monkeypatch.setattr(turns, "LONGEST_WAIT_SECONDS", 60.0)
    cell = await cells.cell()
    await cells.value(cell, tasks.ok)  # what comes next imports nothing
    calls = [run(cell, call_of(tasks.sleep, 0.2), Heard()) for _ in range(10)]
    assert [value_of(await each) for each in calls] == ["slept"] * 10


async def test_what_waits_for_long_is_taken_back(cells: Bench) -> None:
    """Though each call is short: others may wait for the cell that matter more."""
    cell = await cells.cell()
    calls = [run(cell, call_of(tasks.sleep, 0.1), Heard()) for _ in range(60)]
    ended = [await each for each in calls]
    taken_back = ended.count(Unstarted(returned=True))
    assert 20 <= taken_back < 60  # after a second, and at once: with room for a busy machine
    assert [value_of(each) for each in ended[:-taken_back]] == ["slept"] * (60 - taken_back)
    assert value_of(await run(cell, call_of(tasks.sleep, 0.1), Heard())) == "slept"


async def test_a_listener_that_raises_costs_nothing(
    cells: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be the application's logging that does; the outcome comes all the same."""

    def listen(_message: object) -> None:
        raise ValueError("not interested")

    cell = await cells.cell()
    assert value_of(await run(cell, call_of(tasks.say, "hello"), listen)) is None
    assert await cells.value(cell, tasks.pid) == cell.pid
    assert "not interested" in caplog.text


async def test_what_nobody_refers_to_is_run_all_the_same(cells: Bench) -> None:
    """The garbage collector finds nothing that is still needed."""
    cell = await cells.cell()
    running = run(cell, call_of(tasks.sleep, 0.2), Heard())
    for _ in range(5):
        await asyncio.sleep(0.02)
        gc.collect()
    assert value_of(await running) == "slept"
