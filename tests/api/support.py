"""Waiting for marks, looking at processes, and reading rows by hand."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import psutil
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from lilota_async import Lilota, Task, TaskId
from tests.execution.support import nothing_left, warm_up

DEADLINE = 30.0
POLL = 0.01


class MakeLilota(Protocol):
    """Makes a Lilota with these functions registered; it is stopped at the end of the test."""

    def __call__(self, *functions: Callable[..., object], **options: object) -> Lilota: ...


async def until(condition: Callable[[], bool], what: str, deadline: float = DEADLINE) -> None:
    """Wait until `condition` holds; fails with `what` did not happen."""
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline
    while not condition():
        assert loop.time() < end, f"{what} did not happen within {deadline:g} s"
        await asyncio.sleep(POLL)


async def marked(directory: Path, name: str = "started") -> str:
    """Wait for a task's mark and return its text."""
    await until((directory / name).exists, f"the mark {name!r}")
    return (directory / name).read_text()


async def row_when(lilota: Lilota, task_id: TaskId[Any], condition: Callable[[Task], bool]) -> Task:
    """Wait until the task's row is as `condition` wants it, and return it."""
    async with asyncio.timeout(DEADLINE):
        task = await row(lilota, task_id)
        while not condition(task):
            await asyncio.sleep(POLL)
            task = await row(lilota, task_id)
        return task


def is_gone(pid: int) -> bool:
    """Whether there is no such process; one that is ended and not reaped yet has gone."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def task_processes() -> set[int]:
    """The task processes of this process: each leads a session of its own."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            if os.getsid(process.pid) == process.pid:
                found.add(process.pid)
        except ProcessLookupError:
            pass
    return found


@asynccontextmanager
async def session(url: str | URL) -> AsyncIterator[AsyncSession]:
    """A session of the application's own."""
    engine = create_async_engine(url)
    try:
        async with AsyncSession(engine, expire_on_commit=False) as session:
            yield session
    finally:
        await engine.dispose()


async def row(lilota: Lilota, task_id: TaskId[Any]) -> Task:
    """The task's row, which must be there."""
    task = await lilota.get_task_by_id(task_id)
    assert task is not None
    return task


@asynccontextmanager
async def leaving_nothing(lilota: Lilota) -> AsyncIterator[Lilota]:
    """A started Lilota, stopped at the end of the block; then nothing more is there than before.

    Before is after a first start and stop: those bring up what is of the whole process.
    """
    warm_up("forkserver")
    async with lilota:
        pass
    with nothing_left():
        async with lilota:
            yield lilota
