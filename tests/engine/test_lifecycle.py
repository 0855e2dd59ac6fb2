"""The policy: every end of an attempt, with every reason to stop it."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lilota_async.engine.lifecycle import (
    End,
    Intent,
    after_interruption,
    backoff,
    conclude,
)
from lilota_async.errors import Abort, RetryLater, TaskCrashed, TaskStopped, TaskTimeout
from lilota_async.execution.ends import Crash, Ended, Unstarted
from lilota_async.execution.invocation import failed
from lilota_async.execution.protocol import Call, Outcome
from lilota_async.models.values import Retry, TaskId, TaskStatus
from lilota_async.registry import Settings
from lilota_async.storage.transitions import (
    FAILURES_KEPT,
    Attempt,
    ClaimedTask,
    Finish,
    LostTask,
    Requeue,
)

ONCE = Retry(max_attempts=1)
ALWAYS = Retry(max_attempts=5, delay=10, backoff=2, jitter=False)
NODE = UUID(int=1)


def outcome_of(error: BaseException) -> Outcome:
    """What a task process makes of a task that raises."""
    call = Call(serial=1, task_id=TaskId(), name="task", attempt=1, definition=b"", input=None)
    return msgspec.structs.replace(failed(call, error, None), progress=30, cpu_seconds=0.5)


RESULT = Outcome(1, output=msgspec.Raw(b'{"sum":3}'), progress=30, cpu_seconds=0.5)
LATE_RESULT = msgspec.structs.replace(RESULT, interrupted=True)
OWN = outcome_of(ValueError("of its own"))
STOPPED = outcome_of(TaskStopped("asked to stop"))
LATER = outcome_of(RetryLater(delay=7))
ABORT = outcome_of(Abort("never again"))
CRASH = Crash(pid=1, exit_code=7, cpu_seconds=0.5)
KILLED = Crash(pid=1, signal="SIGKILL")
UNSTARTED = Unstarted()

COMPLETED = (TaskStatus.COMPLETED, None)
CANCELLED = (TaskStatus.CANCELLED, None)
FREE = ("pending", "free")  # pending again, and no attempt is paid for
UNCOUNTED = ("pending", "uncounted")  # the attempt has not been one
NOTHING = None  # another node's


def failed_with(kind: str) -> tuple[TaskStatus, str]:
    return (TaskStatus.FAILED, kind)


def end_of(
    ended: Ended,
    intent: Intent | None = None,
    *,
    retry: Retry = ONCE,
    number: int = 1,
    failures: str | None = None,
    **options: Any,
) -> End:
    claimed = ClaimedTask(
        attempt=Attempt(id=TaskId(), number=number, node_id=NODE),
        name="task",
        input=None,
        max_attempts=retry.max_attempts,
        timeout_seconds=2.0,
        tags=None,
        checkpoint=None,
        failures=failures,
    )
    options.setdefault("progress_is_manual", False)
    return End(claimed=claimed, ended=ended, intent=intent, retry=retry, limit="2 s", **options)


def summary(transition: Finish | Requeue | None) -> Any:
    """What matters of a transition, to compare with the table below."""
    if transition is None:
        return NOTHING
    if isinstance(transition, Finish):
        exception = transition.exception
        return (transition.status, None if exception is None else exception_of(transition)["kind"])
    if not transition.counted:
        return UNCOUNTED
    return FREE if transition.extra_attempts == 1 else ("pending", "paid")


def exception_of(transition: Finish | Requeue | None) -> dict[str, Any]:
    assert transition is not None
    assert transition.exception is not None
    found: dict[str, Any] = msgspec.json.decode(transition.exception)
    return found


TABLE: dict[str, tuple[Ended, dict[Intent | None, Any]]] = {
    "a result": (
        RESULT,
        dict.fromkeys([None, *Intent], COMPLETED),
    ),
    "a result after an interruption": (
        LATE_RESULT,
        dict.fromkeys([None, *Intent], COMPLETED),
    ),
    "an interruption": (
        STOPPED,
        {
            None: failed_with("error"),
            Intent.TIMEOUT: failed_with("timeout"),
            Intent.MEMORY: failed_with("memory"),
            Intent.CANCEL: CANCELLED,
            Intent.STOP: FREE,
            Intent.LEASE_LOST: NOTHING,
        },
    ),
    "a failure of its own": (
        OWN,
        {
            None: failed_with("error"),
            Intent.TIMEOUT: failed_with("error"),
            Intent.MEMORY: failed_with("error"),
            Intent.CANCEL: failed_with("error"),
            Intent.STOP: failed_with("error"),
            Intent.LEASE_LOST: NOTHING,
        },
    ),
    "Abort": (ABORT, {None: failed_with("error"), Intent.LEASE_LOST: NOTHING}),
    "RetryLater": (
        LATER,
        {
            None: FREE,
            Intent.TIMEOUT: FREE,
            Intent.MEMORY: FREE,
            Intent.CANCEL: CANCELLED,
            Intent.STOP: FREE,
            Intent.LEASE_LOST: NOTHING,
        },
    ),
    "a death": (
        CRASH,
        {
            None: failed_with("crash"),
            Intent.TIMEOUT: failed_with("timeout"),
            Intent.MEMORY: failed_with("memory"),
            Intent.CANCEL: CANCELLED,
            Intent.STOP: FREE,
            Intent.LEASE_LOST: NOTHING,
        },
    ),
    "a kill": (
        KILLED,
        {
            None: failed_with("crash"),
            Intent.TIMEOUT: failed_with("timeout"),
            Intent.MEMORY: failed_with("memory"),
            Intent.CANCEL: CANCELLED,
            Intent.STOP: FREE,
            Intent.LEASE_LOST: NOTHING,
        },
    ),
    "no beginning": (
        UNSTARTED,
        {
            None: UNCOUNTED,
            Intent.TIMEOUT: UNCOUNTED,
            Intent.MEMORY: UNCOUNTED,
            Intent.CANCEL: CANCELLED,
            Intent.STOP: UNCOUNTED,
            Intent.LEASE_LOST: NOTHING,
        },
    ),
}
CASES = [
    pytest.param(ended, intent, expected, id=f"{name}-{intent}")
    for name, (ended, row) in TABLE.items()
    for intent, expected in row.items()
]


@pytest.mark.parametrize(("ended", "intent", "expected"), CASES)
def test_what_follows_without_retries(ended: Ended, intent: Intent | None, expected: Any) -> None:
    """The whole table, one attempt each."""
    assert summary(conclude(end_of(ended, intent))) == expected


@pytest.mark.parametrize(("ended", "intent", "expected"), CASES)
def test_what_follows_with_attempts_left(
    ended: Ended, intent: Intent | None, expected: Any
) -> None:
    """Only failures change: they are tried again, but for Abort and after a cancel."""
    is_failure = expected is not None and expected[0] is TaskStatus.FAILED
    if is_failure and ended is not ABORT and intent is not Intent.CANCEL:
        expected = ("pending", "paid")
    assert summary(conclude(end_of(ended, intent, retry=ALWAYS))) == expected


@pytest.mark.parametrize(("ended", "intent", "expected"), CASES)
def test_what_follows_the_last_attempt(ended: Ended, intent: Intent | None, expected: Any) -> None:
    """As if there were no retries."""
    assert summary(conclude(end_of(ended, intent, retry=ALWAYS, number=5))) == expected


@pytest.mark.parametrize(
    ("retry", "error", "is_retried"),
    [
        (Retry(), ValueError("x"), True),
        (Retry(on=(ValueError,)), ValueError("x"), True),
        (Retry(on=(OSError,)), ConnectionError("a subclass"), True),
        (Retry(on=(OSError,)), ValueError("x"), False),
        (Retry(not_on=(ValueError,)), ValueError("x"), False),
        (Retry(not_on=(OSError,)), ConnectionError("a subclass"), False),
        (Retry(on=(OSError,), not_on=(ConnectionError,)), ConnectionError("x"), False),
        (Retry(on=(OSError,), not_on=(ConnectionError,)), FileNotFoundError("x"), True),
        (Retry(on=(Abort,)), Abort("never"), False),
        (Retry(), SystemExit(1), True),
    ],
)
def test_a_retry_names_what_it_is_for(retry: Retry, error: BaseException, is_retried: bool) -> None:
    """By class, subclasses included; `not_on` wins, and Abort over everything."""
    transition = conclude(end_of(outcome_of(error), retry=retry))
    assert isinstance(transition, Requeue) is is_retried


@pytest.mark.parametrize(
    ("ended", "intent", "cls"),
    [
        (CRASH, None, TaskCrashed),
        (KILLED, Intent.MEMORY, TaskCrashed),
        (KILLED, Intent.TIMEOUT, TaskTimeout),
        (STOPPED, Intent.TIMEOUT, TaskTimeout),
    ],
)
def test_deaths_and_timeouts_are_retried_when_named(
    ended: Ended, intent: Intent | None, cls: type[BaseException]
) -> None:
    """Not by the class of something else."""
    assert isinstance(conclude(end_of(ended, intent, retry=Retry(on=(cls,)))), Requeue)
    assert isinstance(conclude(end_of(ended, intent, retry=Retry(on=(OSError,)))), Finish)
    assert isinstance(conclude(end_of(ended, intent, retry=Retry(not_on=(cls,)))), Finish)


def test_a_failure_keeps_what_the_task_said() -> None:
    """Type, message and traceback of its own exception."""
    exception = exception_of(conclude(end_of(OWN)))
    assert exception["type"] == "ValueError"
    assert exception["message"] == "of its own"
    assert "ValueError: of its own" in exception["traceback"]


@pytest.mark.parametrize(
    ("crash", "words", "fields"),
    [
        (CRASH, "exit code 7", {"exit_code": 7, "signal": None}),
        (Crash(pid=1, exit_code=0), "exit code 0", {"exit_code": 0, "signal": None}),
        (KILLED, "signal SIGKILL", {"exit_code": None, "signal": "SIGKILL"}),
        (
            Crash(pid=1, signal="SIGKILL", out_of_memory=True),
            "probably out of memory",
            {"signal": "SIGKILL"},
        ),
        (
            Crash(pid=1, signal="SIGSEGV", traceback="Fatal Python error"),
            "SIGSEGV",
            {"traceback": "Fatal Python error"},
        ),
    ],
)
def test_a_crash_says_how_the_process_ended(
    crash: Crash, words: str, fields: dict[str, Any]
) -> None:
    """With exit code 0 too, and with what the kernel and faulthandler say."""
    exception = exception_of(conclude(end_of(crash)))
    assert words in exception["message"]
    assert ("out of memory" in exception["message"]) is crash.out_of_memory
    assert exception | fields == exception


def test_a_timeout_names_the_limit_and_where_the_task_was() -> None:
    """The traceback is that of the interruption."""
    exception = exception_of(conclude(end_of(STOPPED, Intent.TIMEOUT)))
    assert exception["message"].endswith("its timeout of 2 s")
    assert "TaskStopped" in exception["traceback"]
    assert exception_of(conclude(end_of(KILLED, Intent.TIMEOUT)))["traceback"] == ""


def test_the_memory_of_all_processes_is_the_peak() -> None:
    """What was watched counts more than what one process says of itself."""
    end = end_of(KILLED, Intent.MEMORY, peak_memory_bytes=600)
    transition = conclude(end)
    assert exception_of(transition)["peak_memory_bytes"] == 600
    assert isinstance(transition, Finish)
    assert transition.cost.peak_memory_bytes == 600


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize(
    ("ended", "intent", "automatic", "by_hand"),
    [
        (RESULT, None, 100, 30),
        (OWN, None, 100, 30),
        (CRASH, None, 100, None),
        (STOPPED, Intent.CANCEL, 30, 30),
        (KILLED, Intent.CANCEL, None, None),
    ],
)
def test_progress_at_the_end(
    ended: Ended, intent: Intent | None, automatic: int | None, by_hand: int | None, manual: bool
) -> None:
    """100 unless it is set by hand or the task was cancelled; then the last report, if any."""
    transition = conclude(end_of(ended, intent, progress_is_manual=manual))
    assert isinstance(transition, Finish)
    assert transition.progress == (by_hand if manual else automatic)


@pytest.mark.parametrize(("output", "kept"), [(b'{"sum":3}', '{"sum":3}'), (b"null", None)])
def test_the_output_is_the_tasks_json(output: bytes, kept: str | None) -> None:
    """As it was sent; nothing returned is no output."""
    transition = conclude(end_of(Outcome(1, output=msgspec.Raw(output))))
    assert isinstance(transition, Finish)
    assert transition.output == kept


@pytest.mark.parametrize(("ended", "intent", "expected"), CASES)
def test_every_transition_carries_the_attempt_and_its_cost(
    ended: Ended, intent: Intent | None, expected: Any
) -> None:
    """The fence is that of the claim; an attempt that has not been one costs nothing."""
    end = end_of(ended, intent, log="said")
    transition = conclude(end)
    if transition is None:
        return
    assert transition.attempt == end.claimed.attempt
    if isinstance(ended, Unstarted):
        assert transition.cost.log is None
    else:
        assert transition.cost.log == "said"
        assert transition.cost.cpu_seconds == ended.cpu_seconds


def test_earlier_failures_are_kept() -> None:
    """In their order, the last ones of them, without tracebacks."""
    failures: str | None = None
    retry = Retry(max_attempts=100, jitter=False)
    for number in range(1, FAILURES_KEPT + 6):
        end = end_of(OWN, retry=retry, number=number, failures=failures)
        transition = conclude(end)
        assert isinstance(transition, Requeue)
        failures = transition.failures
    assert failures is not None
    kept = msgspec.json.decode(failures)
    assert [each["attempt"] for each in kept] == list(range(6, FAILURES_KEPT + 6))
    assert all(each["type"] == "ValueError" and "traceback" not in each for each in kept)


def test_failures_that_were_edited_by_hand_do_no_harm() -> None:
    """They are given up for what is known now."""
    transition = conclude(end_of(OWN, retry=ALWAYS, failures="no json"))
    assert isinstance(transition, Requeue)
    assert transition.failures is not None
    assert len(msgspec.json.decode(transition.failures)) == 1


@pytest.mark.parametrize(("number", "pause"), [(1, 10), (2, 20), (3, 40), (4, 80)])
def test_the_pause_grows(number: int, pause: float) -> None:
    """From attempt to attempt, by the factor."""
    transition = conclude(end_of(OWN, retry=ALWAYS, number=number))
    assert isinstance(transition, Requeue)
    assert transition.delay_seconds == pause


def test_a_snooze_lasts_as_long_as_the_task_said() -> None:
    """The delay of RetryLater, and not that of the policy; never into the past."""
    transition = conclude(end_of(LATER, retry=ALWAYS))
    assert isinstance(transition, Requeue)
    assert transition.delay_seconds == 7
    assert transition.exception is None
    earlier = conclude(end_of(outcome_of(RetryLater(delay=-5))))
    assert isinstance(earlier, Requeue)
    assert earlier.delay_seconds == 0


durations = st.floats(min_value=0, max_value=1e9)


@given(
    delay=durations,
    longest=durations,
    factor=st.floats(min_value=1, max_value=1e6),
    attempt=st.integers(min_value=1, max_value=2**31 - 1),
    chance=st.floats(min_value=0, max_value=1),
    jitter=st.booleans(),
)
def test_backoff_stays_within_its_bounds(
    delay: float, longest: float, factor: float, attempt: int, chance: float, jitter: bool
) -> None:
    """For every policy and attempt: finite, between half of the pause and all of it."""
    retry = Retry(delay=delay, max_delay=longest, backoff=factor, jitter=jitter)
    whole = backoff(
        Retry(delay=delay, max_delay=longest, backoff=factor, jitter=False), attempt, chance
    )
    pause = backoff(retry, attempt, chance)
    assert math.isfinite(pause)
    assert 0 <= whole <= longest
    assert whole >= min(delay, longest)
    assert whole / 2 <= pause <= whole
    assert jitter or pause == whole


@given(st.integers(min_value=1, max_value=200), st.floats(min_value=0, max_value=1))
def test_backoff_never_shrinks(attempt: int, chance: float) -> None:
    """The pause before a later attempt is at least as long, but for the draw."""
    retry = Retry(delay=timedelta(seconds=1), max_delay=timedelta(hours=1))
    assert backoff(retry, attempt + 1, chance) >= backoff(retry, attempt, chance)


@pytest.mark.parametrize(
    ("on_interrupt", "interruptions", "cancel", "expected"),
    [
        ("requeue", 1, False, FREE),
        ("requeue", 5, False, FREE),
        ("requeue", 6, False, failed_with("interrupted")),
        ("fail", 1, False, failed_with("interrupted")),
        ("requeue", 1, True, CANCELLED),
        ("fail", 1, True, CANCELLED),
    ],
)
def test_what_follows_the_death_of_a_node(
    on_interrupt: Any, interruptions: int, cancel: bool, expected: Any
) -> None:
    """Run again, up to a limit, unless the task says otherwise or was to be cancelled."""
    lost = LostTask(
        attempt=Attempt(id=TaskId(), number=1, node_id=NODE),
        name="task",
        interruptions=interruptions,
        is_cancel_requested=cancel,
    )
    settings = Settings(on_interrupt=on_interrupt, max_interruptions=5)
    assert summary(after_interruption(lost, settings)) == expected
