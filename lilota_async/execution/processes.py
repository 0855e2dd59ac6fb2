"""The process pool: as many cells as there are slots, each replaced when it dies."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import sys
import time
import weakref
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from typing import Any

from lilota_async.errors import WorkerStartFailed
from lilota_async.execution import measures
from lilota_async.execution.cells import Cell
from lilota_async.execution.start_failure import EndedSilently, why_main_cannot_be_imported
from lilota_async.execution.worker_process import run_before_executors_end
from lilota_async.options import StartMethod

FAILURES_BEFORE_ERROR = 3
FIRST_PAUSE_SECONDS = 0.2
LAST_PAUSE_SECONDS = 30.0
GROWTH_CHECK_SECONDS = 1.0
SUCCESSOR_SECONDS = 5.0  # before a process is due for recycling, at its pace so far
THREADS = 2  # one to start a process while the other buries its predecessor
HINT = (
    "Most often the main script fails when a task process imports it: what starts the "
    "application belongs under 'if __name__ == \"__main__\":'. It said: "
)
logger = logging.getLogger("lilota_async")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recycling:
    """When a task process is replaced though it is well: never, where both are None.

    `calls` is how many it may run, `growth_bytes` by how much its resident size may have grown
    since it had run its first. What it has been given it still runs.
    """

    calls: int | None = None
    growth_bytes: int | None = None


NO_RECYCLING = Recycling()


class Age:
    """What tells whether a cell is due for recycling, or will be soon."""

    __slots__ = ("_born", "_checked", "_first_bytes", "is_late", "is_over")

    def __init__(self) -> None:
        self.is_late = self.is_over = False
        self._first_bytes: int | None = None
        self._checked = float("-inf")
        self._born = time.monotonic()

    def look(self, cell: Cell, recycling: Recycling) -> None:
        """Set `is_late` and `is_over` when it is; its size is read once a second at most."""
        now = time.monotonic()
        if recycling.calls is not None:
            left = recycling.calls - cell.finished_calls
            self.is_over = self.is_over or left <= 0
            seconds_left = left * (now - self._born) / max(1, cell.finished_calls)
            self.is_late = self.is_late or seconds_left < SUCCESSOR_SECONDS
        if recycling.growth_bytes is None or now - self._checked < GROWTH_CHECK_SECONDS:
            return
        self._checked = now
        size = measures.resident_bytes(cell.pid)
        if self._first_bytes is None:
            self._first_bytes = size
        elif size is not None and size - self._first_bytes > recycling.growth_bytes:
            self.is_over = True


class ProcessPool:
    """Task processes for `size` tasks at a time.

    One that is due for recycling before long has its successor standing by, so that no slot is
    without a process while others wait.

    `preload` names modules that the fork server imports once for all processes.
    """

    is_stuck = False

    def __init__(
        self,
        size: int,
        on_idle: Callable[[], None],
        *,
        start_method: StartMethod | None = None,
        preload: Sequence[str] = (),
        recycling: Recycling = NO_RECYCLING,
    ) -> None:
        self.size = size
        self._on_idle = on_idle
        self._recycling = recycling
        self._context = _context(start_method, preload)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="lilota-cells")
        self._cells: set[Cell] = set()  # with those that come up and those that are buried
        self._ages: dict[Cell, Age] = {}  # of those that take calls
        self._successors: list[Cell] = []
        self._coming_up = 0
        self._replacing: set[asyncio.Task[None]] = set()
        self._closing = False
        self._failures = 0

    def slots(self) -> list[Cell]:
        """The cells that take calls."""
        return [cell for cell, age in self._ages.items() if cell.is_usable and not age.is_over]

    @property
    def is_healthy(self) -> bool:
        """Whether processes come up."""
        return bool(self._ages) or self._failures < FAILURES_BEFORE_ERROR

    async def start(self) -> None:
        """Bring all processes up; WorkerStartFailed when one cannot come up."""
        run_before_executors_end(_weakly(self.kill))
        self._coming_up = self.size
        started = [self._start_cell() for _ in range(self.size)]
        results = await asyncio.gather(*started, return_exceptions=True)
        failed = [result for result in results if isinstance(result, BaseException)]
        if failed:
            error = failed[0]
            if isinstance(error, WorkerStartFailed):
                error = WorkerStartFailed(await self._explain(error))
            await self.close()
            raise error

    async def close(self) -> None:
        """End all processes, and what still runs in them."""
        self._closing = True
        for task in self._replacing:
            task.cancel()
        await asyncio.gather(*self._replacing, return_exceptions=True)
        await asyncio.gather(*(cell.close() for cell in self._cells))
        self._cells.clear()
        self._ages.clear()
        self._threads.shutdown()  # they are idle: it takes no time

    def kill(self) -> None:
        """End all processes at once; the application exits, and no loop runs any more."""
        workers = [cell.worker for cell in self._cells]
        for worker in workers:
            worker.kill()
        for worker in workers:  # what it hears of only while the interpreter ends, it complains of
            worker.wait_for_executor()

    async def _start_cell(self) -> None:
        cell = Cell(self._context, self._threads, self._on_death, self._on_end_of_call)
        self._cells.add(cell)
        try:
            await cell.start()
        except WorkerStartFailed:
            self._cells.discard(cell)
            raise
        self._coming_up -= 1
        if cell.is_usable:
            self._successors.append(cell)
        self._fill()

    def _fill(self) -> None:
        """Give slots that are empty to processes that stand by, and bring up what is missing."""
        if self._closing:
            return
        while self._successors and len(self._ages) < self.size:
            self._ages[self._successors.pop(0)] = Age()
            self._on_idle()
        wanted = self.size + sum(age.is_late for age in self._ages.values())
        missing = wanted - len(self._ages) - len(self._successors) - self._coming_up
        for _ in range(missing):
            self._coming_up += 1
            self._spawn(self._bring_up())

    def _on_death(self, cell: Cell) -> None:
        self._ages.pop(cell, None)
        if cell in self._successors:
            self._successors.remove(cell)
        self._fill()
        self._spawn(self._bury(cell))

    def _on_end_of_call(self, cell: Cell) -> None:
        age = self._ages.get(cell)
        if age is None or self._closing:
            return
        was_late = age.is_late
        age.look(cell, self._recycling)
        if age.is_over and not cell.load:
            cell.take_no_more()  # what was claimed for it a moment ago is not to be killed
            del self._ages[cell]
            self._fill()
            self._spawn(self._bury(cell))
        elif age.is_late and not was_late:
            self._fill()

    async def _bury(self, cell: Cell) -> None:
        await cell.close()
        self._cells.discard(cell)

    async def _bring_up(self) -> None:
        while not self._closing:
            try:
                await self._start_cell()
            except WorkerStartFailed as error:
                self._failures += 1
                if self._failures == FAILURES_BEFORE_ERROR:
                    logger.error(
                        "Task processes do not come up, so that no tasks are claimed for them; "
                        "trying on. %s",
                        await self._explain(error),
                    )
                pause = FIRST_PAUSE_SECONDS * 2 ** min(self._failures, 10)
                await asyncio.sleep(min(pause, LAST_PAUSE_SECONDS))
            else:
                if self._failures >= FAILURES_BEFORE_ERROR:
                    logger.info("Task processes come up again")
                self._failures = 0
                return

    async def _explain(self, error: WorkerStartFailed) -> str:
        if not isinstance(error, EndedSilently):
            return str(error)
        said = await why_main_cannot_be_imported()
        return f"{error} {HINT}{said or 'nothing; see standard error'}"

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._replacing.add(task)
        task.add_done_callback(self._replacing.discard)


def _weakly(method: Callable[[], None]) -> Callable[[], None]:
    """Call `method` if its object is still there, and not in a fork of this process."""
    reference = weakref.WeakMethod(method)
    owner = os.getpid()

    def call() -> None:
        found = reference()
        if found is not None and os.getpid() == owner:
            found()

    return call


def _context(start_method: StartMethod | None, preload: Sequence[str]) -> BaseContext:
    method = start_method or ("forkserver" if sys.platform == "linux" else "spawn")
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        # Of the whole process, and of no effect once a fork server runs: cells come up more
        # slowly then, and work the same.
        context.set_forkserver_preload(list(preload))
    return context
