"""From what schedule() is given to the row that it commits."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any
from uuid import UUID

from lilota_async.errors import ConfigurationError
from lilota_async.models.values import Duration, TaskId, checked_duration, checked_span
from lilota_async.options import (
    IfFailed,
    OnConflict,
    check_choice,
    checked_due,
    checked_key,
    checked_priority,
)
from lilota_async.records import checked_id
from lilota_async.registry import RegisteredTask, encode_tags
from lilota_async.storage.transitions import Dependent, NewTask


def new_task(
    registered: RegisteredTask,
    encoded: str | None,
    *,
    delay: Duration | None = None,
    run_at: datetime | None = None,
    priority: int | None = None,
    timeout: Duration | None = None,
    tags: Iterable[str] = (),
    unique_key: str | None = None,
    unique_for: Duration | None = None,
    concurrency_key: str | None = None,
    task_id: TaskId[Any] | None = None,
) -> NewTask:
    """The row of a task with this input as JSON; ConfigurationError where there can be none."""
    settings = registered.settings
    delay_seconds, run_at = checked_due(delay, run_at)
    unique_key, unique_seconds = checked_uniqueness(unique_key, unique_for)
    return NewTask(
        id=TaskId() if task_id is None else checked_new_id(task_id),
        name=registered.name,
        input=encoded,
        priority=settings.priority if priority is None else checked_priority(priority),
        delay_seconds=delay_seconds,
        run_at=run_at,
        max_attempts=settings.retry.max_attempts,
        timeout_seconds=(
            settings.timeout_seconds if timeout is None else checked_duration("timeout", timeout)
        ),
        tags=encode_tags(tags),
        unique_key=unique_key,
        unique_seconds=unique_seconds,
        concurrency_key=(
            None if concurrency_key is None else checked_key("concurrency_key", concurrency_key)
        ),
    )


def checked_new_id(task_id: object) -> TaskId[Any]:
    """An id that a row may get; ConfigurationError otherwise."""
    checked = checked_id(task_id)
    if checked.int == 0:  # in whose place the database puts NULL to sort by
        raise ConfigurationError("A task's id is not all zeros; make one by TaskId()")
    return TaskId(checked)


def checked_uniqueness(
    unique_key: str | None, unique_for: Duration | None
) -> tuple[str | None, float | None]:
    """The key, and for how many seconds at least it is taken; ConfigurationError."""
    if unique_key is None:
        if unique_for is not None:
            raise ConfigurationError("unique_for= is of no use without unique_key=; give both")
        return None, None
    seconds = None if unique_for is None else checked_span("unique_for", unique_for)
    return checked_key("unique_key", unique_key), seconds


def checked_conflict(on_conflict: OnConflict, unique_key: str | None) -> OnConflict:
    """What to do when another task has the key; ConfigurationError where there is none."""
    check_choice("on_conflict", on_conflict, OnConflict)
    if unique_key is None and on_conflict != "return_existing":
        raise ConfigurationError("on_conflict= is of no use without unique_key=; give both")
    return on_conflict


def waiting(task: NewTask, ids: tuple[UUID, ...], if_failed: IfFailed) -> Dependent:
    """The row, to wait for checked ids; ConfigurationError where that has no end."""
    if task.unique_key is not None:
        raise ConfigurationError(
            "unique_key= and after= cannot go together, since the task that has the key may wait "
            "for others; leave one of them out"
        )
    if task.id in ids:
        raise ConfigurationError(
            f"Task {task.id} would wait for itself; leave its id out of after="
        )
    return Dependent(task=task, after=ids, runs_if_failed=if_failed == "run")
