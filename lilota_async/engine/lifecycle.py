"""The policy: what follows from the end of an attempt. Pure: no clock, no I/O.

| the attempt ended with | while it was asked to stop for | the task is |
| --- | --- | --- |
| a result | anything or nothing | completed: what arrived first wins |
| anything else | cancel | cancelled |
| anything else | the application's stop | pending, and pays no attempt |
| anything else | lost lease | another node's: nothing is written |
| anything else | timeout, memory | failed with that kind, or retried |
| RetryLater | cancel | cancelled |
| RetryLater | anything else or nothing | pending, and pays no attempt |
| an exception, a death | nothing | failed with its kind, or retried |
| nothing: it never began | nothing | run again at once, by the dispatcher |

A failure is retried while attempts are left and the task's Retry names it.
"""

from __future__ import annotations

import random
from enum import StrEnum
from typing import Any

import msgspec

from lilota_async.codec import describe
from lilota_async.errors import Abort, TaskCrashed, TaskTimeout
from lilota_async.execution.ends import Crash, Ended, Unstarted
from lilota_async.execution.invocation import qualified_name
from lilota_async.execution.protocol import Outcome
from lilota_async.models.values import Retry, TaskStatus, seconds
from lilota_async.registry import Settings
from lilota_async.storage.transitions import (
    FAILURES_KEPT,
    ClaimedTask,
    Cost,
    Dependent,
    Finish,
    LostTask,
    Requeue,
)

_CRASHED = tuple(qualified_name(cls) for cls in TaskCrashed.__mro__)
_TIMED_OUT = tuple(qualified_name(cls) for cls in TaskTimeout.__mro__)


class Intent(StrEnum):
    """Why an attempt is being stopped."""

    TIMEOUT = "timeout"
    CANCEL = "cancel"
    MEMORY = "memory"
    STOP = "stop"
    LEASE_LOST = "lease_lost"


class End(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """All that is known when an attempt is over."""

    claimed: ClaimedTask
    ended: Ended
    intent: Intent | None
    retry: Retry
    progress_is_manual: bool
    log: str | None = None
    limit: str = ""  # what was exceeded, for people: "2 s", "512 MiB"
    children: tuple[Dependent, ...] = ()  # what it has asked for
    peak_memory_bytes: int | None = None  # of all its processes, where that was watched
    is_awaited: bool = False  # by somebody here who wants the row


class Failure(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Why an attempt failed, and what the retry policy looks at."""

    exception: dict[str, Any]
    lineage: tuple[str, ...]


def conclude(end: End, *, chance: float | None = None) -> Finish | Requeue | None:
    """The transition that the end of an attempt asks for; None when it is not ours to write."""
    ended = end.ended
    if isinstance(ended, Outcome) and ended.failure is None:
        return _finish(end, TaskStatus.COMPLETED, output=bytes(ended.output).decode())
    if end.intent is Intent.LEASE_LOST:
        return None
    if _was_stopped_for(end, Intent.CANCEL):
        return _finish(end, TaskStatus.CANCELLED)
    if isinstance(ended, Unstarted):
        return Requeue(attempt=end.claimed.attempt, counted=False)
    if _was_stopped_for(end, Intent.STOP):
        return Requeue(attempt=end.claimed.attempt, extra_attempts=1, cost=_cost(end))
    if isinstance(ended, Outcome) and ended.retry_delay is not None and not ended.interrupted:
        if end.intent is Intent.CANCEL:
            return _finish(end, TaskStatus.CANCELLED)
        return Requeue(
            attempt=end.claimed.attempt,
            delay_seconds=max(0.0, ended.retry_delay),
            extra_attempts=1,
            cost=_cost(end),
        )
    failure = _failure(end)
    if not _is_retried(end, failure):
        return _finish(end, TaskStatus.FAILED, exception=_encode(failure.exception))
    number = end.claimed.attempt.number
    return Requeue(
        attempt=end.claimed.attempt,
        delay_seconds=backoff(end.retry, number, random.random() if chance is None else chance),
        exception=_encode(failure.exception),
        failures=_encode(_failures(end, failure)),
        cost=_cost(end),
    )


def after_interruption(lost: LostTask, settings: Settings) -> Finish | Requeue:
    """What becomes of a task whose node died: the ancestor's promise is to run it again."""
    if lost.is_cancel_requested:
        return Finish(attempt=lost.attempt, status=TaskStatus.CANCELLED)
    again = settings.on_interrupt == "requeue"
    if again and lost.interruptions <= settings.max_interruptions:
        return Requeue(attempt=lost.attempt, extra_attempts=1)
    exception = {
        "kind": "interrupted",
        "type": "TaskInterrupted",
        "message": "the application that ran the task ended before the task did, "
        f"{lost.interruptions} times in all",
        "traceback": "",
    }
    return Finish(attempt=lost.attempt, status=TaskStatus.FAILED, exception=_encode(exception))


def unrunnable(claimed: ClaimedTask, error: BaseException) -> Finish:
    """The end of an attempt that cannot be run or whose end cannot be written, and why."""
    failure = describe(error, kind="error")
    return Finish(attempt=claimed.attempt, status=TaskStatus.FAILED, exception=_encode(failure))


def backoff(retry: Retry, attempt: int, chance: float) -> float:
    """Seconds between attempt number `attempt` and the next; `chance` is within 0..1."""
    longest = seconds(retry.max_delay)
    try:
        pause = min(longest, seconds(retry.delay) * retry.backoff ** (attempt - 1))
    except OverflowError:
        pause = longest
    # Equal jitter (Brooker, "Exponential Backoff And Jitter"): half is kept, half is drawn.
    return pause * (0.5 + 0.5 * chance) if retry.jitter else pause


def _was_stopped_for(end: End, intent: Intent) -> bool:
    # A failure of the task's own that came before the interruption is reported as it is.
    return end.intent is intent and not (
        isinstance(end.ended, Outcome) and not end.ended.interrupted
    )


def _failure(end: End) -> Failure:
    ended = end.ended
    if _was_stopped_for(end, Intent.TIMEOUT):
        message = f"the task ran longer than its timeout of {end.limit}"
        return _stopped("timeout", "TaskTimeout", message, ended, _TIMED_OUT)
    if _was_stopped_for(end, Intent.MEMORY):
        message = f"the task used more memory than its limit of {end.limit}"
        failure = _stopped("memory", "MemoryLimit", message, ended, _CRASHED)
        failure.exception["peak_memory_bytes"] = end.peak_memory_bytes
        return failure
    if isinstance(ended, Outcome):
        return Failure(exception=ended.failure or {}, lineage=ended.lineage)
    assert isinstance(ended, Crash)
    how = f"signal {ended.signal}" if ended.signal else f"exit code {ended.exit_code}"
    message = f"the task's process ended with {how} while the task was running"
    if ended.out_of_memory:
        message += "; probably out of memory, since the kernel ended a process for that"
    exception: dict[str, Any] = {"kind": "crash", "type": "TaskCrashed", "message": message}
    exception |= {
        "traceback": ended.traceback,
        "exit_code": ended.exit_code,
        "signal": ended.signal,
    }
    return Failure(exception=exception, lineage=_CRASHED)


def _stopped(kind: str, name: str, message: str, ended: Ended, lineage: tuple[str, ...]) -> Failure:
    traceback = ended.failure["traceback"] if isinstance(ended, Outcome) and ended.failure else ""
    exception = {"kind": kind, "type": name, "message": message, "traceback": traceback}
    return Failure(exception=exception, lineage=lineage)


def _is_retried(end: End, failure: Failure) -> bool:
    if end.claimed.attempt.number >= end.claimed.max_attempts or end.intent is Intent.CANCEL:
        return False
    lineage = set(failure.lineage)

    def names(classes: tuple[type[BaseException], ...]) -> bool:
        return any(qualified_name(cls) in lineage for cls in classes)

    if qualified_name(Abort) in lineage or names(end.retry.not_on):
        return False
    return not end.retry.on or names(end.retry.on)


def _failures(end: End, failure: Failure) -> list[dict[str, Any]]:
    """The earlier failures and this one, the last ones of them, without their tracebacks."""
    try:
        earlier = msgspec.json.decode(end.claimed.failures or "[]", type=list[dict[str, Any]])
    except msgspec.MsgspecError:  # edited by hand
        earlier = []
    latest = {key: value for key, value in failure.exception.items() if key != "traceback"}
    return [*earlier, {"attempt": end.claimed.attempt.number, **latest}][-FAILURES_KEPT:]


def _finish(
    end: End, status: TaskStatus, *, output: str | None = None, exception: str | None = None
) -> Finish:
    reported = end.ended.progress if isinstance(end.ended, Outcome) else None
    done = status is not TaskStatus.CANCELLED and not end.progress_is_manual
    return Finish(
        attempt=end.claimed.attempt,
        status=status,
        progress=100 if done else reported,
        output=None if output == "null" else output,
        exception=exception,
        cost=_cost(end),
        children=end.children if status is TaskStatus.COMPLETED else (),
        is_awaited=end.is_awaited,
    )


def _cost(end: End) -> Cost:
    if isinstance(end.ended, Unstarted):
        return Cost()
    return Cost(
        cpu_seconds=end.ended.cpu_seconds,
        peak_memory_bytes=end.peak_memory_bytes or end.ended.peak_memory_bytes,
        log=end.log,
    )


def _encode(value: Any) -> str:
    return msgspec.json.encode(value).decode()
