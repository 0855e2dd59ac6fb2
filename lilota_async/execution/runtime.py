"""The task process: receives calls, runs them one after the other, reports their outcomes.

`boot` runs once, when the process starts, and then `serve` until it ends. Calls come through
one pipe of the cell's own, and outcomes go through another as soon as they exist: when the third
task of a burst kills the process, the first two have already been heard.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import functools
import gc
import inspect
import logging
import os
import select
import signal
import threading
import time
import traceback
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import process
from contextvars import ContextVar, copy_context
from multiprocessing.connection import Connection
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from lilota_async.errors import Interruption, TaskStopped, TaskTimeout
from lilota_async.execution.channel import Channel, ChannelHandler, hand_over_records
from lilota_async.execution.context import CurrentTask, enter_task, mark_task_process
from lilota_async.execution.invocation import Runnable, failed, load, succeeded
from lilota_async.execution.own_process import (
    PeakMemory,
    Streams,
    Surroundings,
    cpu_and_peak,
    detach,
)
from lilota_async.execution.protocol import (
    Begin,
    Call,
    Frames,
    Message,
    Outcome,
    Progress,
    Started,
    end_of_output,
    line,
    line_of,
)

if TYPE_CHECKING:
    from lilota_async.execution.coroutines import InterruptibleCoroutine

SIGNAL_FOLLOWS_WITHIN = 1.0  # seconds after the request that it belongs to

# ProcessPoolExecutor offers an initializer no other place to leave something for its calls.
_worker: ContextVar[Worker | None] = ContextVar("lilota_worker", default=None)


def boot(
    channel: Connection,
    control: Connection,
    output: Connection,
    requests: Connection,
    tickets: Connection,
    token: bytes,
    log_levels: Mapping[str, int],
) -> None:
    """Make this process a task process; the executor's initializer."""
    detach()
    worker = Worker(Channel(channel), control, Streams(output), requests, tickets, token)
    _worker.set(worker)
    mark_task_process()
    worker.listen_for_interruptions()
    # The executor would pickle the exception, and what that holds would run in the application.
    process._ExceptionWithTraceback = _end_instead_of_telling  # type: ignore[misc,assignment]
    for name, level in log_levels.items():
        logging.getLogger(name).setLevel(level)
    hand_over_records(worker.handler)
    gc.freeze()  # a collection would write to, and so copy, all pages shared with the fork server


def ready() -> None:
    """Tell that the process is up; the first call of every cell."""


def serve() -> None:
    """Run the calls that come, in order. Never raises for what a task does."""
    worker = _worker.get()
    assert worker is not None, "boot() has not run"
    worker.serve()


def _end_instead_of_telling(error: BaseException, _traceback: Any) -> NoReturn:
    """For what is raised outside of a task, as by a signal handler that one has left."""
    try:
        traceback.print_exception(error)
    finally:
        os._exit(1)


class Worker:
    """Runs calls, and turns the parent's requests to stop into exceptions of the right task."""

    def __init__(
        self,
        channel: Channel,
        control: Connection,
        streams: Streams,
        requests: Connection,
        tickets: Connection,
        token: bytes,
    ) -> None:
        self.channel = channel
        self.serial: int | None = None
        self._control = control
        self._streams = streams
        self._calls = requests  # keeps the descriptor open
        self._frames = Frames(requests.fileno())
        self._tickets = tickets
        self._ticket: int | None = None
        self._token = token
        self._report = self._mark = b""  # of the last call, until the parent is told
        self._runnables: dict[bytes, Runnable] = {}
        self._requests: dict[int, str] = {}
        self._unread = b""  # of a request that was cut in two
        self.handler = ChannelHandler(channel, lambda: self.serial, self.publish)
        self._asked = float("-inf")
        self._is_reading = False
        self._control_poll = select.poll()
        self._control_poll.register(control.fileno(), select.POLLIN)
        self._is_spent = False
        self._armed: int | None = None
        self._interrupted: int | None = None
        self._masked = 0
        self._coroutine: InterruptibleCoroutine | None = None
        self._peak = PeakMemory()
        self._surroundings = Surroundings()
        os.set_blocking(control.fileno(), False)

    def serve(self) -> None:
        """Run what comes; only up to one that was interrupted: the process is spent then."""
        while not self._is_spent:
            if not self._frames.is_next_here():
                self._tell()
            self.channel.check()  # before it waits with outcomes that nobody has got
            round, calls = self._frames.next()
            if not calls:
                break
            self._execute(calls, round)
        self._tell()

    def _execute(self, calls: Sequence[Call], round: int) -> None:
        used, _ = cpu_and_peak()
        self._forget_requests(calls[0].serial)
        for call in calls:
            if not self._has_ticket(round):
                break  # the parent has taken the rest back
            self._ticket = None
            self._tell(line(Begin(call.serial, used)))
            self.serial = call.serial
            self.listen_for_interruptions()  # the last one may have put something else there
            outcome, used = self._measured(call, used)
            self._surroundings.restore()
            self._streams.flush()
            self.serial = None
            self._report = line_of(outcome)
            self._mark = end_of_output(self._token, call.serial)
            if outcome.interrupted:
                self._is_spent = True
                break

    def _forget_requests(self, before: int) -> None:
        # They were for tasks that ended first. In place: the signal handler adds some meanwhile.
        for serial in list(self._requests):
            if serial < before:
                del self._requests[serial]

    def _tell(self, more: bytes = b"") -> None:
        """Send the last outcome, if it has not been sent, and what follows it.

        In one go, and its mark after that: each write wakes the parent.
        """
        report, self._report = self._report, b""
        if report or more:
            self._masking(self.channel.write, report + more)
        if report:
            self._streams.separate(self._mark)

    def _has_ticket(self, round: int) -> bool:
        """Take one for a call of this round; one of a later round is kept for its time."""
        if self._ticket is None:
            try:
                self._ticket = os.read(self._tickets.fileno(), 1)[0]
            except BlockingIOError:  # none left
                return False
        return self._ticket == round

    def _measured(self, call: Call, used: float) -> tuple[Outcome, float]:
        """What comes of the call, and the processor time that has been used by then."""
        started = time.monotonic()
        self._peak.reset()
        # A context of its own: what a task leaves in context variables ends with it.
        outcome = copy_context().run(self._attempt, call)
        if not self.channel.is_ours:  # a fork that the task has not ended comes back from it
            self._streams.flush()
            os._exit(0 if outcome.failure is None else 1)
        used_by_now, peak = cpu_and_peak()
        outcome = msgspec.structs.replace(
            outcome,
            interrupted=outcome.interrupted or self._interrupted == call.serial,
            seconds=time.monotonic() - started,
            cpu_seconds=used_by_now - used,
            peak_memory_bytes=self._peak.read(peak),
        )
        return outcome, used_by_now

    def _attempt(self, call: Call) -> Outcome:
        task: CurrentTask | None = None
        try:
            self._read_control()
            if call.serial in self._requests:
                return Outcome(call.serial, unstarted=True)
            runnable = self._load(call.definition)
            task = CurrentTask(call, self.publish, lambda: call.serial in self._requests)
            enter_task(task)
            arguments = runnable.arguments_for(call, task)
            if call.reports_start:
                self.publish(Started(call.serial))
            result = self._invoke(call.serial, runnable, arguments)
        except BaseException as error:
            return failed(call, error, task)
        return succeeded(call, runnable, result, task)

    def _invoke(self, serial: int, runnable: Runnable, arguments: list[Any]) -> Any:
        try:
            self._arm(serial)
            result = runnable.function(*arguments)
        finally:
            self._disarm()
        return self._run_coroutine(serial, result) if inspect.iscoroutine(result) else result

    def _run_coroutine(self, serial: int, coroutine: Coroutine[Any, Any, Any]) -> Any:
        # Only processes with async tasks pay for an event loop.
        from lilota_async.execution.coroutines import InterruptibleCoroutine

        arm = functools.partial(self._arm, serial)
        self._coroutine = InterruptibleCoroutine(coroutine, arm, self._disarm)
        try:
            return self._coroutine.run()
        finally:
            self._coroutine = None

    def _arm(self, serial: int) -> None:
        self._armed = serial  # from here on a request to stop raises
        self._raise_if_asked()

    def _disarm(self) -> None:
        self._armed = None

    def _raise_if_asked(self) -> None:
        if self._masked or self._armed is None or self._armed not in self._requests:
            return
        self._interrupted = self._armed
        self._armed = None  # once: what the task's own `finally` does is not interrupted again
        interruption: Interruption = TaskStopped("the task was asked to stop")
        if self._requests[self._interrupted] == "timeout":
            interruption = TaskTimeout("the task's timeout has passed")
        if self._coroutine is None or not self._coroutine.cancel(interruption):
            raise interruption

    def _load(self, definition: bytes) -> Runnable:
        runnable = self._runnables.get(definition)
        if runnable is None:
            runnable = self._runnables[definition] = load(definition)
            hand_over_records(self.handler)  # the modules may have set up their own
        return runnable

    def publish(self, message: Message) -> None:
        """Send a message of the running task; progress is dropped when nobody keeps up."""
        if isinstance(message, Progress):
            self._masking(self.channel.try_send, line(message))
        else:
            self._send(line(message))

    def _send(self, data: bytes) -> None:
        self._masking(self.channel.send, data)

    def _masking(self, send: Any, data: bytes) -> None:
        # An interruption in the middle of a frame would cut it short for good.
        if threading.current_thread() is not threading.main_thread():
            send(data)
            return
        self._masked += 1
        try:
            send(data)
        finally:
            self._masked -= 1
        self._raise_if_asked()

    def listen_for_interruptions(self) -> None:
        """Have the soft signal come here."""
        # What `signal` adds to this only turns the answer into an enum, which takes 7 us.
        _signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """Raise in the task that the parent means, and in no other."""
        if self._is_reading:
            return  # it follows the request that is being read
        if self.channel.is_ours:
            self._read_control()
            if time.monotonic() - self._asked < SIGNAL_FOLLOWS_WITHIN:
                self._raise_if_asked()
                return
        # The parent did not send it: do what it does to any process.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)

    def _read_control(self) -> None:
        self._is_reading = True
        try:
            while self._control_poll.poll(0) and (
                data := os.read(self._control.fileno(), select.PIPE_BUF)
            ):
                *requests, self._unread = (self._unread + data).split(b"\n")
                for request in requests:
                    reason, _, serial = request.decode().partition(" ")
                    self._requests[int(serial)] = reason
                self._asked = time.monotonic()
        except OSError:  # nothing there, or closed by a task
            pass
        finally:
            self._is_reading = False
