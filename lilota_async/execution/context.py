"""What a task's own code can ask about itself, on every executor."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from lilota_async.codec import Codec
from lilota_async.errors import ConfigurationError
from lilota_async.execution.protocol import Call, Checkpoint, ChildTask, Message, Progress, raw
from lilota_async.models.values import Duration, TaskId, TaskProgress, checked_duration
from lilota_async.options import (
    IfFailed,
    checked_due,
    checked_flag,
    checked_key,
    checked_priority,
    checked_waiting,
)
from lilota_async.registry import check_name, checked_tags, reference_of

CHECKPOINT_LIMIT = 1024 * 1024
CHILDREN_LIMIT = 10_000
CHILDREN_BYTES = 64 * 1024 * 1024

_in_task_process: ContextVar[bool] = ContextVar("lilota_in_task_process", default=False)
_current: ContextVar[CurrentTask | None] = ContextVar("lilota_current_task", default=None)


class CurrentTask:
    """The running task, seen from inside; `current_task()` returns it.

    `id`, `name`, `attempt` (1 for the first) and `tags` are the row's. `nominal_time` is the
    tick, aware and UTC, that a periodic task was scheduled for, and else None. `last_checkpoint` is
    what an earlier attempt handed to `checkpoint()` last, or None. `logger` is a logger whose
    records belong to this task.
    """

    __slots__ = (
        "_asked",
        "_asked_bytes",
        "_cancelled",
        "_id",
        "_publish",
        "_serial",
        "attempt",
        "last_checkpoint",
        "name",
        "nominal_time",
        "progress",
        "tags",
    )

    def __init__(
        self, call: Call, publish: Callable[[Message], None], cancelled: Callable[[], bool]
    ) -> None:
        self._id = call.task_id
        self.name = call.name
        self.attempt = call.attempt
        self.tags = call.tags
        self.nominal_time = call.nominal_time
        self.last_checkpoint: Any = (
            None if call.checkpoint is None else msgspec.json.decode(call.checkpoint)
        )
        self.progress = TaskProgress(self._report)
        self._asked = self._asked_bytes = 0
        self._serial = call.serial
        self._publish = publish
        self._cancelled = cancelled

    @property
    def id(self) -> TaskId[Any]:
        """The row's."""
        return TaskId(self._id)

    @property
    def logger(self) -> logging.Logger:
        """Its records belong to this task."""
        return logging.getLogger(f"lilota_async.task.{self.name}")

    @property
    def cancelled(self) -> bool:
        """Whether the task was asked to stop: by cancel(), its timeout or stop().

        A process is interrupted without looking; a thread ends only if its function looks here
        now and then and returns. An executor of the application is never told.
        """
        return self._cancelled()

    def checkpoint(self, state: Any) -> None:
        """Keep `state`, any JSON value up to 1 MiB, for the next attempt; the latest wins.

        It survives SIGKILL, a timeout and the death of the application, once the parent has
        written it, which it does at most a few times a second.

        Raises ValueError when `state` is no JSON value or too large.

        Example:
            >>> task = current_task()
            >>> for step in range(task.last_checkpoint or 0, 1000):
            ...     work(step)
            ...     task.checkpoint(step + 1)
        """
        encoded = Codec(None, limit=CHECKPOINT_LIMIT).encode(state)
        self._publish(Checkpoint(self._serial, raw(encoded)))

    def schedule(
        self,
        task: str | Callable[..., Any],
        input: Any = None,
        *,
        after: Iterable[UUID] = (),
        if_failed: IfFailed = "cancel",
        at_once: bool = False,
        delay: Duration | None = None,
        run_at: datetime | None = None,
        priority: int | None = None,
        timeout: Duration | None = None,
        tags: Iterable[str] = (),
        concurrency_key: str | None = None,
    ) -> TaskId[Any]:
        """Ask the application to schedule another task; returns its id, and does not wait.

        The row is committed together with the end of this task, if that completes: when it
        fails, is cancelled or is run again, nothing of what this attempt asked for exists. With
        `at_once` the row is written as soon as the application hears of it, whatever becomes of
        this task; an attempt that is run again asks again. `after` may name what this task has
        asked for before. The rest is as in `Lilota.schedule()`.

        Raises ValueError when `input` is no JSON value or too large, and ConfigurationError for
        more than 10,000 tasks or 64 MiB of inputs without `at_once`. A name that nobody has
        registered, an input that does not fit its model and an unknown id in `after` fail this
        task at its end.

        Example:
            >>> parts = [current_task().schedule("part", part) for part in split(file)]
            >>> current_task().schedule("merge", after=parts)
        """
        if isinstance(task, str):
            check_name(task)
        ids = checked_waiting(after, if_failed)
        seconds, due = checked_due(delay, run_at)
        options = {
            "delay": seconds or None,
            "run_at": None if due is None else due.isoformat(),
            "priority": None if priority is None else checked_priority(priority),
            "timeout": None if timeout is None else checked_duration("timeout", timeout),
            "tags": checked_tags(tags) or None,
            "concurrency_key": (
                None if concurrency_key is None else checked_key("concurrency_key", concurrency_key)
            ),
        }
        child = ChildTask(
            self._serial,
            task_id=str(TaskId()),
            task=task if isinstance(task, str) else reference_of(f"{task!s:.250}", task),
            is_reference=not isinstance(task, str),
            input=raw(Codec(None).encode(input)),
            after=tuple(str(each) for each in ids),
            runs_if_failed=if_failed == "run",
            at_once=checked_flag("at_once", at_once),
            options={name: value for name, value in options.items() if value is not None},
        )
        if not at_once:
            self._make_room(len(bytes(child.input)))
        self._publish(child)
        return TaskId(child.task_id)

    def _make_room(self, size: int) -> None:
        self._asked += 1
        self._asked_bytes += size
        if self._asked > CHILDREN_LIMIT or self._asked_bytes > CHILDREN_BYTES:
            raise ConfigurationError(
                f"A task asks for up to {CHILDREN_LIMIT} others with up to "
                f"{CHILDREN_BYTES // CHECKPOINT_LIMIT} MiB of inputs, to be committed with its "
                "end; give at_once=True for more"
            )

    def _report(self, percentage: int) -> None:
        self._publish(Progress(self._serial, percentage))


def current_task() -> CurrentTask | None:
    """The task that the calling code runs in; None outside of a task.

    Example:
        >>> @lilota.register
        ... def report() -> None:
        ...     current_task().logger.info("attempt %d", current_task().attempt)
    """
    return _current.get()


def in_task_process() -> bool:
    """Whether this process is a task process."""
    return _in_task_process.get()


def mark_task_process() -> None:
    """Remember that this process is a task process."""
    _in_task_process.set(True)


def refuse_in_task_process() -> None:
    """Raise ConfigurationError in a task process, or while one imports the application."""
    process = multiprocessing.current_process()
    if getattr(process, "_inheriting", False) or in_task_process():
        raise ConfigurationError(
            "lilota cannot be started where a task process imports the module that starts it; put "
            "what starts the application under 'if __name__ == \"__main__\":'"
        )


def enter_task(task: CurrentTask | None) -> None:
    """Make `task` the current one of this context."""
    _current.set(task)
