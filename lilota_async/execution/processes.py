"""The process pool: as many cells as there are slots, each replaced when it dies."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import BaseContext

from lilota_async.errors import WorkerStartFailed
from lilota_async.execution.cells import Cell
from lilota_async.options import StartMethod

FAILURES_BEFORE_ERROR = 3
FIRST_PAUSE_SECONDS = 0.2
LAST_PAUSE_SECONDS = 30.0
logger = logging.getLogger("lilota_async")


class ProcessPool:
    """Task processes for `size` tasks at a time.

    `preload` names modules that the fork server imports once for all processes.
    """

    def __init__(
        self,
        size: int,
        on_idle: Callable[[], None],
        *,
        start_method: StartMethod | None = None,
        preload: Sequence[str] = (),
    ) -> None:
        self.size = size
        self._on_idle = on_idle
        self._context = _context(start_method, preload)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lilota-cells")
        self._cells: list[Cell] = []
        self._replacing: set[asyncio.Task[None]] = set()
        self._closing = False
        self._failures = 0

    def slots(self) -> list[Cell]:
        """The cells that are up."""
        return [cell for cell in self._cells if cell.is_usable]

    async def start(self) -> None:
        """Bring all processes up; WorkerStartFailed when one cannot come up."""
        started = [self._start_cell() for _ in range(self.size)]
        results = await asyncio.gather(*started, return_exceptions=True)
        failed = [result for result in results if isinstance(result, BaseException)]
        if failed:
            await self.close()
            raise failed[0]

    async def close(self) -> None:
        """End all processes, and what still runs in them."""
        self._closing = True
        for task in self._replacing:
            task.cancel()
        await asyncio.gather(*self._replacing, return_exceptions=True)
        await asyncio.gather(*(cell.close() for cell in self._cells))
        self._cells.clear()
        await asyncio.to_thread(self._thread.shutdown)

    async def _start_cell(self) -> None:
        cell = Cell(self._context, self._thread, self._on_death)
        await cell.start()
        self._cells.append(cell)
        if self._closing:
            return
        self._on_idle()

    def _on_death(self, cell: Cell) -> None:
        if cell in self._cells:
            self._cells.remove(cell)
        if not self._closing:
            task = asyncio.get_running_loop().create_task(self._replace())
            self._replacing.add(task)
            task.add_done_callback(self._replacing.discard)

    async def _replace(self) -> None:
        while not self._closing:
            try:
                await self._start_cell()
            except (WorkerStartFailed, OSError) as error:
                self._failures += 1
                if self._failures == FAILURES_BEFORE_ERROR:
                    logger.error(
                        "Task processes do not come up, so that no tasks are claimed for them; "
                        "trying on. %s",
                        error,
                    )
                pause = FIRST_PAUSE_SECONDS * 2 ** min(self._failures, 10)
                await asyncio.sleep(min(pause, LAST_PAUSE_SECONDS))
            else:
                self._failures = 0
                return


def _context(start_method: StartMethod | None, preload: Sequence[str]) -> BaseContext:
    method = start_method or ("forkserver" if sys.platform == "linux" else "spawn")
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        # Of the whole process, and of no effect once a fork server runs: cells come up more
        # slowly then, and work the same.
        context.set_forkserver_preload(list(preload))
    return context
