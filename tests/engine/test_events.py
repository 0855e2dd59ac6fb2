"""Who waits for tasks of other nodes: one poll for all of them, and soon for each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest

from lilota_async.engine import events as module
from lilota_async.engine.events import EndWaiter, Events, States
from lilota_async.models import TaskId, TaskStatus
from tests.api.support import until

pytestmark = pytest.mark.anyio
RUNNING = (TaskStatus.RUNNING, 0)
COMPLETED = (TaskStatus.COMPLETED, 100)


class Table:
    """The rows of other nodes' tasks, and how long it was until each poll."""

    def __init__(self) -> None:
        self.ended: set[TaskId[Any]] = set()
        self.pauses: list[float | None] = []
        self.mistakes = 0
        self.is_alone = False
        self.events = Events(self.read, lambda: self.is_alone)

    async def read(self, ids: Iterable[TaskId[Any]]) -> States:
        if self.mistakes:
            self.mistakes -= 1
            raise RuntimeError("a mistake")
        return {each: COMPLETED if each in self.ended else RUNNING for each in ids}

    def wait(self) -> tuple[TaskId[Any], EndWaiter]:
        """Wait for one of these tasks."""
        task_id, waiter = TaskId[Any](), EndWaiter(needs_row=False)
        self.events.listen(task_id, waiter)
        waiter.is_polled = True
        self.events.poll_soon()
        return task_id, waiter


@pytest.fixture
async def table(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Table]:
    """One whose polls note their pauses, instead of making them."""
    table, timeout = Table(), asyncio.timeout

    def note(seconds: float | None) -> asyncio.Timeout:
        table.pauses.append(seconds)
        return timeout(0)

    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "timeout", note)
        yield table
        await table.events.close()


async def test_one_who_comes_later_is_told_as_soon(table: Table) -> None:
    """The pauses grow while nothing ends, and are short again for a new one."""
    table.wait()
    await until(lambda: table.pauses[-1:] == [module.LAST_POLL_SECONDS], "the longest pause")
    before = len(table.pauses)
    task_id, waiter = table.wait()
    table.ended.add(task_id)
    assert await waiter.over is None
    await until(lambda: len(table.pauses) > before + 2, "the next polls")
    assert module.FIRST_POLL_SECONDS in table.pauses[before:]


async def test_many_are_polled_less_often(table: Table) -> None:
    """However many come anew."""
    for _ in range(module.MOST_POLLED_PER_SECOND // 2):
        table.wait()
    await until(lambda: len(table.pauses) > 5, "some polls")
    assert all(each is not None and each >= 0.5 for each in table.pauses[2:])


async def test_a_node_that_is_alone_polls_less_often(table: Table) -> None:
    """It knows of nearly all that happens; until another one comes."""
    table.is_alone = True
    table.wait()
    await until(lambda: table.pauses[-1:] == [module.LAST_POLL_SECONDS], "the longest pause")
    assert all(each is not None and each >= module.ALONE_POLL_SECONDS for each in table.pauses)
    table.is_alone = False
    before = len(table.pauses)
    table.wait()
    await until(lambda: module.FIRST_POLL_SECONDS in table.pauses[before:], "a short pause")


async def test_a_mistake_does_not_end_the_polls(
    table: Table, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and those who wait are told all the same."""
    table.mistakes = 1
    task_id, waiter = table.wait()
    table.ended.add(task_id)
    assert await waiter.over is None
    assert "trying on" in caplog.text
