"""What a task prints and logs: on its row, to those who watch, and in the application's log."""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from pathlib import Path
from uuid import UUID

import psutil
import pytest

from lilota_async import Task
from tests.api import own_logging, work
from tests.api.support import DEADLINE, MakeLilota, leaving_nothing, marked, row, row_when
from tests.api.tasks import echo

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]

LIMIT = 64 * 1024


class Kept(logging.Handler):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


async def test_everything_that_is_said_is_on_the_row(make_lilota: MakeLilota) -> None:
    """Python's streams, those of C and of other programs, and records; the next has its own."""
    lilota = make_lilota(work.speak, echo)
    async with lilota, asyncio.timeout(DEADLINE):
        task = await lilota.wait(await lilota.schedule(work.speak))
        quiet = await lilota.wait(await lilota.schedule(echo, 1))
    assert task.log is not None
    for said in ("python says grüezi\n", "error\n", "from C\n", "from the shell\n"):
        assert said in task.log
    assert "WARNING lilota_async.task.speak: from the logger\n" in task.log
    assert "ERROR tests.own: from a handler\nTraceback" in task.log
    assert "KeyError: 'lost'\n" in task.log
    assert quiet.log is None


async def test_records_reach_the_logging_of_the_application(make_lilota: MakeLilota) -> None:
    """With the task's id and name, and by the levels that the application has set."""
    own = logging.getLogger("tests.own")
    kept = Kept()
    own.addHandler(kept)
    before = own.level
    own.setLevel(logging.INFO)  # below that of the root
    try:
        lilota = make_lilota(work.speak)
        async with lilota, asyncio.timeout(DEADLINE):
            task_id = await lilota.schedule(work.speak)
            await lilota.wait(task_id)
    finally:
        own.removeHandler(kept)
        own.setLevel(before)
    assert [record.getMessage() for record in kept.records] == [
        "from its own logger",
        "from a handler",
    ]
    for record in kept.records:
        assert (record.task_id, record.task_name) == (str(task_id), "speak")  # type: ignore[attr-defined]
        assert record.pathname == work.__file__
    assert kept.records[1].exc_text is not None
    assert "KeyError" in kept.records[1].exc_text


async def test_modules_that_set_up_logging_do_so_for_the_application(
    make_lilota: MakeLilota,
) -> None:
    """Their handlers work there; in a task process they would write past it."""
    kept = Kept()
    own_logging.own.addHandler(kept)
    try:
        lilota = make_lilota(own_logging.speak_here)
        async with lilota, asyncio.timeout(DEADLINE):
            task = await lilota.wait(await lilota.schedule(own_logging.speak_here))
    finally:
        own_logging.own.removeHandler(kept)
    assert [record.task_id for record in kept.records] == [str(task.id)]  # type: ignore[attr-defined]
    assert task.log == "ERROR tests.set_up: through the application's handler\n"


@pytest.mark.parametrize("how", ["exception", "timeout", "cancel", "SIGKILL", "SIGSEGV", "exit"])
async def test_the_end_of_what_was_said_is_kept(make_lilota: MakeLilota, how: str) -> None:
    """Whatever the end: the last 64 KiB are on the row, with the last line before it."""
    lilota = make_lilota(work.speak_and_end)
    async with lilota, asyncio.timeout(DEADLINE):
        timeout = 4.0 if how == "timeout" else None
        task_id = await lilota.schedule(work.speak_and_end, how, timeout=timeout)
        if how == "cancel":
            await row_when(lilota, task_id, lambda task: task.progress_percentage == 50)
            assert await lilota.cancel(task_id)
        log = (await lilota.wait(task_id)).log
    assert log is not None
    assert LIMIT - 20 < len(log) <= LIMIT
    assert "line 09999\n" in log
    assert f"ends by {how}\n" in log
    assert ("Segmentation fault" in log) == (how == "SIGSEGV")


async def test_a_flood_neither_blocks_the_task_nor_fills_the_application(
    make_lilota: MakeLilota,
) -> None:
    """200 MB go through while somebody watches; the row keeps the end."""
    lilota = make_lilota(work.flood, echo, number_of_processes=2)
    async with asyncio.timeout(60), leaving_nothing(lilota):
        await lilota.result(await lilota.schedule(echo, 1))
        task_id = await lilota.schedule(work.flood, 200)
        events = lilota.watch(task_id)
        await anext(events)  # and reads no further: it is a slow reader
        before = most = psutil.Process().memory_info().rss
        started = time.monotonic()
        waiting = asyncio.ensure_future(lilota.wait(task_id))
        turns = []
        while not waiting.done():
            asked = time.monotonic()
            assert await lilota.result(await lilota.schedule(echo, 1)) == 1
            turns.append(time.monotonic() - asked)
            most = max(most, psutil.Process().memory_info().rss)
        task = await waiting
        await events.aclose()
        assert task.status == "completed"
        assert time.monotonic() - started < 45
        assert statistics.median(turns) < 2  # one may take long on a busy machine
        assert most - before < 150 * 1024 * 1024
        assert task.log is not None
        assert task.log.endswith("x\nthe end\n")
        assert len(task.log) <= LIMIT


async def test_those_who_watch_hear_it_at_once(make_lilota: MakeLilota, directory: Path) -> None:
    """Events bring what is said while the task runs, all of it, and in its order."""
    lilota = make_lilota(work.speak_when_asked)
    async with lilota, asyncio.timeout(DEADLINE):
        task_id = await lilota.schedule(work.speak_when_asked, str(directory))
        said = ""
        async for event in lilota.watch(task_id):
            if event.kind == "log":
                assert event.status == "running"
                said += event.log or ""
            if said == "first\n" and not (directory / "release").exists():
                assert (await row(lilota, task_id)).status == "running"
                await marked(directory)
                (directory / "release").touch()
    assert said == "first\nsecond\n"
    assert (await row(lilota, task_id)).log == said


async def test_what_is_said_before_the_row_is_read_is_heard(
    make_lilota: MakeLilota, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the task has ended, and so is not known to its node any more, once it is read."""
    lilota = make_lilota(work.speak_when_asked)
    async with lilota, asyncio.timeout(DEADLINE):
        task_id = await lilota.schedule(work.speak_when_asked, str(directory))
        await marked(directory)
        read = lilota._existing

        async def read_slowly(_task_id: UUID) -> Task:
            task = await read(task_id)
            (directory / "release").touch()
            while lilota._attempt_of(task.id) is not None:
                await asyncio.sleep(0.01)
            return task

        monkeypatch.setattr(lilota, "_existing", read_slowly)
        events = [event async for event in lilota.watch(task_id, after="")]
    assert [event.status for event in events if event.kind == "status"] == ["running", "completed"]
    assert "".join(event.log or "" for event in events) == "first\nsecond\n"


async def test_a_reader_who_was_too_slow_gets_what_it_has_missed(
    make_lilota: MakeLilota, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the next that comes, while the task runs."""
    monkeypatch.setattr("lilota_async.engine.events.QUEUE_LIMIT", 1)
    lilota = make_lilota(work.count_when_asked)
    async with lilota, asyncio.timeout(DEADLINE):
        task_id = await lilota.schedule(work.count_when_asked, str(directory))
        await marked(directory)
        said = ""
        async for event in lilota.watch(task_id, after=""):
            said += event.log or ""
            if event.kind == "status" and event.status == "running":
                (directory / "release").touch()
                await marked(directory, "counted")
                await asyncio.sleep(0.1)
                (directory / "more").touch()
            if event.kind == "log" and said.endswith("the last\n"):
                assert (await row(lilota, task_id)).status == "running"
                (directory / "end").touch()
    assert said == "".join(f"{number}\n" for number in range(5)) + "the last\n"
