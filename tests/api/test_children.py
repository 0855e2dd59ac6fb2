"""current_task().schedule(): tasks that other tasks ask for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lilota_async import Retry, Task, TaskId, TaskStatus
from tests.api import family
from tests.api.support import DEADLINE, MakeLilota, leaving_nothing, row
from tests.api.tasks import add, echo

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
everywhere = pytest.mark.parametrize("executor", ["process", "thread", "loop"])


@everywhere
@pytest.mark.parametrize("function", [family.split, family.split_async])
async def test_fan_out_and_fan_in(
    make_lilota: MakeLilota,
    fast_database_url: str,
    without_polling: None,
    executor: Any,
    function: Any,
) -> None:
    """The parts run once their parent has completed, and the last after all of them."""
    lilota = make_lilota(echo, db_url=fast_database_url, number_of_processes=2)
    lilota.register("split", executor=executor)(function)
    async with asyncio.timeout(DEADLINE), leaving_nothing(lilota):
        parent = await lilota.schedule("split", 30)
        merge = TaskId[Any](await lilota.result(parent))
        merged = await lilota.wait(merge)
        tasks = await lilota.get_all_tasks(name="echo")
    assert (merged.output, merged.attempts) == ("merged", 1)
    assert {task.status for task in tasks} == {TaskStatus.COMPLETED}
    parts = [task for task in tasks if task.id != merge]
    assert [task.output for task in parts] == list(range(30))
    end = (await row(lilota, parent)).end_date_time
    assert end is not None
    assert merged.start_date_time is not None
    for task in parts:
        assert task.created_at >= end
        assert task.end_date_time is not None
        assert task.end_date_time <= merged.start_date_time


async def test_on_every_database(make_lilota: MakeLilota, database_url: str) -> None:
    """The rows are written in the transaction of the parent's end."""
    async with make_lilota(echo, family.split, db_url=database_url) as lilota:
        parent = await lilota.schedule(family.split, 3)
        merge = TaskId[Any](await lilota.result(parent, DEADLINE))
        assert await lilota.result(merge, DEADLINE) == "merged"


async def test_by_function(make_lilota: MakeLilota) -> None:
    """A function is found by where it is defined; the row is as schedule() would make it."""
    lilota = make_lilota(family.by_function)
    lilota.register("sum", retry=Retry(max_attempts=4))(add)
    async with lilota:
        parent = await lilota.schedule(family.by_function)
        child = TaskId[Any](await lilota.result(parent, DEADLINE))
        task = await lilota.wait(child, DEADLINE)
    assert (task.name, task.input, task.output) == ("sum", {"a": 2, "b": 3}, {"sum": 5})
    assert (task.priority, task.timeout_seconds, task.tags) == (3, 60.0, ["red"])
    assert (task.max_attempts, task.attempts) == (4, 1)
    assert task.concurrency_key == "customer"


async def test_at_a_time(make_lilota: MakeLilota) -> None:
    """A datetime crosses to the application as it is."""
    async with make_lilota(echo, family.far_away) as lilota:
        child = await lilota.result(await lilota.schedule(family.far_away), DEADLINE)
        assert (await row(lilota, TaskId(child))).run_at.isoformat() == "2999-01-01T00:00:00+00:00"


async def rows_of(lilota: Any) -> list[Task]:
    """The tasks that were asked for, ended."""
    tasks: list[Task] = await lilota.get_all_tasks(name="echo")
    return [await lilota.wait(task.id, DEADLINE) for task in tasks]


@everywhere
@pytest.mark.parametrize("how", ["raise", "die"])
async def test_nothing_of_a_failed_parent(
    make_lilota: MakeLilota, fast_database_url: str, executor: Any, how: str
) -> None:
    """But for what it has asked for at once."""
    if how == "die" and executor != "process":
        pytest.skip("it would end the tests")
    lilota = make_lilota(echo, db_url=fast_database_url)
    lilota.register(executor=executor)(family.ask_and_fail)
    async with lilota:
        parent = await lilota.wait(await lilota.schedule(family.ask_and_fail, how), DEADLINE)
        assert parent.status is TaskStatus.FAILED
        assert [task.output for task in await rows_of(lilota)] == ["at once"]


async def test_an_attempt_that_is_run_again(make_lilota: MakeLilota) -> None:
    """Only what the attempt that completed has asked for exists."""
    lilota = make_lilota(echo)
    lilota.register(retry=Retry(max_attempts=2, delay=0))(family.ask_again)
    async with lilota:
        assert await lilota.result(await lilota.schedule(family.ask_again), DEADLINE) == 2
        assert [task.output for task in await rows_of(lilota)] == [2]


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize(
    ("request_", "kind", "message"),
    [
        ({"task": "nobody"}, "UnknownTask", "No task 'nobody' is registered"),
        ({"task": "add", "input": {"a": 1}}, "InvalidInput", "missing required field"),
        ({"task": "add"}, "InvalidInput", "needs an input"),
        ({"task": "echo", "priority": 2**40}, "ConfigurationError", "whole number of 32 bits"),
        ({"task": "echo", "run_at": "soon"}, "ConfigurationError", "run_at must be a datetime"),
        ({"task": "echo", "tags": "red"}, "ConfigurationError", "tags takes several texts"),
        ({"task": "echo", "tags": 5}, "ConfigurationError", "tags takes several texts"),
        ({"task": ""}, "ConfigurationError", "name must be a text"),
        ({"task": "echo", "input": 1, "after": [str(TaskId())]}, "TaskNotFound", "No task has"),
    ],
)
async def test_what_cannot_be_scheduled(
    make_lilota: MakeLilota, request_: dict[str, Any], kind: str, message: str, at_once: bool
) -> None:
    """It fails the task that has asked for it, and says why; nothing is written."""
    async with make_lilota(echo, add, family.ask_for) as lilota:
        wish = {**request_, "at_once": at_once}
        task = await lilota.wait(await lilota.schedule(family.ask_for, wish), DEADLINE)
        assert task.status is TaskStatus.FAILED
        assert task.output is None
        assert task.exception is not None
        assert (task.exception["kind"], task.exception["type"]) == ("error", kind)
        assert message in task.exception["message"]
        assert len(await lilota.get_all_tasks()) == 1


async def test_at_once_is_a_yes_or_a_no(make_lilota: MakeLilota) -> None:
    """Anything else is refused where it is said, and does not end the process."""
    async with make_lilota(echo, family.ask_for) as lilota:
        wish = {"task": "echo", "input": 1, "at_once": "no"}
        task = await lilota.wait(await lilota.schedule(family.ask_for, wish), DEADLINE)
        assert task.exception is not None
        assert task.exception["type"] == "ConfigurationError"
        assert "at_once must be True or False" in task.exception["message"]


async def test_after_tasks_of_others(make_lilota: MakeLilota) -> None:
    """A child may wait for what somebody else has scheduled."""
    async with make_lilota(echo, family.ask_for) as lilota:
        other = await lilota.schedule(echo, 1, delay=0.3)
        wish = {"task": "echo", "input": 2, "after": [str(other)]}
        child = await lilota.result(await lilota.schedule(family.ask_for, wish), DEADLINE)
        assert await lilota.result(TaskId[Any](child), DEADLINE) == 2
        assert (await row(lilota, other)).status is TaskStatus.COMPLETED


async def test_nonsense(make_lilota: MakeLilota) -> None:
    """What JSON cannot hold raises where it is asked for."""
    async with make_lilota(echo, family.ask_for_nonsense) as lilota:
        await lilota.result(await lilota.schedule(family.ask_for_nonsense), DEADLINE)


@pytest.mark.parametrize(
    "wish", [{"times": 10_001, "size": 1}, {"times": 9, "size": 8 * 1024 * 1024}]
)
async def test_too_much(make_lilota: MakeLilota, wish: dict[str, Any]) -> None:
    """What is kept until the end is bounded, and the error names the way out."""
    async with make_lilota(echo, family.ask_for_too_much) as lilota:
        task = await lilota.wait(await lilota.schedule(family.ask_for_too_much, wish), DEADLINE)
        assert task.exception is not None
        assert "give at_once=True for more" in task.exception["message"]
        assert len(await lilota.get_all_tasks()) == 1


@everywhere
async def test_many_at_once(make_lilota: MakeLilota, fast_database_url: str, executor: Any) -> None:
    """They are there when their parent has ended, and what comes in the end may wait for them."""
    lilota = make_lilota(echo, db_url=fast_database_url, number_of_processes=2)
    lilota.register(executor=executor)(family.many_at_once)
    async with lilota, asyncio.timeout(DEADLINE):
        merge = await lilota.result(await lilota.schedule(family.many_at_once, 300))
        assert await lilota.result(TaskId[Any](merge)) == "merged"
        tasks = await lilota.get_all_tasks(status="completed", name="echo")
    assert len(tasks) == 301
