"""What task processes print and log, and whose it is."""

from __future__ import annotations

import asyncio
import logging
import statistics

import psutil
import pytest

from lilota_async.engine.reports import LOG_LIMIT, LogTail
from lilota_async.execution.protocol import Message
from tests.execution import tasks
from tests.execution.support import Bench, Heard, bench, call_of, run, value_of

pytestmark = pytest.mark.anyio


async def test_everything_printed_is_the_tasks(cells: Bench) -> None:
    """Python's streams, C's, the bare descriptor and a child process's."""
    cell = await cells.cell()
    heard = Heard()
    await run(cell, call_of(tasks.speak_everywhere), heard)
    assert sorted(heard.text.splitlines()) == sorted(
        ["python out", "python error", "c out", "descriptor", "child"]
    )


@pytest.mark.usefixtures("whole_bursts")
async def test_output_is_told_apart(cells: Bench) -> None:
    """Each call has its own, without a newline at the end too."""
    cell = await cells.cell()
    heard = [Heard() for _ in range(6)]
    functions = [tasks.print_without_newline, tasks.ok] * 3
    await asyncio.gather(
        *(run(cell, call_of(f), each) for f, each in zip(functions, heard, strict=True))
    )
    assert [each.text for each in heard] == ["half a line", ""] * 3


@pytest.mark.usefixtures("whole_bursts")
async def test_output_is_told_apart_of_calls_that_are_sent_one_by_one(cells: Bench) -> None:
    """Each begins right after the one before, whose end has not been heard by then."""
    cell = await cells.cell()
    heard = [Heard() for _ in range(60)]
    ends = []
    for number, each in enumerate(heard):
        call = call_of(tasks.say, str(number))
        ends.append(asyncio.ensure_future(run(cell, call, each)))
        for _ in range(3):  # so that it is sent by itself
            await asyncio.sleep(0)
    await asyncio.gather(*ends)
    assert [each.text for each in heard] == [f"{number}\n" for number in range(60)]


@pytest.mark.parametrize("function", [tasks.break_streams, tasks.close_output])
async def test_a_task_that_breaks_the_streams_is_no_crash(cells: Bench, function: object) -> None:
    """Its call ends as any; for the next they are whole again."""
    cell = await cells.cell()
    assert await cells.value(cell, function) is None  # type: ignore[arg-type]
    heard = Heard()
    assert value_of(await run(cell, call_of(tasks.say, "next"), heard)) is None
    assert heard.text == "next\n"


async def test_records_arrive_as_values(cells: Bench) -> None:
    """With their exception as text, and with whatever no database takes escaped."""
    cell = await cells.cell()
    heard = Heard()
    await run(cell, call_of(tasks.log), heard)
    seen, caught, odd = heard.records
    assert (seen.logger, seen.level, seen.message) == ("somewhere", logging.WARNING, "seen 1")
    assert seen.path == tasks.__file__
    assert seen.exception is None
    assert caught.message == "caught"
    assert caught.exception is not None
    assert caught.exception.startswith("Traceback")
    assert caught.exception.endswith("ValueError: in the log")
    assert odd.message == "odd \\udc80 \\x00"
    assert heard.text == ""


async def test_the_level_is_that_of_the_application(method: str) -> None:
    """What would not be wanted is not sent."""
    root = logging.getLogger()
    before = root.level
    try:
        for level, count in ((logging.DEBUG, 4), (logging.ERROR, 1)):
            root.setLevel(level)
            async with bench(method) as cells:
                heard = Heard()
                await run(await cells.cell(), call_of(tasks.log), heard)
                own = [r for r in heard.records if r.logger != "asyncio"]
                assert len(own) == count
    finally:
        root.setLevel(before)


async def test_a_fork_speaks_through_the_output(cells: Bench) -> None:
    """Its records would cut those of its parent, and become lines."""
    cell = await cells.cell()
    heard = Heard()
    assert value_of(await run(cell, call_of(tasks.log_in_fork), heard)) == "ok"
    assert heard.text == "ERROR forked: from the fork\n"
    assert heard.records == []


async def test_a_flood_neither_blocks_nor_grows_the_parent(cells: Bench) -> None:
    """200 MB go through; what stays is the tail, and the loop serves others meanwhile."""
    cell = await cells.cell()
    tail = LogTail()
    received = 0

    def listen(message: Message | bytes) -> None:
        nonlocal received
        assert isinstance(message, bytes)
        received += len(message)
        tail.add(message.decode())

    before = psutil.Process().memory_info().rss
    running = asyncio.ensure_future(run(cell, call_of(tasks.flood, 200), listen))
    most = 0.0
    turns: list[float] = []
    loop = asyncio.get_running_loop()
    while not running.done():
        started = loop.time()
        await asyncio.sleep(0.01)
        turns.append(loop.time() - started)
        most = max(most, psutil.Process().memory_info().rss)
    assert value_of(await running) == "flooded"
    assert received == 200 * 1024 * 1024 + len("the end\n")
    assert most - before < 40 * 1024 * 1024
    assert statistics.median(turns) < 0.5  # one may take long on a busy machine
    text = tail.text()
    assert text is not None
    assert text.endswith("x\nthe end\n")
    assert LOG_LIMIT - 10 < len(text) <= LOG_LIMIT


async def test_a_flood_of_records_is_waited_for(cells: Bench) -> None:
    """No record is lost, and none holds the parent up."""
    cell = await cells.cell()
    heard = Heard()
    assert value_of(await run(cell, call_of(tasks.flood_logging, 20_000), heard)) == "logged"
    assert len(heard.records) == 20_000
