"""Process cells: a process for each slot, so that a death concerns one slot.

A cell knows which call its process is in, and so whom its death concerns. How processes are
started and killed is in `worker_process`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing.context import BaseContext

from lilota_async.errors import WorkerStartFailed
from lilota_async.execution import measures, runtime
from lilota_async.execution.ends import Crash, Ended, Listener, Reason, Unstarted
from lilota_async.execution.last_words import LastWords
from lilota_async.execution.measures import Usage
from lilota_async.execution.outbox import Outbox
from lilota_async.execution.protocol import (
    Begin,
    Call,
    LineReader,
    Message,
    Outcome,
    OutputReader,
    ProtocolError,
    frame,
)
from lilota_async.execution.start_failure import EndedSilently
from lilota_async.execution.turns import HELD_UP_SECONDS, SentCalls
from lilota_async.execution.worker_process import WorkerProcess, signal_name

REPEATS_AFTER = (0.02, 0.1, 0.4)
ROUNDS = 256  # what a ticket can tell apart
logger = logging.getLogger("lilota_async")


class Cell:
    """A slot: one task process, replaced by its owner, who hears of its death.

    `run` takes several calls: they are run in order, and each has an end of its own. A stopped
    call is the last of its process. What waits behind a call that takes long, or behind many that
    take longer together than was thought, is taken back.
    """

    def __init__(
        self,
        context: BaseContext,
        threads: ThreadPoolExecutor,
        on_death: Callable[[Cell], None] = lambda _cell: None,
        on_end_of_call: Callable[[Cell], None] = lambda _cell: None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._threads = threads  # starting and ending a process would block the loop
        self._on_gone = on_death
        self._on_end_of_call = on_end_of_call
        token = secrets.token_hex(8).encode()
        self.worker = WorkerProcess(context, token)
        self._lines = LineReader()
        self._texts = OutputReader(token)
        self._waiting: dict[int, tuple[Call, Listener]] = {}  # until it is their turn in the loop
        self._burst: dict[int, Listener] = {}
        self._sent = SentCalls()
        self._starting: asyncio.Task[None] | None = None
        self._sends = False
        self._round = 0
        self._outbox: Outbox | None = None
        self._look: asyncio.TimerHandle | None = None
        self._dying: asyncio.Task[None] | None = None
        self._begun: Begin | None = None
        self._usage = Usage()  # when it was killed
        self._killed = self._tainted = False
        self._last_words = LastWords()
        self._nonsense = ""
        self._oom_kills = measures.OomKills()
        self._closing = self._gone = False
        self._buried = asyncio.Event()
        self.is_held_up = False
        """Whether it runs something that takes long, so that nothing should wait behind it."""
        self.finished_calls = 0

    @property
    def pid(self) -> int:
        """The process, and its group; 0 before it is started."""
        return self.worker.pid

    @property
    def load(self) -> int:
        """How many calls the cell has that have not ended."""
        return len(self._burst) + len(self._waiting)

    @property
    def is_usable(self) -> bool:
        """Whether it takes calls."""
        return not (self._gone or self._closing or self._tainted)

    async def start(self) -> None:
        """Bring the process up; WorkerStartFailed when it ends instead, with what it said."""
        self._starting = self._loop.create_task(self._start())
        await asyncio.shield(self._starting)

    async def _start(self) -> None:
        error = await self._boot()
        if error is not None:  # raised here, where it keeps nothing of the failed start alive
            self._gone = True
            failure = await self._bury_stillborn(error)
            self._buried.set()
            raise failure
        channel, output = self.worker.channels()
        self._loop.add_reader(channel, self._read_channel)
        self._loop.add_reader(output, self._read_output)
        for descriptor in self.worker.deaths:
            self._loop.add_reader(descriptor, self._on_death)
        self._outbox = Outbox(self._loop, self.worker.requests)
        try:
            service = self._loop.run_in_executor(self.worker.executor, runtime.serve)
        except BrokenExecutor:
            return  # it is dead already; _on_death does what is to be done
        service.add_done_callback(self._on_end_of_service)

    async def _boot(self) -> str | None:
        try:
            boot = await self._loop.run_in_executor(self._threads, self.worker.spawn)
            if self._closing:
                self.worker.kill()
            await asyncio.wrap_future(boot)
        except Exception as error:  # a fork server that dies meanwhile is known for several
            return repr(error)
        return None

    async def _bury_stillborn(self, error: str) -> WorkerStartFailed:
        if not self.worker.is_spawned:
            await self._bury()
            return WorkerStartFailed(f"A task process could not be started: {error}")
        said = b"".join(self.worker.read_output()).decode(errors="replace").strip()
        ended = f"A task process ended while it was starting (exit code {await self._bury()})."
        return WorkerStartFailed(f"{ended} It said: {said}") if said else EndedSilently(ended)

    def run(self, call: Call, listener: Listener) -> None:
        """Take `call`, now; `listener` gets its messages and output, and its end."""
        if not self.is_usable:
            self._loop.call_soon(listener.on_end, Unstarted())
            return
        self._waiting[call.serial] = (call, listener)
        if not self._sends:
            self._sends = True
            self._loop.call_soon(self._send)  # what comes in the same moment goes along

    def _send(self) -> None:
        """Send what waits."""
        self._sends = False
        if not self._waiting or not self.is_usable:
            return
        assert self._outbox is not None
        calls = [call for call, _ in self._waiting.values()]
        self._burst |= {serial: listener for serial, (_, listener) in self._waiting.items()}
        self._texts.expect(self._waiting)
        self._waiting.clear()
        self._sent.add(calls[-1].serial, self._loop.time())
        self._oom_kills.look()
        if self._look is None:
            self._look_later()
        self.worker.give_tickets(len(calls), self._round)
        self._outbox.send(frame(calls, self._round))

    def _on_end_of_service(self, service: asyncio.Future[None]) -> None:
        error = None if service.cancelled() else service.exception()
        if error is not None and not isinstance(error, BrokenExecutor):
            logger.error("Task process %d failed outside of a task", self.pid, exc_info=error)
        if not self._gone:  # a call was stopped: what comes next gets another process
            self._read_channel()
            self.worker.kill()

    def _look_later(self) -> None:
        look = partial(self._look_whether_held_up, self.finished_calls)
        self._look = self._loop.call_later(HELD_UP_SECONDS, look)

    def _look_whether_held_up(self, finished_calls: int) -> None:
        self._look = None
        if self._gone:
            return
        self._read_channel()
        begun = None if self._begun is None else self._begun.serial
        too_long = self._sent.wait_too_long(self._burst, begun, self._loop.time())
        if not self._burst:
            return
        if self.finished_calls != finished_calls and not too_long:
            self._look_later()
            return
        self.is_held_up = True
        # The process takes a ticket before each call: those that are left belong to the last
        # calls that it has, and whoever has them decides.
        count = self.worker.take_tickets()
        self._round = (self._round + 1) % ROUNDS
        if count:
            serials = list(self._burst)[-count:]
            self._texts.withdraw(serials[0])
            for listener in [self._burst.pop(serial) for serial in serials]:
                self._conclude(listener, Unstarted(returned=True))

    def interrupt(self, serial: int, reason: Reason) -> None:
        """Ask the process to raise in the task's code; what is not sent yet never will be."""
        if not self._forget(serial):
            self._ask(serial, reason, REPEATS_AFTER)

    def _ask(self, serial: int, reason: Reason, again: tuple[float, ...]) -> None:
        if self._gone or serial not in self._burst:
            return
        # One that waits is asked when its turn comes: the one before it is not to be disturbed.
        self.worker.interrupt(f"{reason} {serial}", signals=serial == self._current)
        # One that comes just before a system call does not end that; several raise only once.
        if again:
            self._loop.call_later(again[0], self._ask, serial, reason, again[1:])

    def kill(self, serial: int) -> bool:
        """End the process and all that its tasks have started, if it runs this call now.

        False while the call waits behind others, which must not pay for it.
        """
        if self._gone or self._forget(serial) or serial not in self._burst:
            return True
        if serial != self._current:
            return False
        self._kill()
        return True

    @property
    def _current(self) -> int:
        """The call that the process runs, as far as is known, or comes to next."""
        # The first of the burst may not have begun, as in a process that does not react.
        return next(iter(self._burst)) if self._begun is None else self._begun.serial

    async def retire(self) -> None:
        """End a process in which a call was stopped; returns when its group is gone too.

        It does nothing if none was: the call that was to be stopped had not begun.
        """
        if self._tainted and not self._gone:
            self._kill()
        if self._tainted or self._gone:
            await self._buried.wait()

    def take_no_more(self) -> None:
        """Refuse calls from now on; those that it has are run."""
        self._closing = True

    def _kill(self) -> None:
        if not self._buried.is_set():
            self._usage = measures.usage_of(self.pid)
            self._killed = self._tainted = True
            self.worker.kill()

    def _forget(self, serial: int) -> bool:
        waiting = self._waiting.pop(serial, None)
        if waiting is None:
            return False
        self._conclude(waiting[1], Unstarted())
        return True

    def _read_channel(self) -> None:
        if self._nonsense:
            return
        for data in self.worker.read_channel():
            if not data:
                self._loop.remove_reader(self.worker.channels()[0])
                return
            # What a task wrote was in the pipe before its outcome: read it before that is told.
            self._read_output()
            try:
                for message in self._lines.feed(data):
                    self._on_message(message)
            except ProtocolError as error:
                self._nonsense = f"What the task process sent is no message: {error}"
                logger.exception("Task process %d is ended: it sent nonsense", self.pid)
                self._loop.remove_reader(self.worker.channels()[0])
                self._kill()
                return

    def _read_output(self) -> None:
        for data in self.worker.read_output():
            if not data:
                self._loop.remove_reader(self.worker.channels()[1])
                return
            for serial, text in self._texts.feed(data):
                self._last_words.add(serial, text)
                self._tell(serial, text)

    def _tell(self, serial: int, message: Message | bytes) -> None:
        listener = self._burst.get(serial)
        if listener is None:
            return
        try:
            listener.on_message(message)
        except Exception:  # such as a logging filter of the application's: no outcome waits for it
            logger.exception("Something that task process %d said was not heard", self.pid)

    def _on_message(self, message: Message) -> None:
        if isinstance(message, Begin):
            self._begun = message
        elif isinstance(message, Outcome):
            self._begun = None
            self._tainted = self._tainted or message.interrupted
            for serial, text in self._texts.end(message.serial):
                self._tell(serial, text)
            self._end(message.serial, Unstarted() if message.unstarted else message)
        else:
            self._tell(message.serial, message)

    def _end(self, serial: int, ended: Ended) -> None:
        listener = self._burst.pop(serial, None)
        if listener is not None:
            self.finished_calls += 1
            self.is_held_up = False
            self._on_end_of_call(self)
            self._conclude(listener, ended)

    def _conclude(self, listener: Listener, ended: Ended) -> None:
        try:
            listener.on_end(ended)
        except Exception:  # the others have ends too
            logger.exception("The end of a call of task process %d was not heard", self.pid)

    def _on_death(self) -> None:
        self._gone = True
        self._ignore_death()
        if not self._killed:
            self._usage = measures.usage_of(self.pid)  # of what is left of it
        self.worker.kill()  # what its tasks have started and left
        self._dying = self._loop.create_task(self._conclude_death())
        self._on_gone(self)  # its replacement comes up meanwhile

    def _ignore_death(self) -> None:
        for descriptor in self.worker.deaths:
            self._loop.remove_reader(descriptor)

    async def _conclude_death(self) -> None:
        exit_code: int | None = None
        try:
            exit_code = await self._bury()
        finally:
            if self._begun is not None and self._begun.serial in self._burst:
                self._end(self._begun.serial, self._crash(self._begun, exit_code))
            unstarted = [*self._burst.values(), *(each for _, each in self._waiting.values())]
            self._burst, self._waiting = {}, {}
            innocent = self._tainted or self._begun is not None
            for listener in unstarted:
                self._conclude(listener, Unstarted(returned=innocent))
            self._buried.set()

    async def close(self) -> None:
        """End the process, with what runs in it; returns when its group is gone too."""
        if self._starting is None:
            return
        self._closing = True
        if not self._starting.done():
            self.worker.kill()
            await asyncio.wait([self._starting])
            self._starting.exception()  # expected, and told to whoever waits for the start
        if self.load:
            self._kill()
        if not self._gone:
            self._gone = True
            self._ignore_death()
            if self._outbox is not None:
                self._outbox.send(frame([], self._round))
            self.worker.end_when_idle()
            self._dying = self._loop.create_task(self._conclude_death())
        await self._buried.wait()

    async def _bury(self) -> int | None:
        try:
            return await self._loop.run_in_executor(self._threads, self.worker.join)
        finally:
            if self.worker.is_spawned:
                self._read_channel()  # an outcome that came before the end counts
                self._read_output()
                for descriptor in self.worker.channels():
                    self._loop.remove_reader(descriptor)
                if self._outbox is not None:
                    self._outbox.close()
            self.worker.close()

    def _crash(self, begun: Begin, exit_code: int | None) -> Crash:
        name = signal_name(exit_code)
        used = self._usage.cpu_seconds
        was_killed_by_others = name == "SIGKILL" and not self._killed
        fatal_error = self._last_words.fatal_error(begun.serial) if name else ""
        return Crash(
            pid=self.pid,
            exit_code=exit_code if name is None else None,
            signal=name,
            cpu_seconds=None if used is None else max(0.0, used - begun.cpu_seconds),
            peak_memory_bytes=self._usage.peak_memory_bytes,
            out_of_memory=was_killed_by_others and self._oom_kills.are_more(),
            traceback=self._nonsense or fatal_error,
        )
