"""Any `concurrent.futures.Executor` of the application in place of task processes.

What it does with a call is its own: a Dask client sends it to a cluster. Bytes go there and come
back, so that it needs nothing but this library and the application's modules. There is no line to
a task that runs: what it reports is heard at its end, and it cannot be interrupted. One that is
to stop is given up after the grace period: its row ends, its result is not waited for, and its
place is free when the executor is done with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from concurrent.futures import (
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from contextvars import copy_context
from functools import partial

import msgspec

from lilota_async.errors import TaskCrashed, TaskStopped
from lilota_async.execution.ends import Ended, Listener, Reason, Unstarted
from lilota_async.execution.invocation import failed, load, run_in_thread
from lilota_async.execution.protocol import (
    Call,
    ChildTask,
    Message,
    Outcome,
    Started,
    line,
    line_of,
)

REFUSED_SECONDS = 1.0  # until an executor that took no call is asked again
NEVER_BEGUN = Unstarted(returned=True)
_MESSAGES = msgspec.json.Decoder(Message)
logger = logging.getLogger("lilota_async")


def run_call(request: bytes) -> bytes:
    """Run a call where the executor wants it: what it has said, and its outcome, by lines."""
    _, call = msgspec.msgpack.decode(request, type=tuple[bytes, Call])
    said = _Said()
    # In a copy: Dask knows by its variables which worker this is.
    outcome = copy_context().run(run_in_thread, call, load, said.add, lambda: False)
    return b"".join((*said.lines(), line_of(outcome)))


class _Said:
    """The lines of what a call says: of its progress and checkpoints the latest, all children."""

    def __init__(self) -> None:
        self._latest: dict[type[Message], bytes] = {}
        self._children: list[bytes] = []

    def add(self, message: Message) -> None:
        """Raises, in the task's own code, for what no JSON can say."""
        if isinstance(message, ChildTask):
            self._children.append(line(message))
        elif not isinstance(message, Started):  # the application knows when it was handed over
            self._latest[type(message)] = line(message)

    def lines(self) -> list[bytes]:
        return [*self._latest.values(), *self._children]


def _request(call: Call) -> bytes:
    # No two are the same: a cluster may keep results by what a function was called with.
    return msgspec.msgpack.encode((os.urandom(8), call))


class ExecutorSlot:
    """A place for one task at a time in the executor."""

    is_held_up = False

    def __init__(self, pool: ExecutorPool, on_idle: Callable[[], None]) -> None:
        self.pid = os.getpid()  # where the task runs, only the executor knows
        self.load = 0
        self._pool = pool
        self._on_idle = on_idle
        self._loop = asyncio.get_running_loop()
        self._call: Call
        self._listener: Listener | None = None
        self._future: Future[bytes] | None = None

    def run(self, call: Call, listener: Listener) -> None:
        """Hand `call` to the executor, now; `listener` hears of its end."""
        self.load = 1
        self._call, self._listener = call, listener
        self._future = self._pool.submit(call, partial(_tell, self._loop, self._on_done))
        if self._future is None:
            self._loop.call_soon(self._end, NEVER_BEGUN)
        else:
            listener.on_message(Started(call.serial))  # as far as can be told

    def interrupt(self, _serial: int, _reason: Reason) -> None:
        """Take the call back, if it has not begun."""
        self._take_back()

    def kill(self, _serial: int) -> bool:
        """Wait for the call no more."""
        self._take_back()
        self._loop.call_soon(self._give_up, self._call)
        return True

    @property
    def is_given_up(self) -> bool:
        """Whether what runs here is not waited for."""
        return self.load > 0 and self._listener is None

    async def retire(self) -> None:
        """Nothing to end: the executor is the application's."""

    def _take_back(self) -> None:
        # Dask's cancels what runs as well, and then the place would be free too early.
        if self._future is not None and self._pool.knows_what_runs:
            self._future.cancel()

    def _on_done(self, future: Future[bytes]) -> None:
        self._future = None
        if self._listener is None:  # it was given up
            self._end(NEVER_BEGUN)
        elif future.cancelled():
            is_known = self._pool.knows_what_runs
            self._end(NEVER_BEGUN if is_known else self._crashed(CancelledError("by others")))
        elif (error := future.exception()) is not None:
            self._end(self._crashed(error))
        else:
            self._end(self._heard(future.result()))

    def _heard(self, answer: bytes) -> Ended:
        assert self._listener is not None
        try:
            *said, outcome = _MESSAGES.decode_lines(answer)
        except (msgspec.MsgspecError, TypeError, ValueError) as error:
            return self._crashed(error)
        for message in said:
            self._listener.on_message(message)
        return outcome if isinstance(outcome, Outcome) else self._crashed(ValueError("no outcome"))

    def _crashed(self, error: BaseException) -> Outcome:
        reason = f"the executor lost the task ({type(error).__name__}: {error})"
        outcome = failed(self._call, TaskCrashed(reason), None, kind="crash")
        return msgspec.structs.replace(outcome, interrupted=True)  # nothing of the task's own

    def _give_up(self, call: Call) -> None:
        if call is self._call:  # else it has ended just then
            stopped = TaskStopped("the executor was not waited for")
            self._conclude(failed(call, stopped, None))

    def _end(self, ended: Ended) -> None:
        """The executor is done with the call."""
        self.load = 0
        self._on_idle()
        self._conclude(ended)

    def _conclude(self, ended: Ended) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.on_end(ended)


def _tell(
    loop: asyncio.AbstractEventLoop,
    on_done: Callable[[Future[bytes]], None],
    future: Future[bytes],
) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: it was given up long ago
        loop.call_soon_threadsafe(on_done, future)


class ExecutorPool:
    """Slots for `size` tasks at a time in an executor, which is never shut down."""

    def __init__(self, executor: Executor, size: int, on_idle: Callable[[], None]) -> None:
        self.size = size
        self._executor = executor
        self._on_idle = on_idle
        self._rest: asyncio.TimerHandle | None = None
        self.is_refused = False
        """Whether it took nothing when it was asked last."""
        self.knows_what_runs = isinstance(executor, ThreadPoolExecutor | ProcessPoolExecutor)
        """Whether `cancel()` of its futures leaves alone what has begun."""
        self._slots = [ExecutorSlot(self, on_idle) for _ in range(size)]

    @property
    def is_healthy(self) -> bool:
        """Whether it takes tasks, as far as is known."""
        return not self.is_stuck

    @property
    def is_stuck(self) -> bool:
        """Whether it takes no tasks, or runs nothing but what was given up."""
        return self.is_refused or all(slot.is_given_up for slot in self._slots)

    def slots(self) -> list[ExecutorSlot]:
        """Those to give tasks to; after a refusal none for a while, and then one to ask with."""
        if not self.is_refused:
            return self._slots
        return [] if self._rest else [slot for slot in self._slots if not slot.load][:1]

    def submit(self, call: Call, on_done: Callable[[Future[bytes]], None]) -> Future[bytes] | None:
        """Hand over the call; None when the executor does not take it."""
        try:
            future = self._executor.submit(run_call, _request(call))
            future.add_done_callback(on_done)
        except Exception as error:
            if not self.is_refused:
                logger.exception(
                    "The executor takes no tasks (%s); lilota asks it again and again, until it "
                    "does or the application is started with another one",
                    type(error).__name__,
                )
            self.is_refused = True
            if self._rest is None:
                loop = asyncio.get_running_loop()
                self._rest = loop.call_later(REFUSED_SECONDS, self._ask_again)
            return None
        self.is_refused = False
        return future

    def _ask_again(self) -> None:
        self._rest = None
        self._on_idle()

    async def start(self) -> None:
        """It is up already."""

    async def close(self) -> None:
        """It is the application's to shut down."""
        if self._rest is not None:
            self._rest.cancel()
