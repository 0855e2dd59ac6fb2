"""`await schedule()` is cancelled at 300 moments: a row that will run, or none, and no leak."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lilota_async import Lilota, TaskId
from tests.faults.history import Tables

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]
OFFSETS = 300
STEPS = 40  # of the event loop, at which the first ones are cancelled; the others by time
REST_SECONDS = 30.0
BACKENDS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Where the task notes that it ran."""

    path: str
    number: int


def leave_a_mark(data: Mark) -> int:
    """Append the number to the file."""
    with Path(data.path).open("a") as file:
        file.write(f"{data.number}\n")
    return data.number


async def _duration(lilota: Lilota, marks: str) -> float:
    """How long an undisturbed schedule() takes, at the longest of a few."""
    longest = 0.0
    for _ in range(5):
        began = time.monotonic()
        await lilota.schedule(leave_a_mark, Mark(path=marks, number=-1))
        longest = max(longest, time.monotonic() - began)
    return longest


async def _cancelled_after(offset: int, longest: float, scheduling: asyncio.Task[Any]) -> bool:
    """Cancel at the moment of this number; False when schedule() had returned before."""
    if offset < STEPS:
        for _ in range(offset):
            await asyncio.sleep(0)
    else:
        share = (offset - STEPS) / (OFFSETS - STEPS)
        await asyncio.wait([scheduling], timeout=share * longest * 1.2)
    scheduling.cancel()
    try:
        await scheduling
    except asyncio.CancelledError:
        return True
    return False


async def test_cancelled_at_any_moment(fast_database_url: str, tmp_path: Path) -> None:
    """Each id has one row or none, what has a row runs once, and nothing else runs."""
    marks = tmp_path / "marks"
    lilota = Lilota(fast_database_url, number_of_processes=1)
    lilota.register(leave_a_mark)
    tables = Tables(fast_database_url)
    given: dict[int, TaskId[Any]] = {}
    cancelled: set[int] = set()
    async with lilota:
        longest = await _duration(lilota, str(marks))
        connections = 0 if tables.is_sqlite else tables.fetch(BACKENDS)[0][0]
        for offset in range(OFFSETS):
            # Without an id of its own a task may be inserted as running, in a free slot.
            task_id: TaskId[Any] | None = TaskId() if offset % 2 else None
            if task_id is not None:
                given[offset] = task_id
            mark = Mark(path=str(marks), number=offset)
            scheduling = asyncio.create_task(lilota.schedule(leave_a_mark, mark, task_id=task_id))
            if await _cancelled_after(offset, longest, scheduling):
                cancelled.add(offset)
        assert 20 < len(cancelled) < OFFSETS, "the moments were all before or all after"
        # Asking again with the same id gives the row that is there, or a new one.
        for offset, task_id in given.items():
            mark = Mark(path=str(marks), number=offset)
            assert await lilota.schedule(leave_a_mark, mark, task_id=task_id) == task_id
        async with asyncio.timeout(REST_SECONDS):
            while tables.unfinished():
                await asyncio.sleep(0.05)
        if not tables.is_sqlite:
            # Cancelling has neither lost nor added one; the pool keeps a few for reading.
            await _connections(tables, connections + 2)
    rows = tables.fetch("SELECT id, status, attempts, output FROM lilota_task")
    assert {(row[1], row[2]) for row in rows} == {("completed", 1)}
    assert {str(row[0]).replace("-", "") for row in rows} >= {id_.hex for id_ in given.values()}
    numbers = Counter(int(row[3]) for row in rows)
    assert numbers.pop(-1) == 5
    assert set(numbers.values()) == {1}
    assert numbers.keys() >= set(range(OFFSETS)) - cancelled
    ran = Counter(map(int, marks.read_text().split()))
    ran.pop(-1)
    assert ran == numbers
    if not tables.is_sqlite:
        await _connections(tables, 0)


async def _connections(tables: Tables, most: int) -> None:
    """No more are left; the server notices the end of its clients by and by."""
    async with asyncio.timeout(15.0):
        while tables.fetch(BACKENDS)[0][0] > most:
            await asyncio.sleep(0.02)
