"""Retries: by policy, by the task's own word, and by hand."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lilota_async import Abort, Lilota, Retry, Task, TaskCrashed, TaskFailed, TaskId
from lilota_async.errors import NotRunning
from tests.api import tasks
from tests.api.support import DEADLINE, MakeLilota, row, row_when
from tests.api.tasks import OutOfPaper, echo, fail, fail_until, run_out, snooze_until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
SOON = {"delay": 0.01, "jitter": False}


async def _failed(lilota: Lilota, task_id: TaskId[Any]) -> Task:
    with pytest.raises(TaskFailed) as caught:
        await lilota.result(task_id, DEADLINE)
    return caught.value.task


async def test_no_retry_by_default(make_lilota: MakeLilota) -> None:
    """Without a policy one attempt is all there is."""
    lilota = make_lilota(fail_until)
    async with lilota:
        task = await _failed(lilota, await lilota.schedule(fail_until, 2))
    assert (task.attempts, task.max_attempts, task.failures) == (1, 1, None)


async def test_a_retry_that_waits_through_a_restart(
    make_lilota: MakeLilota, database_url: str
) -> None:
    """What becomes due after a restart is run when it is, and not at some poll later on."""
    lilota = make_lilota(db_url=database_url)
    policy = Retry(max_attempts=2, delay=3.0, jitter=False)
    lilota.register(retry=policy)(fail_until)
    async with lilota:
        task_id = await lilota.schedule(fail_until, 2)
        await row_when(lilota, task_id, lambda task: task.exception is not None)
    due = (await row(lilota, task_id)).run_at
    async with lilota:
        await lilota.wait(task_id, DEADLINE)
    began = (await row(lilota, task_id)).start_date_time
    assert began is not None
    # On PostgreSQL the polls are a minute apart; the others poll each second.
    assert 0 <= (began - due).total_seconds() < DEADLINE


async def test_until_it_works(make_lilota: MakeLilota, fast_database_url: str) -> None:
    """A task that fails twice and then works is completed on attempt 3, with its history."""
    lilota = make_lilota(db_url=fast_database_url)
    lilota.register(retry=Retry(max_attempts=5, **SOON))(fail_until)  # type: ignore[arg-type]
    async with lilota:
        task_id = await lilota.schedule(fail_until, 3)
        assert await lilota.result(task_id, DEADLINE) == 3
    task = await row(lilota, task_id)
    assert (task.status, task.attempts, task.exception) == ("completed", 3, None)
    assert task.failures is not None
    assert [(each["attempt"], each["message"]) for each in task.failures] == [
        (1, "attempt 1"),
        (2, "attempt 2"),
    ]
    assert all("traceback" not in each for each in task.failures)


async def test_until_the_attempts_are_used_up(make_lilota: MakeLilota) -> None:
    """The last failure is the row's exception, the earlier ones are its failures."""
    lilota = make_lilota()
    lilota.register(retry=Retry(max_attempts=3, **SOON))(fail_until)  # type: ignore[arg-type]
    async with lilota:
        task = await _failed(lilota, await lilota.schedule(fail_until, 9))
    assert task.attempts == 3
    assert task.exception is not None
    assert task.exception["message"] == "attempt 3"
    assert [each["attempt"] for each in task.failures or []] == [1, 2]


async def test_between_two_attempts(make_lilota: MakeLilota, fast_database_url: str) -> None:
    """While it waits the row is pending, due later, and says why it failed."""
    lilota = make_lilota(db_url=fast_database_url)
    lilota.register(retry=Retry(max_attempts=3, delay=100, jitter=False))(fail)
    async with lilota, asyncio.timeout(DEADLINE):
        task_id = await lilota.schedule(fail, "first")
        task = await row_when(lilota, task_id, lambda task: task.failures is not None)
        assert (task.status, task.attempts, task.pid) == ("pending", 1, None)
        assert 95 < (task.run_at - task.created_at).total_seconds() < 110
        assert task.exception is not None
        assert task.exception["message"] == "first"
        await lilota.stop()  # does not wait for what is not due
    assert (await row(lilota, task_id)).status == "pending"


async def test_backoff(make_lilota: MakeLilota, tmp_path: Path) -> None:
    """The pauses grow by the factor, up to the longest."""
    lilota = make_lilota()
    policy = Retry(max_attempts=5, delay=0.1, backoff=2.0, max_delay=0.3, jitter=False)
    lilota.register(retry=policy)(tasks.note_and_fail)
    async with lilota:
        await _failed(lilota, await lilota.schedule(tasks.note_and_fail, str(tmp_path)))
    times = [float(line) for line in (tmp_path / "times").read_text().split()]
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert len(pauses) == 4
    for pause, least in zip(pauses, (0.1, 0.2, 0.3, 0.3), strict=True):
        assert least - 0.01 <= pause < least + 5


@pytest.mark.parametrize(
    ("on", "not_on", "kind", "attempts"),
    [
        ((), (), "os", 2),
        ((OutOfPaper,), (), "paper", 2),
        ((OutOfPaper,), (), "ink", 2),  # a subclass
        ((OutOfPaper,), (), "os", 1),
        ((), (OutOfPaper,), "ink", 1),
        ((), (OutOfPaper,), "os", 2),
        ((Exception,), (OutOfPaper,), "paper", 1),
    ],
)
async def test_on_and_not_on(
    make_lilota: MakeLilota, on: Any, not_on: Any, kind: str, attempts: int
) -> None:
    """Only what the policy names is retried, subclasses included; not_on wins."""
    lilota = make_lilota()
    policy = Retry(max_attempts=2, on=on, not_on=not_on, **SOON)  # type: ignore[arg-type]
    lilota.register(retry=policy)(run_out)
    async with lilota:
        task = await _failed(lilota, await lilota.schedule(run_out, kind))
    assert task.attempts == attempts


async def test_retry_later_burns_nothing(make_lilota: MakeLilota) -> None:
    """RetryLater puts the task off as often as it likes, with one attempt allowed."""
    lilota = make_lilota(snooze_until)
    async with lilota:
        task_id = await lilota.schedule(snooze_until, 5)
        assert await lilota.result(task_id, DEADLINE) == 5
    task = await row(lilota, task_id)
    assert (task.attempts, task.failures, task.exception) == (5, None, None)
    assert task.end_date_time is not None
    assert (task.end_date_time - task.created_at).total_seconds() >= 4 * 0.05


async def test_abort(make_lilota: MakeLilota) -> None:
    """Abort is the end, whatever the policy says."""
    lilota = make_lilota()
    lilota.register(retry=Retry(max_attempts=5, on=(Abort, Exception), **SOON))(tasks.abort)  # type: ignore[arg-type]
    async with lilota:
        task = await _failed(lilota, await lilota.schedule(tasks.abort, "no such customer"))
    assert task.attempts == 1
    assert task.exception is not None
    assert (task.exception["type"], task.exception["message"]) == ("Abort", "no such customer")


async def test_poison(make_lilota: MakeLilota, directory: Path) -> None:
    """A task that kills its process is begun exactly as often as it may be."""
    lilota = make_lilota(echo)
    lilota.register(retry=Retry(max_attempts=3, **SOON))(tasks.mark_attempts)  # type: ignore[arg-type]
    async with lilota:
        task = await _failed(lilota, await lilota.schedule(tasks.mark_attempts, str(directory)))
        assert await lilota.result(await lilota.schedule(echo, 1), DEADLINE) == 1
    assert (directory / "attempts").read_text().split() == ["1", "2", "3"]
    assert task.attempts == 3
    assert task.exception is not None
    assert (task.exception["kind"], task.exception["signal"]) == ("crash", "SIGKILL")
    assert [each["kind"] for each in task.failures or []] == ["crash", "crash"]


@pytest.mark.parametrize(("on", "attempts"), [((), 2), ((TaskCrashed,), 2), ((OSError,), 1)])
async def test_crashes_by_policy(make_lilota: MakeLilota, on: Any, attempts: int) -> None:
    """Crashes are retried with on=() or TaskCrashed, and not otherwise."""
    lilota = make_lilota()
    lilota.register(retry=Retry(max_attempts=2, on=on, **SOON))(tasks.crash)  # type: ignore[arg-type]
    async with lilota:
        task = await _failed(lilota, await lilota.schedule(tasks.crash, 7))
    assert task.attempts == attempts
    assert task.exception is not None
    assert (task.exception["kind"], task.exception["exit_code"]) == ("crash", 7)


@pytest.mark.parametrize("executor", ["thread", "loop"])
async def test_elsewhere(make_lilota: MakeLilota, executor: Any) -> None:
    """Policies, RetryLater and Abort mean the same in threads and on the loop."""
    lilota = make_lilota()
    policy = Retry(max_attempts=3, on=(OSError,), **SOON)  # type: ignore[arg-type]
    for function in (fail_until, snooze_until, tasks.abort):
        lilota.register(executor=executor, retry=policy)(function)
    async with lilota:
        assert await lilota.result(await lilota.schedule(fail_until, 3), DEADLINE) == 3
        assert await lilota.result(await lilota.schedule(snooze_until, 4), DEADLINE) == 4
        assert (await _failed(lilota, await lilota.schedule(tasks.abort, "no"))).attempts == 1


async def test_retry_by_hand(make_lilota: MakeLilota, fast_database_url: str) -> None:
    """retry() puts a final task back with its history; it runs with fresh attempts."""
    lilota = make_lilota(db_url=fast_database_url)
    lilota.register(retry=Retry(max_attempts=2, **SOON))(fail_until)  # type: ignore[arg-type]
    async with lilota, asyncio.timeout(DEADLINE):
        task_id = await lilota.schedule(fail_until, 4)
        assert (await _failed(lilota, task_id)).attempts == 2
        assert await lilota.retry(task_id)
        assert await lilota.result(task_id) == 4
    task = await row(lilota, task_id)
    assert (task.status, task.attempts, task.exception) == ("completed", 4, None)
    assert [each["message"] for each in task.failures or []] == [
        "attempt 1",
        "attempt 2",
        "attempt 3",
    ]
    assert [each["attempt"] for each in task.failures or []] == [1, 2, 3]
    assert not any("traceback" in each for each in task.failures or [])


async def test_retry_of_what_completed_or_was_cancelled(make_lilota: MakeLilota) -> None:
    """Any final task can be put back, and its output is new then."""
    lilota = make_lilota(echo, tasks.attempt_number)
    async with lilota, asyncio.timeout(DEADLINE):
        task_id = await lilota.schedule(tasks.attempt_number)
        assert await lilota.result(task_id) == 1
        assert await lilota.retry(task_id)
        assert await lilota.result(task_id) == 2
        assert (await row(lilota, task_id)).failures is None


async def test_retry_of_what_is_not_final(make_lilota: MakeLilota, tmp_path: Path) -> None:
    """What is pending, running or not there is not put back."""
    lilota = make_lilota(tasks.hold)
    async with lilota, asyncio.timeout(DEADLINE):
        task_id = await lilota.schedule(tasks.hold, str(tmp_path))
        assert not await lilota.retry(task_id)
        assert not await lilota.retry(TaskId())
        (tmp_path / "release").touch()
        assert (await lilota.wait(task_id)).attempts == 1
    with pytest.raises(NotRunning, match=r"retry\(\)"):
        await lilota.retry(task_id)


async def test_retries_do_not_wait_for_the_poll(
    make_lilota: MakeLilota, without_polling: None
) -> None:
    """The next attempt begins when it is due, whoever looks."""
    lilota = make_lilota(snooze_until)
    lilota.register(retry=Retry(max_attempts=4, **SOON))(fail_until)  # type: ignore[arg-type]
    start = time.monotonic()
    async with lilota, asyncio.timeout(DEADLINE):
        assert await lilota.result(await lilota.schedule(fail_until, 4)) == 4
        assert await lilota.result(await lilota.schedule(snooze_until, 3)) == 3
    assert time.monotonic() - start < DEADLINE
