"""Task functions that ask for other tasks."""

from __future__ import annotations

import os
import signal
from datetime import UTC, datetime, timedelta
from typing import Any

from lilota_async import TaskId, current_task
from lilota_async.execution.context import CurrentTask
from tests.api.tasks import AddInput, add, echo


def _task() -> CurrentTask:
    task = current_task()
    assert task is not None
    return task


def split(parts: int) -> str:
    """So many parts, and one that comes after all of them; the id of that."""
    ids = [_task().schedule("echo", part) for part in range(parts)]
    return str(_task().schedule(echo, "merged", after=ids))


async def split_async(parts: int) -> str:
    """The same as a coroutine."""
    return split(parts)


def by_function() -> str:
    """By the function, with an instance of its model and all that schedule() takes."""
    task_id = _task().schedule(
        add,
        AddInput(2, 3),
        priority=3,
        timeout=timedelta(minutes=1),
        tags=["red"],
        delay=0.01,
        concurrency_key="customer",
    )
    return str(task_id)


def far_away() -> str:
    """In a thousand years, or nearly."""
    return str(_task().schedule(echo, 1, run_at=datetime(2999, 1, 1, tzinfo=UTC)))


def ask_and_fail(how: str) -> None:
    """One task at once, one with an end that does not come."""
    _task().schedule(echo, "at once", at_once=True)
    _task().schedule(echo, "in the end")
    if how == "raise":
        raise ValueError("failed")
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)


def ask_again() -> int:
    """The first attempt fails after it has asked."""
    _task().schedule(echo, _task().attempt)
    if _task().attempt == 1:
        raise OSError("again")
    return _task().attempt


def ask_for(request: dict[str, Any]) -> str:
    """Whatever the test wants."""
    after = [TaskId(each) for each in request.pop("after", [])]
    return str(_task().schedule(request.pop("task"), after=after, **request))


def ask_for_too_much(request: dict[str, Any]) -> None:
    """More tasks, or more text."""
    for _ in range(request["times"]):
        _task().schedule(echo, "x" * request["size"])


def ask_for_nonsense() -> None:
    """What JSON cannot hold is refused on the spot."""
    try:
        _task().schedule(echo, float("nan"))
    except ValueError:
        return
    raise AssertionError("it was not refused")


def many_at_once(times: int) -> str:
    """Each as soon as it is heard of; then one after all of them."""
    ids = [_task().schedule(echo, number, at_once=True) for number in range(times)]
    return str(_task().schedule(echo, "merged", after=ids))


def ask_wrongly() -> str:
    """The name of the error."""
    tags: Any = [object()]
    try:
        _task().schedule(echo, 1, tags=tags)
    except Exception as error:
        return type(error).__name__
    return "none"
