"""The task process: receives calls, runs them one after the other, reports their outcomes.

`boot` runs once, when the process starts; `execute` for each burst of calls. Outcomes go
through the cell's own pipe as soon as they exist: when the third task of a burst kills the
process, the first two have already been heard.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import inspect
import logging
import multiprocessing
import os
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextvars import ContextVar, copy_context
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any, TextIO

import msgspec

from lilota_async.codec import escape_text
from lilota_async.errors import Interruption, TaskStopped, TaskTimeout
from lilota_async.execution.context import CurrentTask, enter_task, mark_task_process
from lilota_async.execution.invocation import Runnable, failed, load, run_coroutine, succeeded
from lilota_async.execution.protocol import (
    Begin,
    Call,
    LogRecord,
    Message,
    Outcome,
    Progress,
    Started,
    end_of_output,
    frame,
)

F_SETSIG = getattr(fcntl, "F_SETSIG", 10)  # the constant has a name from Python 3.13 on
STDOUT = 1
STDERR = 2
LOG_MESSAGE_LIMIT = 16 * 1024

# ProcessPoolExecutor offers an initializer no other place to leave something for its calls.
_worker: ContextVar[Worker | None] = ContextVar("lilota_worker", default=None)


def boot(
    channel: Connection, control: Connection, output: Connection, token: bytes, log_level: int
) -> None:
    """Make this process a task process; the executor's initializer."""
    os.setsid()  # a group of its own: a kill reaches what the tasks have started
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the application to handle
    _die_with_parent()
    _prefer_for_out_of_memory()
    os.dup2(output.fileno(), STDOUT)
    os.dup2(output.fileno(), STDERR)
    output.close()
    # New objects for the same descriptors: the old ones may believe they write to a file.
    sys.stdout = _text_stream(STDOUT)
    sys.stderr = _text_stream(STDERR)
    worker = Worker(Channel(channel), control, token)
    _worker.set(worker)
    mark_task_process()
    signal.signal(signal.SIGTERM, worker.on_signal)
    root = logging.getLogger()
    root.setLevel(log_level)
    root.addHandler(ChannelHandler(worker))


def ready() -> None:
    """Tell that the process is up; the first call of every cell."""


def execute(calls: Sequence[Call]) -> None:
    """Run `calls` in order. Never raises for what a task does: outcomes go by the channel."""
    worker = _worker.get()
    assert worker is not None, "boot() has not run"
    worker.execute(calls)


class Channel:
    """The write end of the cell's pipe: whole frames only, from any thread."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection  # keeps the descriptor open
        self._descriptor = connection.fileno()
        self._lock = threading.Lock()
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLOUT)

    def send(self, data: bytes) -> None:
        """Write everything, waiting while the parent does not read."""
        with self._lock:
            view = memoryview(data)
            while view:
                view = view[os.write(self._descriptor, view) :]

    def try_send(self, data: bytes) -> None:
        """Write a small frame, or drop it when the parent does not keep up or is gone."""
        with self._lock, contextlib.suppress(OSError):
            # A pipe that polls as writable has room for PIPE_BUF bytes at least.
            if len(data) <= select.PIPE_BUF and self._poll.poll(0):
                os.write(self._descriptor, data)


class Worker:
    """Runs calls, and turns the parent's requests to stop into exceptions of the right task."""

    def __init__(self, channel: Channel, control: Connection, token: bytes) -> None:
        self._channel = channel
        self._control = control
        self._token = token
        self._runnables: dict[bytes, Runnable] = {}
        self._requests: dict[int, str] = {}
        self._signals_owed = 0
        self._armed: int | None = None
        self._interrupted: int | None = None
        self._masked = 0
        self._peak = PeakMemory()
        self._flush_c_streams = ctypes.CDLL(None).fflush
        self.serial: int | None = None
        os.set_blocking(control.fileno(), False)

    def execute(self, calls: Sequence[Call]) -> None:
        report = b""
        self._requests.clear()  # what is left was for a task that ended first
        for call in calls:
            self._send(report + frame(Begin(call.serial)))
            self.serial = call.serial
            outcome = self._measured(call)
            self._end_output(call.serial)
            self.serial = None
            report = frame(outcome)
        self._send(report)

    def _measured(self, call: Call) -> Outcome:
        started = time.monotonic()
        before = _cpu_seconds()
        self._peak.reset()
        # A context of its own: what a task leaves in context variables ends with it.
        outcome = copy_context().run(self._attempt, call)
        return msgspec.structs.replace(
            outcome,
            interrupted=outcome.interrupted or self._interrupted == call.serial,
            seconds=time.monotonic() - started,
            cpu_seconds=_cpu_seconds() - before,
            peak_memory_bytes=self._peak.read(),
        )

    def _attempt(self, call: Call) -> Outcome:
        task: CurrentTask | None = None
        try:
            self._read_control()
            if call.serial in self._requests:
                raise TaskStopped("stopped before it began")
            runnable = self._load(call.definition)
            task = CurrentTask(call, self.publish, lambda: call.serial in self._requests)
            enter_task(task)
            arguments = runnable.arguments_for(call, task)
            if call.has_timeout:
                self.publish(Started(call.serial))
            result = self._invoke(call.serial, runnable, arguments)
        except BaseException as error:
            return failed(call, error, task)
        return succeeded(call, runnable, result, task)

    def _invoke(self, serial: int, runnable: Runnable, arguments: list[Any]) -> Any:
        self._armed = serial  # from here on a request to stop raises
        try:
            if serial in self._requests:
                raise self._interruption(serial)
            result = runnable.function(*arguments)
            return run_coroutine(result) if inspect.iscoroutine(result) else result
        finally:
            self._armed = None

    def _load(self, definition: bytes) -> Runnable:
        runnable = self._runnables.get(definition)
        if runnable is None:
            runnable = self._runnables[definition] = load(definition)
        return runnable

    def publish(self, message: Message) -> None:
        """Send a message of the running task; progress is dropped when nobody keeps up."""
        if isinstance(message, Progress):
            self._masking(self._channel.try_send, frame(message))
        else:
            self._send(frame(message))

    def _send(self, data: bytes) -> None:
        self._masking(self._channel.send, data)

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
        if not self._masked and self._armed is not None and self._armed in self._requests:
            raise self._interruption(self._armed)

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """The soft signal: raise in the task that the parent means, and in no other."""
        self._read_control()
        if not self._signals_owed:
            # The parent did not send it: do what it does to any process.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        self._signals_owed = 0
        if not self._masked and self._armed is not None and self._armed in self._requests:
            raise self._interruption(self._armed)

    def _interruption(self, serial: int) -> Interruption:
        self._armed = None  # once: what the task's own `finally` does is not interrupted again
        self._interrupted = serial
        if self._requests[serial] == "timeout":
            return TaskTimeout("the task's timeout has passed")
        return TaskStopped("the task was asked to stop")

    def _read_control(self) -> None:
        try:
            text = os.read(self._control.fileno(), select.PIPE_BUF).decode()
        except BlockingIOError:
            return
        for line in text.splitlines():
            reason, _, serial = line.partition(" ")
            self._requests[int(serial)] = reason
            self._signals_owed += 1

    def _end_output(self, serial: int) -> None:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
            self._flush_c_streams(None)
            os.write(STDOUT, end_of_output(self._token, serial))
        except (OSError, ValueError):
            pass  # the task has closed them


class ChannelHandler(logging.Handler):
    """Sends the records of this process to the application, under the task they belong to."""

    def __init__(self, worker: Worker) -> None:
        super().__init__()
        self._worker = worker

    def emit(self, record: logging.LogRecord) -> None:
        serial = self._worker.serial
        if serial is None:
            return
        try:
            exception = None
            if record.exc_info:
                exception = logging.Formatter().formatException(record.exc_info)
            self._worker.publish(
                LogRecord(
                    serial=serial,
                    logger=record.name,
                    level=record.levelno,
                    message=escape_text(record.getMessage(), LOG_MESSAGE_LIMIT),
                    created=record.created,
                    path=record.pathname,
                    line=record.lineno,
                    exception=exception,
                )
            )
        except Exception:
            self.handleError(record)


class PeakMemory:
    """The largest resident size of a task, where the kernel lets it be counted anew."""

    def __init__(self) -> None:
        try:
            self._reset: int | None = os.open("/proc/self/clear_refs", os.O_WRONLY)
        except OSError:
            self._reset = None

    def reset(self) -> None:
        if self._reset is not None:
            os.pwrite(self._reset, b"5", 0)

    def read(self) -> int:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _cpu_seconds() -> float:
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _text_stream(descriptor: int) -> TextIO:
    return open(
        descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False
    )


def _die_with_parent() -> None:
    """Have the kernel kill this group when the application is gone.

    PR_SET_PDEATHSIG would watch the fork server instead. The sentinel is a pipe whose other
    end the application holds: the kernel signals its owner, the whole group, when that closes,
    with the GIL held and for grandchildren too.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel
    if sys.platform == "linux":
        fcntl.fcntl(sentinel, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(sentinel, F_SETSIG, signal.SIGKILL)
        flags = fcntl.fcntl(sentinel, fcntl.F_GETFL)
        fcntl.fcntl(sentinel, fcntl.F_SETFL, flags | os.O_ASYNC)
        if select.select([sentinel], [], [], 0)[0]:  # it was gone before the kernel was asked
            os.killpg(0, signal.SIGKILL)
    else:
        watch = functools.partial(_kill_group_when_readable, sentinel)
        threading.Thread(target=watch, name="lilota-parent-watch", daemon=True).start()


def _kill_group_when_readable(sentinel: int) -> None:
    select.select([sentinel], [], [])
    os.killpg(0, signal.SIGKILL)


def _prefer_for_out_of_memory() -> None:
    """When memory runs out the kernel should end a task, and not the application."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("500")
    except OSError:
        pass
