"""What happens to tasks is noticed by those whom it concerns, and does not disturb the others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from lilota_async import Lilota, TaskStatus
from tests.api.support import DEADLINE, MakeLilota, marked, row_when, until
from tests.api.tasks import echo, hold, sleep_async

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


def _note_polls(monkeypatch: pytest.MonkeyPatch, lilota: Lilota, polls: list[Lilota]) -> None:
    assert lilota._node is not None
    events = lilota._node.events
    read_states = events._read_states

    def noted(ids: Any) -> Any:
        polls.append(lilota)
        return read_states(ids)

    monkeypatch.setattr(events, "_read_states", noted)


async def test_what_runs_here_is_not_polled(
    make_lilota: MakeLilota,
    fast_database_url: str,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its node knows when it ends; for those elsewhere the database is asked."""
    worker = make_lilota(hold, db_url=fast_database_url)
    looker = make_lilota(hold, db_url=fast_database_url, number_of_processes=0)
    async with worker, looker:
        task_id = await worker.schedule(hold, str(directory))
        await marked(directory)
        polls: list[Lilota] = []
        for lilota in (worker, looker):
            _note_polls(monkeypatch, lilota, polls)
        waiting = [asyncio.ensure_future(lilota.wait(task_id)) for lilota in (worker, looker)]
        await until(lambda: len(polls) >= 3, "the polls")
        assert set(polls) == {looker}
        (directory / "release").touch()
        for task in await asyncio.gather(*waiting):
            assert task.status is TaskStatus.COMPLETED


async def test_what_has_begun_here_is_polled_no_more(
    make_lilota: MakeLilota,
    fast_database_url: str,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also for those who asked while it was pending."""
    lilota = make_lilota(hold, echo, db_url=fast_database_url, number_of_processes=1)
    async with lilota:
        first, second = directory / "first", directory / "second"
        for each in (first, second):
            each.mkdir()
        await lilota.schedule(hold, str(first))
        await marked(first)
        task_id = await lilota.schedule(hold, str(second))
        polls: list[Lilota] = []
        _note_polls(monkeypatch, lilota, polls)
        waiting = asyncio.ensure_future(lilota.wait(task_id, DEADLINE))
        await until(lambda: bool(polls), "the polls of what is pending")
        (first / "release").touch()
        await marked(second)
        await asyncio.sleep(0.2)  # for a poll that is under way
        seen = len(polls)
        await asyncio.sleep(2.5)  # the longest pause is one second
        assert len(polls) == seen
        (second / "release").touch()
        assert (await waiting).status is TaskStatus.COMPLETED


async def _cancelled_in_its_commit(
    call: Callable[[], Awaitable[Any]],
    holder: Any,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The caller goes when the statement has been sent, and what it wanted is written."""
    method, is_sent = getattr(holder, name), asyncio.Event()

    async def slow(*arguments: Any, **named: Any) -> Any:
        done = await method(*arguments, **named)
        is_sent.set()
        await asyncio.sleep(0.05)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(holder, name, slow)
        caller = asyncio.ensure_future(call())
        await is_sent.wait()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller


async def test_callers_who_are_cancelled(
    make_lilota: MakeLilota, database_url: str, without_polling: None, monkeypatch: Any
) -> None:
    """What retry(), resume() and a replacement have let begin begins, whoever waits for them."""
    if database_url.startswith("sqlite"):
        pytest.skip("a thread does it in one go, and awaits nothing that could be held up")
    lilota = make_lilota(echo, db_url=database_url)
    async with lilota:
        node: Any = lilota._node
        task_id = await lilota.schedule(echo, 1)
        await lilota.result(task_id, DEADLINE)
        await _cancelled_in_its_commit(
            lambda: lilota.retry(task_id), node.store, "retry", monkeypatch
        )
        again = await row_when(
            lilota, task_id, lambda task: task.attempts == 2 and task.status == "completed"
        )
        assert again.output == 1
        await lilota.pause(echo)
        paused = await lilota.schedule(echo, 2)
        await _cancelled_in_its_commit(
            lambda: lilota.resume(echo), node.store.limits, "resume", monkeypatch
        )
        assert await lilota.result(paused, DEADLINE) == 2
        late = await lilota.schedule(echo, 3, unique_key="k", delay=3600)
        await _cancelled_in_its_commit(
            lambda: lilota.schedule(echo, 4, unique_key="k", on_conflict="replace"),
            node.store.unique_keys,
            "settle",
            monkeypatch,
        )
        assert await lilota.result(late, DEADLINE) == 4


async def test_rows_of_one_executor_leave_the_others_alone(
    make_lilota: MakeLilota, fast_database_url: str, directory: Path, without_polling: None
) -> None:
    """While tasks wait for a process, those of the loop are inserted as running as ever."""
    lilota = make_lilota(hold, echo, db_url=fast_database_url, number_of_processes=1)
    lilota.register("looped", executor="loop")(sleep_async)
    async with lilota:
        await lilota.schedule(hold, str(directory))
        await marked(directory)
        node: Any = lilota._node
        await until(lambda: "loop" not in node.dispatcher._unclaimed, "the claims of the start")
        try:
            for _ in range(20):
                await lilota.schedule(echo, 1)
                looped = await lilota.schedule("looped", 0.0)
                task = await lilota.wait(looped, DEADLINE)
                assert task.start_date_time == task.created_at
        finally:
            (directory / "release").touch()
