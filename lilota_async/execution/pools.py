"""Threads and the loop as places for tasks: cheap, in the application's own process.

What runs here cannot be killed and can take the application down with it. Threads are for
short work that needs the application's memory, the loop is for coroutines that mostly wait.
A task is asked to stop through `current_task().cancelled`; a coroutine on the loop is
cancelled besides.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context

from lilota_async.errors import TaskStopped
from lilota_async.execution.context import CurrentTask
from lilota_async.execution.ends import Ended, Listener, Reason, Unstarted
from lilota_async.execution.invocation import (
    Load,
    Publish,
    begin,
    failed,
    load,
    run_in_thread,
    succeeded,
)
from lilota_async.execution.protocol import Call, Message, Outcome, Started


class StopRequest:
    """Whether a call was asked to stop, and has looked since."""

    __slots__ = ("is_made", "is_seen")

    def __init__(self) -> None:
        self.is_made = self.is_seen = False

    def look(self) -> bool:
        """Whether it was; it knows then."""
        self.is_seen = self.is_made
        return self.is_made


class LocalSlot:
    """A place for one task in this process."""

    is_held_up = False

    def __init__(self, on_idle: Callable[[], None], load: Load) -> None:
        self.pid = os.getpid()
        self._load = load
        self.load = 0
        self._on_idle = on_idle
        self._stop = StopRequest()

    def run(self, call: Call, listener: Listener) -> None:
        """Take `call`, now, and run it in a context of its own; `listener` hears of its end."""
        self.load = 1
        self._stop = StopRequest()  # of this call: a thread that the last one left asks its own
        self._call = asyncio.ensure_future(self._run_to_end(call, listener.on_message))
        self._call.add_done_callback(functools.partial(_tell_end, listener))

    async def _run_to_end(self, call: Call, publish: Publish) -> Ended:
        try:
            outcome = await self._run(call, publish)
        finally:
            self.load = 0
            self._on_idle()
        if outcome.unstarted:
            return Unstarted()
        if self._stop.is_seen and outcome.failure is None:
            # The function looked, and returned because of what it saw: that is no result.
            return failed(call, TaskStopped("the task was asked to stop"), None)
        return outcome

    def interrupt(self, _serial: int, _reason: Reason) -> None:
        """Ask the task to stop."""
        self._stop.is_made = True

    def kill(self, _serial: int) -> bool:
        """Nothing can be killed here: the task is waited for."""
        return True

    async def retire(self) -> None:
        """Nothing to end: the task has ended."""

    async def _run(self, call: Call, publish: Publish) -> Outcome:
        raise NotImplementedError


class ThreadSlot(LocalSlot):
    """A place in a thread."""

    def __init__(
        self, on_idle: Callable[[], None], load: Load, threads: ThreadPoolExecutor
    ) -> None:
        super().__init__(on_idle, load)
        self._threads = threads

    async def _run(self, call: Call, publish: Publish) -> Outcome:
        loop = asyncio.get_running_loop()

        def publish_from_thread(message: Message) -> None:
            loop.call_soon_threadsafe(publish, message)

        work = functools.partial(
            run_in_thread, call, self._load, publish_from_thread, self._stop.look
        )
        return await loop.run_in_executor(self._threads, Context().run, work)


class LoopSlot(LocalSlot):
    """A place on the application's own loop."""

    def __init__(self, on_idle: Callable[[], None], load: Load) -> None:
        super().__init__(on_idle, load)
        self._running: asyncio.Task[Outcome] | None = None

    async def _run(self, call: Call, publish: Publish) -> Outcome:
        loop = asyncio.get_running_loop()
        self._running = loop.create_task(self._work(call, publish), context=Context())
        if self._stop.is_made:  # before there was anything to cancel
            self._running.cancel()
        await asyncio.wait([self._running])
        if self._running.cancelled():  # before its first step
            return Outcome(call.serial, unstarted=True)
        return self._running.result()

    def interrupt(self, serial: int, reason: Reason) -> None:
        """Cancel the coroutine."""
        super().interrupt(serial, reason)
        if self._running is not None:
            self._running.cancel()

    async def _work(self, call: Call, publish: Publish) -> Outcome:
        task: CurrentTask | None = None
        try:
            runnable, task = begin(call, self._load, publish, self._stop.look)
            arguments = runnable.arguments_for(call, task)
            publish(Started(call.serial))
            result = runnable.function(*arguments)
            if inspect.iscoroutine(result):
                result = await result
            return succeeded(call, runnable, result, task)
        except asyncio.CancelledError as error:
            if self._stop.is_made:
                return failed(call, TaskStopped("the task was cancelled"), task)
            return failed(call, error, task)
        except BaseException as error:
            return failed(call, error, task)


def _tell_end(listener: Listener, ended: asyncio.Task[Ended]) -> None:
    if ended.cancelled():
        listener.on_end(None)
    else:
        listener.on_end(ended.exception() or ended.result())


class LocalPool:
    """Slots in this process for `size` tasks at a time."""

    is_stuck = False
    is_healthy = True

    def __init__(self, size: int, on_idle: Callable[[], None], *, threads: bool) -> None:
        self.size = size
        self._threads = ThreadPoolExecutor(size, "lilota-task") if threads and size else None
        load_once = functools.cache(load)
        self._slots: list[LocalSlot] = [
            LoopSlot(on_idle, load_once)
            if self._threads is None
            else ThreadSlot(on_idle, load_once, self._threads)
            for _ in range(size)
        ]

    def slots(self) -> list[LocalSlot]:
        """All of them."""
        return self._slots

    async def start(self) -> None:
        """Nothing has to come up."""

    async def close(self) -> None:
        """End the threads, once their tasks have ended."""
        if self._threads is not None:
            self._threads.shutdown()  # they are idle: it takes no time
