"""Cells without an engine: calls made by hand, and a look at what is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import multiprocessing
import os
import re
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import msgspec
import psutil

from lilota_async.engine.attempt import Slot
from lilota_async.execution.cells import Cell
from lilota_async.execution.ends import Crash, Ended
from lilota_async.execution.protocol import Call, LogRecord, Message, Outcome
from lilota_async.models.values import TaskId
from lilota_async.registry import RegisteredTask, Settings

PATIENCE = 10.0
LIMIT = 10 * 1024 * 1024
_serials = itertools.count(1)


def call_of(function: Callable[..., Any], input: Any = None, **options: Any) -> Call:
    """A call of `function`, as the engine makes one."""
    task = RegisteredTask(
        function.__name__,
        function,
        input_model=None,
        output_model=None,
        task_progress=None,
        settings=Settings(),
        limit=LIMIT,
    )
    return Call(
        serial=next(_serials),
        task_id=TaskId(),
        name=function.__name__,
        attempt=1,
        definition=task.resolve().pickled,
        input=None if input is None else msgspec.json.encode(input),
        **options,
    )


@dataclass
class Heard:
    """What a cell has told of one call."""

    messages: list[Message] = field(default_factory=list)
    raw: bytearray = field(default_factory=bytearray)

    def __call__(self, message: Message | bytes) -> None:
        if isinstance(message, bytes):
            self.raw += message
        else:
            self.messages.append(message)

    @property
    def text(self) -> str:
        return self.raw.decode()

    @property
    def records(self) -> list[LogRecord]:
        return [message for message in self.messages if isinstance(message, LogRecord)]


class Waiting:
    """Someone who waits for the end of a call."""

    def __init__(self, hear: Callable[[Message | bytes], None]) -> None:
        self.on_message = hear
        self.ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def on_end(self, ended: Ended | BaseException | None) -> None:
        if self.ended.done():  # whoever waited was cancelled
            assert self.ended.cancelled()
        elif ended is None:
            self.ended.cancel()
        elif isinstance(ended, BaseException):
            self.ended.set_exception(ended)
        else:
            self.ended.set_result(ended)


def run(slot: Slot, call: Call, hear: Callable[[Message | bytes], None]) -> asyncio.Future[Ended]:
    """Run the call there; the future is its end, and `hear` gets what it says."""
    waiting = Waiting(hear)
    slot.run(call, waiting)
    return waiting.ended


class Bench:
    """Cells of one start method."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.context: BaseContext = multiprocessing.get_context(method)
        self.threads = ThreadPoolExecutor(2)
        self.cells: list[Cell] = []

    async def cell(self, on_death: Callable[[Cell], None] = lambda _: None) -> Cell:
        cell = Cell(self.context, self.threads, on_death)
        self.cells.append(cell)
        await cell.start()
        return cell

    async def run(self, cell: Cell, function: Callable[..., Any], input: Any = None) -> Ended:
        return await run(cell, call_of(function, input), Heard())

    async def value(self, cell: Cell, function: Callable[..., Any], input: Any = None) -> Any:
        """What the function returns there."""
        return value_of(await self.run(cell, function, input))


def value_of(ended: Ended) -> Any:
    """The output of a call that succeeded."""
    assert isinstance(ended, Outcome), ended
    assert ended.failure is None, ended.failure
    return msgspec.json.decode(ended.output)


def failure_of(ended: Ended) -> dict[str, Any]:
    """The failure of a call that ended by itself."""
    assert isinstance(ended, Outcome), ended
    assert ended.failure is not None
    return ended.failure


def crash_of(ended: Ended) -> Crash:
    """The crash that a call ended with."""
    assert isinstance(ended, Crash), ended
    return ended


@contextlib.asynccontextmanager
async def bench(method: str) -> AsyncIterator[Bench]:
    """A bench for the block, which must leave nothing behind."""
    warm_up(method)
    with nothing_left():
        made = Bench(method)
        try:
            yield made
        finally:
            await asyncio.gather(*(cell.close() for cell in made.cells))
            made.threads.shutdown()


def warm_up(method: str) -> None:
    """Bring up what is of the whole process and stays: the fork server and the tracker."""
    if method == "forkserver":
        multiprocessing.get_context(method).set_forkserver_preload(
            ["lilota_async.execution.runtime"]
        )
        forkserver.ensure_running()
    resource_tracker.ensure_running()


_server: Any = forkserver._forkserver


def fork_server() -> int | None:
    """The process of the fork server, if one runs."""
    pid: int | None = _server._forkserver_pid
    return pid


@contextlib.contextmanager
def nothing_left() -> Any:
    """Check that no process, thread, descriptor or semaphore is left that was not there."""
    before = Belongings.now()
    yield
    _let_threads_of_aiosqlite_end()
    _let_a_dying_fork_server_end(before)
    after = Belongings.now()
    assert after.processes <= before.processes, _names(after.processes - before.processes)
    assert after.threads <= before.threads, after.threads - before.threads
    assert after.descriptors.keys() <= before.descriptors.keys(), {
        number: after.descriptors[number]
        for number in after.descriptors.keys() - before.descriptors.keys()
    }
    assert after.semaphores <= before.semaphores


def _let_threads_of_aiosqlite_end() -> None:
    """They say that they are done a moment before they are."""
    for thread in threading.enumerate():
        if "_connection_worker_thread" in thread.name:
            thread.join(1.0)


def _let_a_dying_fork_server_end(before: Belongings) -> None:
    """Nonsense of a task ends it as well; until then it does not reap what it has forked."""
    deadline = time.monotonic() + PATIENCE
    while not Belongings.now().processes <= before.processes and time.monotonic() < deadline:
        time.sleep(0.005)


@dataclass(frozen=True)
class Belongings:
    """What this process has of the system."""

    processes: frozenset[int]
    threads: frozenset[str]
    descriptors: dict[int, str]
    semaphores: frozenset[str]

    @classmethod
    def now(cls) -> Belongings:
        descriptors = {}
        for number in map(int, os.listdir("/proc/self/fd")):
            with contextlib.suppress(OSError):  # that of the listing
                descriptors[number] = os.readlink(f"/proc/self/fd/{number}")
        maps = Path("/proc/self/maps").read_text()
        descriptors.pop(_server._forkserver_alive_fd, None)
        return cls(
            processes=frozenset(
                process.pid
                for process in psutil.Process().children(recursive=True)
                if process.pid != fork_server()
            ),
            threads=frozenset(
                thread.name
                for thread in threading.enumerate()
                if not thread.name.startswith("asyncio_")  # of the loop's own pool
            ),
            descriptors=descriptors,
            semaphores=frozenset(re.findall(r"/dev/shm/sem\.mp-\w+", maps)),
        )


def _names(pids: frozenset[int]) -> list[str]:
    names = []
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            names.append(f"{pid} {process.status()} {process.cmdline()}")
    return names


async def until(condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Wait until `condition()` is true, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s")
        await asyncio.sleep(0.005)
    return found


async def number_in(path: Path) -> int:
    """The number that another process writes to a file."""
    return int(await until(lambda: path.exists() and path.read_text()))


def is_alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
