"""One attempt from claim to transition: its messages, its deadline, its being stopped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from lilota_async.engine.children import Children, ChildTasks
from lilota_async.engine.lifecycle import End, Intent, conclude
from lilota_async.engine.reports import LogTail, Reports
from lilota_async.execution.ends import Ended, Listener, Reason, Unstarted
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
from lilota_async.models.values import TaskEvent, TaskId, TaskStatus
from lilota_async.registry import RegisteredTask
from lilota_async.storage.transitions import ClaimedTask, Dependent, Finish, Report, Requeue

MEBIBYTE = 1024 * 1024
KILL_AGAIN_SECONDS = 0.05


class Slot(Protocol):
    """A place where one task runs: a process cell, a thread or a part of the loop."""

    @property
    def pid(self) -> int: ...

    @property
    def load(self) -> int: ...

    @property
    def is_held_up(self) -> bool: ...

    def run(self, call: Call, listener: Listener) -> None: ...

    def interrupt(self, serial: int, reason: Reason) -> None: ...

    def kill(self, serial: int) -> bool: ...

    async def retire(self) -> None: ...


Transition = Finish | Requeue
AttemptEnd = Transition | Unstarted | BaseException | None
"""What follows from an attempt, or what keeps it from being known; None: others' to write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """What an attempt needs of the node: where its reports, its events and its end go."""

    is_watched: Callable[[TaskId[Any]], bool]
    needs_row: Callable[[TaskId[Any]], bool]
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

    __slots__ = (
        "_children",
        "_concluded",
        "_hooks",
        "_log",
        "_memory",
        "_reports",
        "_rows",
        "_serial",
        "_task",
        "_timer",
        "claimed",
        "has_ended",
        "intent",
        "is_slow",
        "slot",
        "transition",
    )

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
        self.transition: Transition | None = None
        """What is to be written of its end."""
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
            call = self._call()
        except Exception as error:  # somebody has edited the row
            asyncio.get_running_loop().call_soon(self.on_end, error)
        else:
            self.slot.run(call, self)

    @property
    def concluded(self) -> asyncio.Future[None]:
        """To wait for: done when the attempt is over."""
        if self._concluded is None:
            self._concluded = asyncio.get_running_loop().create_future()
        return self._concluded

    def be_over(self) -> None:
        """Nothing more is written of it: tell those who wait."""
        if self._concluded is not None and not self._concluded.done():
            self._concluded.set_result(None)

    def on_end(self, ended: Ended | BaseException | None) -> None:
        """It has ended like this, or with what keeps that from being known.

        None: it was cancelled with everything else, as at the end of asyncio.run().
        """
        self.has_ended = True
        self._release()
        if ended is None or isinstance(ended, BaseException):
            self._hooks.conclude(self, ended)
            return
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
                is_awaited=self._hooks.needs_row(self.claimed.attempt.id),
            )
        )

    def stop(self, intent: Intent) -> None:
        """Interrupt the task's code, and kill it after the grace period."""
        if self.intent is not None or self.has_ended:  # the slot may have the next one by now
            return
        self.intent = intent
        # Another node may be running it already, or there is no time for a farewell.
        if intent in (Intent.LEASE_LOST, Intent.MEMORY):
            self._kill()
            return
        self.slot.interrupt(self._serial, "timeout" if intent is Intent.TIMEOUT else "cancel")
        if not self.has_ended:
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
            task_id=claimed.attempt.id,
            name=claimed.name,
            attempt=claimed.attempt.number,
            definition=self._task.resolve().pickled,
            input=_bytes(claimed.input),
            tags=_tags(claimed.tags),
            checkpoint=_bytes(claimed.checkpoint),
            nominal_time=claimed.nominal_time,
            reports_start=claimed.timeout_seconds is not None or self._max_memory is not None,
        )

    def on_message(self, message: Message | bytes) -> None:
        """The task has said this, or written these bytes."""
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
        if self._hooks.is_watched(self.claimed.attempt.id):
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

    @property
    def _max_memory(self) -> int | None:
        settings = self._task.settings
        return settings.max_memory_bytes if settings.executor == "process" else None

    def _reporting(self) -> Reports:
        if self._reports is None:
            self._reports = Reports(self.claimed.attempt, self._hooks.report)
        return self._reports

    def _limit(self) -> str:
        if self.intent is Intent.MEMORY and self._max_memory is not None:
            return f"{self._max_memory / MEBIBYTE:g} MiB"
        timeout = self.claimed.timeout_seconds
        return "" if timeout is None else f"{timeout:g} s"


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


def _tags(text: str | None) -> tuple[str, ...]:
    if text is None:
        return ()
    try:
        return msgspec.json.decode(text, type=tuple[str, ...])
    except msgspec.MsgspecError:  # edited by hand
        return ()


def _is_success(ended: Ended) -> bool:
    return isinstance(ended, Outcome) and ended.failure is None
