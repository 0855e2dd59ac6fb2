"""Running a task's coroutine on an event loop of its own, and stopping it there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import anyio


class InterruptibleCoroutine:
    """A coroutine that is stopped by an exception while its code runs, and else by its loop.

    An exception of a signal handler ends up in whatever runs just then. Between two steps
    that is the loop, which takes it for that of some callback and drops it.
    """

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, Any],
        on_begin: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        self._coroutine = coroutine
        self._on_begin = on_begin
        self._on_end = on_end
        self._task: asyncio.Task[Any] | None = None
        self._reason: BaseException | None = None

    def run(self) -> Any:
        """What the coroutine returns."""
        try:
            return anyio.run(self._run)
        finally:
            self._coroutine.close()

    async def _run(self) -> Any:
        self._task = asyncio.current_task()
        try:
            self._on_begin()
            return await self._coroutine
        except asyncio.CancelledError as error:
            if self._reason is not None:
                raise self._reason.with_traceback(error.__traceback__) from None
            raise
        finally:
            self._on_end()

    def cancel(self, reason: BaseException) -> bool:
        """Have the loop cancel it, which raises `reason`; False while its code runs."""
        if self._task is None:
            return False
        loop = self._task.get_loop()
        if asyncio.current_task(loop) is not None:
            return False
        self._reason = reason
        loop.call_soon_threadsafe(self._task.cancel)
        return True


def run_coroutine(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What the coroutine returns, where nothing interrupts it."""

    async def run() -> Any:
        return await coroutine

    try:
        return anyio.run(run)
    finally:
        coroutine.close()
