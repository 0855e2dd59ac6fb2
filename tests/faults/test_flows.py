"""Tasks that follow tasks and periodic ones, while the applications that run them are killed."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest

from lilota_async import Lilota, Task, TaskId, TaskStatus
from tests.apps import ROOT
from tests.faults.flows import PARTS, TICK_SECONDS, application

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]
ROOTS = 15
KILLS = 8
SECONDS = 60.0


@contextmanager
def applications(url: str, number: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """So many applications; killed at the end."""
    running = [_start(url) for _ in range(number)]
    try:
        yield running
    finally:
        for each in running:
            each.kill()
            each.wait()


def _start(url: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "tests.faults.flows", url], cwd=ROOT)


async def test_kills_in_the_middle_of_flows(fast_database_url: str) -> None:
    """Each flow is there whole and once, its merge comes last, and no tick is lost or doubled."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    watcher = application(fast_database_url, number_of_processes=0)
    async with watcher, asyncio.timeout(SECONDS):
        roots: list[TaskId[str]] = []
        for number in range(ROOTS):
            after = roots[-1:] if number % 3 else []
            roots.append(TaskId(await watcher.schedule("root", number, after=after)))
        with applications(fast_database_url, 2) as running:
            for _ in range(KILLS):
                await asyncio.sleep(chance.uniform(0.3, 1.0))
                victim = chance.randrange(2)
                running[victim].kill()
                running[victim].wait()
                running[victim] = _start(fast_database_url)
            merges = [TaskId[int](await watcher.result(each)) for each in roots]
            assert [await watcher.result(each) for each in merges] == list(range(ROOTS)), seed
        await _check_flows(watcher, roots, merges)
        _check_ticks(await watcher.get_all_tasks(name="tick"))


async def _check_flows(
    watcher: Lilota, roots: list[TaskId[str]], merges: list[TaskId[int]]
) -> None:
    tasks = await watcher.get_all_tasks()
    names = Counter(task.name for task in tasks if task.name != "tick")
    assert names == {"root": ROOTS, "part": ROOTS * PARTS, "merge": ROOTS}
    by_id = {task.id: task for task in tasks}
    parts: dict[int, list[Task]] = defaultdict(list)
    for task in tasks:
        if task.name == "part":
            parts[task.input[0]].append(task)
    for number in range(ROOTS):
        assert sorted(part.input[1] for part in parts[number]) == list(range(PARTS))
        start = by_id[merges[number]].start_date_time
        assert start is not None
        for part in parts[number]:
            assert part.status is TaskStatus.COMPLETED
            assert part.end_date_time is not None
            assert part.end_date_time <= start
        if number % 3:
            end = by_id[roots[number - 1]].end_date_time
            begin = by_id[roots[number]].start_date_time
            assert end is not None
            assert begin is not None
            assert end <= begin


def _check_ticks(tasks: list[Task]) -> None:
    times = [task.nominal_time for task in tasks]
    assert times[0] is not None
    period = timedelta(seconds=TICK_SECONDS)
    assert times == [times[0] + number * period for number in range(len(times))]
    assert len(times) > KILLS
