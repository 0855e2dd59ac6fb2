"""One attempt from claim to transition: its messages, its deadline, its being stopped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from lilota_async.codec import escape_text
from lilota_async.engine.children import Children, ChildTasks
from lilota_async.engine.lifecycle import End, Intent, conclude
from lilota_async.execution.cells import Ended, Listener, Reason, Unstarted
from lilota_async.execution.memory_watch import MemoryGuard, MemoryWatch
from lilota_async.execution.protocol import (
    Call,
    Checkpoint,
    ChildTask,
    LogRecord,
    Message,
    Outcome,
    Progress,
    Started,
)
from lilota_async.models.values import TaskEvent, TaskStatus
from lilota_async.registry import RegisteredTask
from lilota_async.storage.transitions import ClaimedTask, Dependent, Finish, Report, Requeue

LOG_LIMIT = 64 * 1024
MEBIBYTE = 1024 * 1024
REPORT_SECONDS = 0.3  # between two writes of one task's progress
KILL_AGAIN_SECONDS = 0.05


class Slot(Protocol):
    """A place where one task runs: a process cell, a thread or a part of the loop."""

    pid: int

    @property
    def load(self) -> int: ...

    def run(self, call: Call, listener: Listener) -> asyncio.Future[Ended]: ...

    def interrupt(self, serial: int, reason: Reason) -> None: ...

    def kill(self, serial: int) -> bool: ...

    async def retire(self) -> None: ...


Transition = Finish | Requeue
AttemptEnd = Transition | Unstarted | BaseException | None
"""What follows from an attempt, or what keeps it from being known; None: others' to write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """What an attempt needs of the node: where its reports, its events and its end go."""

    publish: Callable[[TaskEvent], None]
    report: Callable[[Report], asyncio.Future[bool]]
    conclude: Callable[[RunningAttempt, AttemptEnd], None]
    spawn: Callable[[Coroutine[Any, Any, Any]], None]
    observe: Callable[[str, float], None]
    memory_watch: MemoryWatch
    children: ChildTasks
    progress_is_manual: bool
    grace_seconds: float


class RunningAttempt:
    """A claimed task in a slot. `stop` may be called at any time before it has ended."""

    def __init__(
        self, claimed: ClaimedTask, task: RegisteredTask, slot: Slot, serial: int, hooks: Hooks
    ) -> None:
        self.claimed = claimed
        self.slot = slot
        self.intent: Intent | None = None
        self.is_slow = False
        """Whether nothing should wait behind it."""
        self.has_ended = False
        """Whether the task's code does not run any more."""
        self.is_over = False
        """Whether what follows is written, or given up."""
        self._concluded: asyncio.Future[None] | None = None
        self._task = task
        self._serial = serial
        self._hooks = hooks
        self._timer: asyncio.TimerHandle | None = None
        self._memory: MemoryGuard | None = None
        # Most tasks report, write and ask for nothing.
        self._children: Children | None = None
        self._rows: tuple[Dependent, ...] = ()
        self._reports: Reports | None = None
        self._log: LogTail | None = None

    def begin(self) -> None:
        """Take the slot, now; its end goes to the hook, or what keeps it from beginning."""
        try:
            ended = self.slot.run(self._call(), self._on_message)
        except Exception as error:  # somebody has edited the row
            ended = asyncio.get_running_loop().create_future()
            ended.set_exception(error)
        ended.add_done_callback(self._on_end)

    @property
    def concluded(self) -> asyncio.Future[None]:
        """To wait for: done when the attempt is over."""
        if self._concluded is None:
            self._concluded = asyncio.get_running_loop().create_future()
        return self._concluded

    def be_over(self) -> None:
        """Nothing more is written of it: tell those who wait."""
        self.is_over = True
        if self._concluded is not None and not self._concluded.done():
            self._concluded.set_result(None)

    def _on_end(self, future: asyncio.Future[Ended]) -> None:
        self.has_ended = True
        self._release()
        if future.cancelled():  # with everything else, at the end of asyncio.run()
            self._hooks.conclude(self, None)
            return
        error = future.exception()
        if error is not None:
            self._hooks.conclude(self, error)
            return
        ended = future.result()
        if isinstance(ended, Outcome) and ended.seconds is not None:
            self._hooks.observe(self.claimed.name, ended.seconds)
        if self._children is None and (self.intent is None or _is_success(ended)):
            self._conclude(ended)
        else:
            self._hooks.spawn(self._settle(ended))

    async def _settle(self, ended: Ended) -> None:
        if self._children is not None:
            ended, self._rows = await self._children.settle(ended)
        if self.intent is not None and not _is_success(ended):
            # Whatever the task has started, threads and children, ends with its process.
            await self.slot.retire()
        self._conclude(ended)

    def _conclude(self, ended: Ended) -> None:
        try:
            transition = self._transition(ended)
        except Exception as error:
            self._hooks.conclude(self, error)
        else:
            self._hooks.conclude(self, transition)

    def _release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._memory is not None:
            self._hooks.memory_watch.remove(self._memory)
        if self._reports is not None:
            self._reports.close()

    def _transition(self, ended: Ended) -> Transition | Unstarted | None:
        if isinstance(ended, Unstarted) and self.intent is None:
            return ended
        return conclude(
            End(
                claimed=self.claimed,
                ended=ended,
                intent=self.intent,
                retry=self._task.settings.retry,
                progress_is_manual=self._hooks.progress_is_manual,
                log=None if self._log is None else self._log.text(),
                limit="" if self.intent is None else self._limit(),
                peak_memory_bytes=self._memory.peak_bytes if self._memory else None,
                children=self._rows,
            )
        )

    def stop(self, intent: Intent) -> None:
        """Interrupt the task's code, and kill it after the grace period."""
        if self.intent is not None or self.is_over:
            return
        self.intent = intent
        # Another node may be running it already, or there is no time for a farewell.
        if intent in (Intent.LEASE_LOST, Intent.MEMORY):
            self._kill()
            return
        self.slot.interrupt(self._serial, "timeout" if intent is Intent.TIMEOUT else "cancel")
        self._arm(self._hooks.grace_seconds, self._kill)

    def _kill(self) -> None:
        if not self.slot.kill(self._serial):  # it has not begun yet: it will not begin
            self._arm(KILL_AGAIN_SECONDS, self._kill)

    def _arm(self, after: float, action: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(after, action)

    def _call(self) -> Call:
        claimed = self.claimed
        return Call(
            serial=self._serial,
            task_id=str(claimed.attempt.id),
            name=claimed.name,
            attempt=claimed.attempt.number,
            definition=self._task.resolve().pickled,
            input=_bytes(claimed.input),
            tags=_tags(claimed.tags),
            checkpoint=_bytes(claimed.checkpoint),
            nominal_time=claimed.nominal_time,
            reports_start=claimed.timeout_seconds is not None or self._max_memory is not None,
        )

    def _on_message(self, message: Message | bytes) -> None:
        if isinstance(message, bytes):
            self._on_text(message.decode(errors="replace"))
        elif isinstance(message, LogRecord):
            self._on_record(message)
        elif isinstance(message, Progress):
            self._reporting().progress(message.percentage)
            self.publish("progress")
        elif isinstance(message, Checkpoint):
            self._reporting().checkpoint(bytes(message.state).decode())
        elif isinstance(message, ChildTask):
            if self._children is None:
                self._children = Children(self._hooks.children)
            self._children.add(message)
        elif isinstance(message, Started):
            self._on_start()

    def _on_start(self) -> None:
        """The task's own code begins: its limits count from here."""
        if self.intent is not None:
            return
        timeout = self.claimed.timeout_seconds
        if timeout is not None:
            self._arm(timeout, lambda: self.stop(Intent.TIMEOUT))
        if self._max_memory is not None and self._memory is None:
            self._memory = self._hooks.memory_watch.add(
                self.slot.pid, self._max_memory, lambda _: self.stop(Intent.MEMORY)
            )

    def _on_text(self, text: str) -> None:
        if self._log is None:
            self._log = LogTail()
        self._log.add(text)
        self.publish("log", text)

    def _on_record(self, message: LogRecord) -> None:
        record = logging.LogRecord(
            message.logger, message.level, message.path, message.line, message.message, (), None
        )
        record.created = message.created
        record.exc_text = message.exception
        record.task_id = str(self.claimed.attempt.id)
        record.task_name = self.claimed.name
        receiver = logging.getLogger(message.logger)
        if receiver.isEnabledFor(message.level):
            receiver.handle(record)
        lines = f"{record.levelname} {message.logger}: {message.message}\n"
        self._on_text(lines + (f"{message.exception}\n" if message.exception else ""))

    def publish(self, kind: Any, log: str | None = None) -> None:
        """Tell those who watch: the attempt is running."""
        self._hooks.publish(self.event(kind, log))

    def event(self, kind: Any = "status", log: str | None = None) -> TaskEvent:
        """How the attempt is."""
        return TaskEvent(
            kind=kind,
            task_id=self.claimed.attempt.id,
            status=TaskStatus.RUNNING,
            progress_percentage=0 if self._reports is None else self._reports.percentage,
            log=log,
            attempt=self.claimed.attempt.number,
            log_end=0 if self._log is None else self._log.end,
        )

    def log_since(self, start: int) -> str:
        """What was written after the first `start` characters, as far as it is kept."""
        return "" if self._log is None else self._log.since(start)

    def send_report(
        self,
        progress: int | None,
        checkpoint: str | None,
        on_sent: Callable[[asyncio.Future[bool]], None],
    ) -> None:
        """Have the row follow."""
        report = Report(attempt=self.claimed.attempt, progress=progress, checkpoint=checkpoint)
        self._hooks.report(report).add_done_callback(on_sent)

    @property
    def _max_memory(self) -> int | None:
        settings = self._task.settings
        return settings.max_memory_bytes if settings.executor == "process" else None

    def _reporting(self) -> Reports:
        if self._reports is None:
            self._reports = Reports(self)
        return self._reports

    def _limit(self) -> str:
        if self.intent is Intent.MEMORY and self._max_memory is not None:
            return f"{self._max_memory / MEBIBYTE:g} MiB"
        timeout = self.claimed.timeout_seconds
        return "" if timeout is None else f"{timeout:g} s"


class Reports:
    """Progress and checkpoints of one attempt: the latest, a few times a second at most.

    One at a time: while the database is away, they do not pile up.
    """

    def __init__(self, attempt: RunningAttempt) -> None:
        self.percentage = 0
        self._attempt = attempt
        self._loop = asyncio.get_running_loop()
        self._progress: int | None = None
        self._checkpoint: str | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._last_sent = float("-inf")
        self._is_sending = self._closed = False

    def progress(self, percentage: int) -> None:
        self.percentage = self._progress = max(0, min(percentage, 100))
        self._schedule()

    def checkpoint(self, state: str) -> None:
        self._checkpoint = state
        self._schedule()

    def close(self) -> None:
        """No more timers; a checkpoint that waits is written all the same."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._checkpoint is not None:
            self._send()

    def _schedule(self) -> None:
        if self._timer is None and not self._is_sending and not self._closed:
            pause = max(0.0, self._last_sent + REPORT_SECONDS - self._loop.time())
            self._timer = self._loop.call_later(pause, self._send)

    def _send(self) -> None:
        self._timer = None
        self._is_sending = True
        self._last_sent = self._loop.time()
        progress, self._progress = self._progress, None
        checkpoint, self._checkpoint = self._checkpoint, None
        self._attempt.send_report(progress, checkpoint, self._on_sent)

    def _on_sent(self, sent: asyncio.Future[bool]) -> None:
        if not sent.cancelled():
            sent.exception()  # the writer says when the database is away, once
        self._is_sending = False
        if self._progress is not None or self._checkpoint is not None:
            self._schedule()


class LogTail:
    """The last 64 KiB of what a task wrote."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._size = 0
        self.end = 0  # of everything that was written, kept or not

    def add(self, text: str) -> None:
        self._pieces.append(text)
        self._size += len(text)
        self.end += len(text)
        if self._size > 4 * LOG_LIMIT:
            self._compact()

    def text(self) -> str | None:
        """The tail as any database takes it; None when nothing was written."""
        self._compact()
        return escape_text("".join(self._pieces), LOG_LIMIT) if self._size else None

    def since(self, start: int) -> str:
        """What follows the first `start` characters, as far as it is kept."""
        self._compact()
        return self._pieces[0][max(0, start - (self.end - self._size)) :]

    def _compact(self) -> None:
        kept = "".join(self._pieces)[-LOG_LIMIT:]
        self._pieces = [kept]
        self._size = len(kept)


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


def _tags(text: str | None) -> tuple[str, ...]:
    try:
        return msgspec.json.decode(text or "[]", type=tuple[str, ...])
    except msgspec.MsgspecError:  # edited by hand
        return ()


def _is_success(ended: Ended) -> bool:
    return isinstance(ended, Outcome) and ended.failure is None
