"""Process cells: one executor of one process for each slot, so that a death concerns one slot.

All that is known of `ProcessPoolExecutor`'s inside, of signals and of process groups is here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import secrets
import signal
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from typing import Any, Literal

from lilota_async.errors import WorkerStartFailed
from lilota_async.execution import runtime
from lilota_async.execution.protocol import (
    Begin,
    Call,
    FrameReader,
    Message,
    Outcome,
    OutputReader,
    ProtocolError,
)

Reason = Literal["timeout", "cancel"]
Listener = Callable[[Message | bytes], None]

JOIN_TIMEOUT = 2.0
GROUP_CHECKS = 20
GROUP_CHECK_SECONDS = 0.005
READ_SIZE = 64 * 1024  # what a pipe holds: one read empties it
READS_PER_WAKE = 16
logger = logging.getLogger("lilota_async")


@dataclass(frozen=True, slots=True, kw_only=True)
class Crash:
    """The process ended while it ran the attempt."""

    pid: int
    exit_code: int | None = None
    signal: str | None = None
    cpu_seconds: float | None = None
    peak_memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Unstarted:
    """The process ended before it came to the attempt, which costs the task nothing."""


Ended = Outcome | Crash | Unstarted


@dataclass(frozen=True, slots=True)
class Running:
    """A call that a cell has, who hears of it, and who waits for its end."""

    call: Call
    listener: Listener
    ended: asyncio.Future[Ended]


class Cell:
    """A slot: one task process, replaced by its owner, who hears of its death.

    `run` takes several calls at once: they are sent as one burst, run in order, and each has
    an end of its own.
    """

    def __init__(
        self,
        context: BaseContext,
        thread: ThreadPoolExecutor,
        on_death: Callable[[Cell], None] = lambda _cell: None,
    ) -> None:
        self._context = context
        self._on_gone = on_death
        self._thread = thread  # starts and ends processes: both would block the loop
        self._loop = asyncio.get_running_loop()
        self._token = secrets.token_hex(8).encode()
        self._frames = FrameReader()
        self._texts = OutputReader(self._token)
        self._waiting: deque[Running] = deque()
        self._burst: dict[int, Running] = {}
        self._sending: asyncio.Task[None] | None = None
        self._dying: asyncio.Task[None] | None = None
        self._blamed: int | None = None
        self._gone = False
        self._buried = asyncio.Event()
        self.pid = 0
        self.finished_calls = 0

    @property
    def load(self) -> int:
        """How many calls the cell has that have not ended."""
        return len(self._burst) + len(self._waiting)

    @property
    def is_usable(self) -> bool:
        return not self._gone

    async def start(self) -> None:
        """Bring the process up; WorkerStartFailed when it ends instead."""
        boot = await self._loop.run_in_executor(self._thread, self._spawn)
        try:
            await asyncio.wrap_future(boot)
        except BrokenExecutor:
            self._gone = True
            last_words = (_read(self._output) or b"").decode(errors="replace").strip()
            exit_code = await self._bury()
            raise WorkerStartFailed(
                f"A task process ended while it was starting (exit code {exit_code}). Most often "
                "the main script fails when a task process imports it: what starts the "
                "application belongs under 'if __name__ == \"__main__\":'. It said: "
                f"{last_words or 'nothing here; see standard error'}"
            ) from None
        self._loop.add_reader(self._channel.fileno(), self._read_channel)
        self._loop.add_reader(self._output.fileno(), self._read_output)
        self._loop.add_reader(self._process.sentinel, self._on_death)

    def _spawn(self) -> Any:
        self._channel, channel = self._context.Pipe(duplex=False)
        self._output, output = self._context.Pipe(duplex=False)
        control, self._control = self._context.Pipe(duplex=False)
        level = logging.getLogger().level
        self._executor = ProcessPoolExecutor(
            max_workers=1,
            mp_context=self._context,
            initializer=runtime.boot,
            initargs=(channel, control, output, self._token, level),
        )
        boot = self._executor.submit(runtime.ready)
        # Private, and without another way: the exit code, the sentinel, a bounded join.
        self._process = next(iter(self._executor._processes.values()))
        self._manager = self._executor._executor_manager_thread  # type: ignore[attr-defined]
        self.pid = self._process.pid
        for connection in (channel, output, control):
            connection.close()  # only the process holds them now: its death closes them
        for connection in (self._channel, self._output, self._control):
            os.set_blocking(connection.fileno(), False)
        return boot

    async def run(self, call: Call, listener: Listener) -> Ended:
        """Run `call` and wait for its end. `listener` gets its messages and its output."""
        if self._gone:
            return Unstarted()
        running = Running(call, listener, self._loop.create_future())
        self._waiting.append(running)
        if self._sending is None:
            self._sending = self._loop.create_task(self._send())
        return await running.ended

    async def _send(self) -> None:
        while self._waiting and not self._gone:
            self._burst = {running.call.serial: running for running in self._waiting}
            self._waiting.clear()
            self._texts.expect(self._burst)
            calls = [running.call for running in self._burst.values()]
            try:
                await self._loop.run_in_executor(self._executor, runtime.execute, calls)
            except BrokenExecutor:
                break  # the sentinel tells, and _on_death does what is to be done
            except Exception:
                logger.exception("Task process %d failed outside of a task", self.pid)
                self._kill_group()
                break
            self._read_channel(reads=None)
            if self._burst:  # it returned, and owes outcomes
                self._kill_group()
                break
        self._sending = None

    def interrupt(self, serial: int, reason: Reason) -> None:
        """Ask the process to raise in the task's code."""
        if self._gone or serial not in self._burst:
            return
        with contextlib.suppress(OSError):  # full or closed: the grace period ends all the same
            os.write(self._control.fileno(), f"{reason} {serial}\n".encode())
            os.kill(self.pid, signal.SIGTERM)

    def kill(self, serial: int) -> bool:
        """End the process and all that its tasks have started, if it runs this call now.

        False while the call waits behind others, which must not pay for it.
        """
        if not self._gone and serial in self._burst and serial != self._blamed:
            return False
        self._kill_group()
        return True

    async def retire(self) -> None:
        """End the process, and return when it and its group are gone."""
        if not self._gone:
            self._kill_group()
        await self._buried.wait()

    def _kill_group(self) -> None:
        if not self._buried.is_set():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def _read_channel(self, reads: int | None = READS_PER_WAKE) -> None:
        while reads is None or reads > 0:
            data = _read(self._channel)
            if data is None:
                return
            if not data:
                self._loop.remove_reader(self._channel.fileno())
                return
            # What a task wrote was in the pipe before its outcome: read it before that is told.
            self._read_output()
            try:
                for message in self._frames.feed(data):
                    self._on_message(message)
            except ProtocolError:
                logger.exception("Task process %d is ended: it sent nonsense", self.pid)
                self._kill_group()
                return
            reads = None if reads is None else reads - 1

    def _read_output(self) -> None:
        data = _read(self._output)
        if data:
            for serial, text in self._texts.feed(data):
                self._tell(serial, text)
        elif data is not None:
            self._loop.remove_reader(self._output.fileno())

    def _tell(self, serial: int, message: Message | bytes) -> None:
        running = self._burst.get(serial)
        if running is not None:
            running.listener(message)

    def _on_message(self, message: Message) -> None:
        if isinstance(message, Begin):
            self._blamed = message.serial
        elif isinstance(message, Outcome):
            self._blamed = None
            for serial, text in self._texts.end(message.serial):
                self._tell(serial, text)
            self._end(message.serial, message)
        else:
            self._tell(message.serial, message)

    def _end(self, serial: int, ended: Ended) -> None:
        running = self._burst.pop(serial, None)
        if running is not None and not running.ended.done():
            self.finished_calls += 1
            running.ended.set_result(ended)

    def _on_death(self) -> None:
        self._gone = True
        self._kill_group()  # what its tasks have started and left
        self._read_channel(reads=None)
        self._dying = self._loop.create_task(self._conclude_death())

    async def _conclude_death(self) -> None:
        self._on_gone(self)  # its replacement comes up meanwhile
        exit_code = await self._bury()
        for serial in list(self._burst):
            blamed = serial == self._blamed
            self._end(serial, _crash(self.pid, exit_code) if blamed else Unstarted())
        for running in self._waiting:
            if not running.ended.done():
                running.ended.set_result(Unstarted())
        self._waiting.clear()

    async def close(self) -> None:
        """End the process, with what runs in it."""
        if self.load:
            self._kill_group()
        if not self._gone:
            self._gone = True
            await self._bury()
        await self._buried.wait()

    async def _bury(self) -> int | None:
        for connection in (self._channel, self._output):
            self._loop.remove_reader(connection.fileno())
        self._loop.remove_reader(self._process.sentinel)
        exit_code = await self._loop.run_in_executor(self._thread, self._join)
        for connection in (self._channel, self._output, self._control):
            connection.close()
        self._buried.set()
        return exit_code

    def _join(self) -> int | None:
        self._executor.shutdown(wait=False)
        self._manager.join(JOIN_TIMEOUT)
        if self._manager.is_alive():
            self._kill_group()
            self._manager.join(JOIN_TIMEOUT)
        self._wait_for_group()
        # Only now: two threads that ask a fork server's process for its code get it once.
        return None if self._manager.is_alive() else self._process.exitcode

    def _wait_for_group(self) -> None:
        # SIGKILL is sent, not yet done; a zombie that nobody reaps is not waited for long.
        for _ in range(GROUP_CHECKS):
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                return
            time.sleep(GROUP_CHECK_SECONDS)


def _read(connection: Connection) -> bytes | None:
    try:
        return os.read(connection.fileno(), READ_SIZE)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _crash(pid: int, exit_code: int | None) -> Crash:
    if exit_code is not None and exit_code < 0:
        try:
            return Crash(pid=pid, signal=signal.Signals(-exit_code).name)
        except ValueError:  # a real-time signal
            return Crash(pid=pid, signal=f"signal {-exit_code}")
    return Crash(pid=pid, exit_code=exit_code)
