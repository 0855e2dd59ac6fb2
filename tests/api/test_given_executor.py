"""`Lilota(executor=...)`: an executor of the application in place of task processes."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import (
    Executor,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lilota_async import Lilota, Retry, TaskFailed, TaskId, TaskStatus
from lilota_async.errors import ConfigurationError
from lilota_async.execution.executors import _request, run_call
from lilota_async.execution.protocol import Checkpoint, Message, Outcome, Progress
from tests.api import family, work
from tests.api.executors import Cluster, Counting, Inline, Refusing
from tests.api.support import DEADLINE, MakeLilota, marked, row, row_when, until
from tests.api.tasks import (
    AddInput,
    AddOutput,
    add,
    cooperate,
    describe_itself,
    describe_itself_async,
    echo,
    fail,
    hold,
    kill_itself,
    raise_odd,
)
from tests.execution.support import call_of

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


def _threads(size: int) -> Executor:
    return ThreadPoolExecutor(size)


def _processes(size: int) -> Executor:
    return ProcessPoolExecutor(size, mp_context=multiprocessing.get_context("spawn"))


@pytest.fixture(params=[_threads, _processes])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    """One task at a time."""
    with request.param(1) as executor:
        yield executor


@pytest.fixture
def one_thread() -> Iterator[Executor]:
    """One task at a time, in this process."""
    with ThreadPoolExecutor(1) as executor:
        yield executor


def _given_up(lilota: Lilota) -> bool:
    """Whether the only place is still taken by what is not waited for."""
    assert lilota._node is not None
    (slot,) = lilota._node._pools["process"].slots()
    return slot.load == 1 and bool(slot.is_given_up)


async def test_tasks_run_there(
    make_lilota: MakeLilota, executor: Executor, fast_database_url: str
) -> None:
    """Functions of both kinds, with models and progress; it is not shut down at the end."""
    functions = (add, describe_itself, describe_itself_async)
    async with make_lilota(*functions, db_url=fast_database_url, executor=executor) as lilota:
        assert (await lilota.health()).cells
        assert await lilota.result(await lilota.schedule(add, AddInput(2, 3))) == AddOutput(5)
        for name in ("describe_itself", "describe_itself_async"):
            task_id = await lilota.schedule(name, tags=["blue"])
            seen = await lilota.result(task_id)
            assert (seen["id"], seen["name"]) == (str(task_id), name)
            assert (seen["attempt"], seen["tags"], seen["ambient"]) == (1, ["blue"], "unset")
            task = await row(lilota, task_id)
            assert (task.progress_percentage, task.attempts) == (100, 1)
            assert task.cpu_seconds is not None
    assert executor.submit(os.getpid).result() > 0


async def test_failures(make_lilota: MakeLilota, executor: Executor) -> None:
    """Whatever is raised is the task's own failure, and a retry is one."""
    lilota = make_lilota(raise_odd, executor=executor)
    lilota.register(retry=Retry(max_attempts=2, delay=0.01))(fail)
    async with lilota:
        for kind in ("exit", "interrupt", "cancelled", "group"):
            with pytest.raises(TaskFailed) as failed:
                await lilota.result(await lilota.schedule(raise_odd, kind))
            assert (failed.value.task.exception or {})["kind"] == "error"
        task = await lilota.wait(await lilota.schedule(fail, "no"))
        assert (task.status, task.attempts) == (TaskStatus.FAILED, 2)
        assert task.exception is not None
        assert (task.exception["type"], task.exception["message"]) == ("ValueError", "no")


async def test_many(make_lilota: MakeLilota, fast_database_url: str) -> None:
    """No more are handed over than there are places; the others wait in the database."""
    with Counting() as executor:
        async with make_lilota(
            echo, db_url=fast_database_url, executor=executor, number_of_processes=2
        ) as lilota:
            ids = await lilota.schedule_many(echo, range(100))
            assert [await lilota.result(task_id) for task_id in ids] == list(range(100))
        assert executor.most in (1, 2)


@pytest.mark.parametrize("way", ["timeout", "cancel"])
async def test_one_that_is_stopped(
    make_lilota: MakeLilota, one_thread: Executor, directory: Path, way: str
) -> None:
    """Its row ends after the grace period; its place is free when the executor's is."""
    async with make_lilota(hold, echo, executor=one_thread) as lilota:
        timeout = 0.1 if way == "timeout" else None
        task_id = await lilota.schedule(hold, str(directory), timeout=timeout)
        await marked(directory)
        if way == "cancel":
            assert await lilota.cancel(task_id)
        task = await lilota.wait(task_id, 10)
        if way == "timeout":
            assert task.exception is not None
            assert (task.status, task.exception["kind"]) == (TaskStatus.FAILED, "timeout")
        else:
            assert task.status is TaskStatus.CANCELLED
        assert not (directory / "release").exists()
        after = await lilota.schedule(echo, 1)
        assert _given_up(lilota)
        assert (await row(lilota, after)).status is TaskStatus.PENDING
        (directory / "release").touch()
        assert await lilota.result(after) == 1
        assert (await row(lilota, task_id)).status is task.status


async def test_one_that_runs_on_a_cluster(make_lilota: MakeLilota, directory: Path) -> None:
    """Its place is not free before the cluster is done with it, though the future is cancelled."""
    with Cluster() as cluster:
        async with make_lilota(hold, echo, executor=cluster) as lilota:
            task_id = await lilota.schedule(hold, str(directory))
            await marked(directory)
            after = await lilota.schedule(echo, 1, timeout=2)
            assert await lilota.cancel(task_id)
            assert (await row(lilota, task_id)).status is TaskStatus.CANCELLED
            assert _given_up(lilota)
            await asyncio.sleep(2.1)  # it is not its time yet that passes
            assert (await row(lilota, after)).status is TaskStatus.PENDING
            (directory / "release").touch()
            assert await lilota.result(after) == 1


async def test_one_that_the_executor_has_not_begun(
    make_lilota: MakeLilota, one_thread: Executor, directory: Path
) -> None:
    """It is taken back at once, and never begins."""
    async with make_lilota(hold, cooperate, executor=one_thread, number_of_processes=2) as lilota:
        first = await lilota.schedule(hold, str(directory))
        await marked(directory)
        second = await lilota.schedule(cooperate, str(directory / "none"))
        await row_when(lilota, second, lambda task: task.status is TaskStatus.RUNNING)
        assert await lilota.cancel(second)
        assert (await row(lilota, second)).status is TaskStatus.CANCELLED
        (directory / "release").touch()
        assert await lilota.result(first) == "released"


async def test_stop_does_not_wait_for_what_it_cannot_end(
    make_lilota: MakeLilota, one_thread: Executor, directory: Path
) -> None:
    """The task goes back to pending, and pays no attempt."""
    lilota = make_lilota(hold, executor=one_thread)
    async with asyncio.timeout(10):
        await lilota.start()
        task_id = await lilota.schedule(hold, str(directory))
        await marked(directory)
        await lilota.stop(timeout=0.1)
    task = await row(lilota, task_id)
    assert (task.status, task.attempts, task.max_attempts) == (TaskStatus.PENDING, 1, 2)
    (directory / "release").touch()
    async with make_lilota(hold, executor=one_thread) as again:
        assert await again.result(task_id) == "released"


async def test_stop_does_not_wait_for_a_place_that_does_not_become_free(
    make_lilota: MakeLilota, one_thread: Executor, directory: Path
) -> None:
    """What was given up holds all of them: what is due stays pending."""
    lilota = make_lilota(hold, echo, executor=one_thread)
    async with asyncio.timeout(10):
        await lilota.start()
        task_id = await lilota.schedule(hold, str(directory), timeout=0.1)
        assert (await lilota.wait(task_id)).status is TaskStatus.FAILED
        waits = await lilota.schedule(echo, 1)
        await lilota.stop()
    assert (await row(lilota, waits)).status is TaskStatus.PENDING
    (directory / "release").touch()


async def test_an_executor_that_takes_nothing_for_a_while(
    make_lilota: MakeLilota, caplog: pytest.LogCaptureFixture
) -> None:
    """Tasks wait for it, pay no attempt and fail of nothing; it is asked once in a while."""
    with Refusing() as refusing:
        async with make_lilota(echo, executor=refusing, number_of_processes=4) as lilota:
            before = time.monotonic()
            ids = [await lilota.schedule(echo, n) for n in range(4)]
            await until(lambda: refusing.asked > 6, "being asked again")
            assert time.monotonic() - before > 1.0
            assert not (await lilota.health()).cells
            for task_id in ids[1:]:
                assert await lilota.cancel(task_id)
            refusing.refuses = False
            assert await lilota.result(ids[0]) == 0
            assert (await lilota.health()).cells
            task = await row(lilota, ids[0])
            assert (task.status, task.attempts, task.failures) == (TaskStatus.COMPLETED, 1, None)
    assert [each.levelno for each in caplog.records].count(logging.ERROR) == 1


async def test_a_node_whose_executor_takes_nothing_leaves_tasks_to_others(
    make_lilota: MakeLilota, one_thread: Executor, fast_database_url: str
) -> None:
    """What it cannot run it does not keep."""
    with Refusing() as refusing:
        async with (
            make_lilota(echo, db_url=fast_database_url, executor=refusing) as broken,
            make_lilota(echo, db_url=fast_database_url, executor=one_thread) as whole,
        ):
            ids = [await broken.schedule(echo, n) for n in range(4)]
            async with asyncio.timeout(DEADLINE):
                assert [await whole.result(task_id) for task_id in ids] == [0, 1, 2, 3]


async def test_stop_with_an_executor_that_takes_nothing(make_lilota: MakeLilota) -> None:
    """It ends; the task is for another node, or for the next start."""
    with Refusing() as refusing:
        lilota = make_lilota(echo, executor=refusing)
        async with asyncio.timeout(10):
            async with lilota:
                task_id = await lilota.schedule(echo, 1)
            task = await row(lilota, task_id)
    assert (task.status, task.attempts) == (TaskStatus.PENDING, 0)


async def test_an_executor_that_is_shut_down(make_lilota: MakeLilota, directory: Path) -> None:
    """What it had not begun goes back, and pays no attempt."""
    executor = ThreadPoolExecutor(1)
    async with make_lilota(hold, echo, executor=executor, number_of_processes=2) as lilota:
        runs = await lilota.schedule(hold, str(directory))
        await marked(directory)
        waits = await lilota.schedule(echo, 1)
        await row_when(lilota, waits, lambda task: task.status is TaskStatus.RUNNING)
        executor.shutdown(wait=False, cancel_futures=True)
        await row_when(lilota, waits, lambda task: task.status is TaskStatus.PENDING)
        (directory / "release").touch()
        assert await lilota.result(runs) == "released"
        await lilota.stop()
    assert (await row(lilota, waits)).attempts == 0


async def test_an_executor_that_runs_at_once(make_lilota: MakeLilota) -> None:
    """Functions run; a coroutine cannot, on a loop that runs already, and says so."""
    async with make_lilota(echo, describe_itself_async, executor=Inline()) as lilota:
        assert await lilota.result(await lilota.schedule(echo, 1)) == 1
        with pytest.raises(TaskFailed, match="RuntimeError: Already running asyncio"):
            await lilota.result(await lilota.schedule(describe_itself_async))


def test_many_reports_are_few_at_the_end() -> None:
    """Only the latest progress and checkpoint are sent back."""
    answer = run_call(_request(call_of(work.report_often, 20_000)))
    said: list[Any] = [*msgspec.json.Decoder(Message).decode_lines(answer)]
    assert [type(each) for each in said] == [Progress, Checkpoint, Outcome]
    assert said[0].percentage == 99
    assert bytes(said[1].state) == b"19999"


async def test_what_a_task_asks_for_wrongly(make_lilota: MakeLilota, executor: Executor) -> None:
    """As in task processes, the error is raised where it asks."""
    async with make_lilota(family.ask_wrongly, executor=executor) as lilota:
        task_id = await lilota.schedule(family.ask_wrongly)
        assert await lilota.result(task_id) == "ConfigurationError"


async def test_what_a_task_asks_for_and_keeps(make_lilota: MakeLilota, executor: Executor) -> None:
    """Its children are scheduled and its checkpoints are kept, at the end of its attempt."""
    lilota = make_lilota(echo, family.split, executor=executor)
    lilota.register(retry=Retry(max_attempts=2, delay=0.01))(work.checkpoint_and_end)
    async with lilota:
        kept = await lilota.result(await lilota.schedule(work.checkpoint_and_end, "exception"))
        assert kept == {"step": 3, "how": "exception"}
        last = await lilota.result(await lilota.schedule(family.split, 3))
        assert await lilota.result(TaskId[Any](last)) == "merged"


async def test_a_process_that_dies(
    make_lilota: MakeLilota, caplog: pytest.LogCaptureFixture
) -> None:
    """Its task has crashed; others wait for as long as the executor takes nothing more."""
    with _processes(1) as broken:
        lilota = make_lilota(kill_itself, echo, executor=broken)
        async with asyncio.timeout(30), lilota:
            with pytest.raises(TaskFailed) as failed:
                await lilota.result(await lilota.schedule(kill_itself))
            exception = failed.value.task.exception or {}
            assert (exception["kind"], exception["type"]) == ("crash", "TaskCrashed")
            assert "BrokenProcessPool" in exception["message"]
            waits = await lilota.schedule(echo, 1)
            await until(lambda: "The executor takes no tasks" in caplog.text, "the warning")
            assert not (await lilota.health()).cells
            cancelled = await lilota.schedule(echo, 2)
            assert await lilota.cancel(cancelled)
            await lilota.stop(timeout=0.1)
    assert [each.levelno for each in caplog.records].count(logging.ERROR) == 1
    assert (await row(lilota, waits)).status is TaskStatus.PENDING
    with _processes(1) as whole:
        async with make_lilota(echo, executor=whole) as again:
            assert await again.result(waits) == 1


async def test_a_process_that_dies_while_its_task_is_cancelled(
    make_lilota: MakeLilota, directory: Path
) -> None:
    """The task is cancelled, as it was asked for."""
    with _processes(1) as executor:
        async with make_lilota(hold, executor=executor, grace=30) as lilota:
            task_id = await lilota.schedule(hold, str(directory))
            pid = int(await marked(directory))
            cancelling = asyncio.ensure_future(lilota.cancel(task_id))
            await row_when(lilota, task_id, lambda task: task.cancel_requested_at is not None)
            os.kill(pid, signal.SIGKILL)
            assert await cancelling
            assert (await row(lilota, task_id)).status is TaskStatus.CANCELLED


@pytest.mark.parametrize("executor", ["process", object(), ThreadPoolExecutor])
def test_what_is_no_executor(executor: Any) -> None:
    """It is refused before anything is done."""
    with pytest.raises(ConfigurationError, match=r"must be a concurrent\.futures\.Executor"):
        Lilota(executor=executor)


def test_a_limit_for_memory(one_thread: Executor) -> None:
    """Nobody could see to it."""
    lilota = Lilota(executor=one_thread)
    with pytest.raises(ConfigurationError, match="max_memory= limits a process"):
        lilota.register(max_memory="1GiB")(echo)
