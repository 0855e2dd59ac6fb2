"""wait(), result() and watch(): here, after the end, and from another Lilota."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Text, type_coerce, update

from lilota_async import (
    InvalidOutput,
    Lilota,
    Task,
    TaskCancelled,
    TaskEvent,
    TaskFailed,
    TaskId,
    TaskStatus,
)
from lilota_async.errors import ConfigurationError, NotRunning, TaskNotFound
from lilota_async.storage.reader import TaskReader
from tests.api.support import DEADLINE, MakeLilota, marked, row, row_when, session, until
from tests.api.tasks import (
    AddInput,
    AddOutput,
    add,
    echo,
    fail,
    hold,
    nothing,
    progress_and_hold,
    set_progress,
)

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


@pytest.fixture
async def pair(make_lilota: MakeLilota, fast_database_url: str) -> AsyncIterator[list[Lilota]]:
    """One Lilota that runs tasks, and one of the same database that only looks."""
    functions = (add, echo, fail, hold, progress_and_hold, set_progress)
    worker = make_lilota(*functions, db_url=fast_database_url)
    looker = make_lilota(*functions, db_url=fast_database_url, number_of_processes=0)
    async with asyncio.timeout(DEADLINE), worker, looker:
        yield [worker, looker]


async def _events(lilota: Lilota, task_id: TaskId[Any]) -> list[TaskEvent]:
    return [event async for event in lilota.watch(task_id)]


async def test_wait_here_and_elsewhere(pair: list[Lilota], directory: Path) -> None:
    """Everyone who waits gets the final row, on whichever node the task runs."""
    task_id = await pair[0].schedule(hold, str(directory))
    waiting = [asyncio.ensure_future(lilota.wait(task_id)) for lilota in pair * 3]
    await marked(directory)
    await asyncio.sleep(0)
    assert not any(each.done() for each in waiting)
    (directory / "release").touch()
    for task in await asyncio.gather(*waiting):
        assert (task.status, task.output) == ("completed", "released")
    for lilota in pair:  # and after the end
        assert (await lilota.wait(task_id, timeout=1)).id == task_id


async def test_result_here_and_elsewhere(pair: list[Lilota]) -> None:
    """The result is the output model's instance, for the looker as well."""
    task_id = await pair[1].schedule(add, AddInput(2, 3))
    for lilota in pair:
        assert await lilota.result(task_id) == AddOutput(5)


async def test_a_result_of_this_node_is_not_read_back(
    pair: list[Lilota], directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its node has it already; and PostgreSQL gives the row of wait() as it is written."""
    lilota = pair[0]
    task_id = await lilota.schedule(hold, str(directory))
    await marked(directory)
    reads: list[Any] = []
    ask = TaskReader._ask

    def noted(self: TaskReader, *question: Any) -> Any:
        reads.append(question)
        return ask(self, *question)

    monkeypatch.setattr(TaskReader, "_ask", noted)
    result = asyncio.create_task(lilota.result(task_id))
    task = asyncio.create_task(lilota.wait(task_id))
    await asyncio.sleep(0)
    (directory / "release").touch()
    assert (await result, (await task).output) == ("released", "released")
    dialect = lilota._database().dialect
    assert len(reads) == (0 if dialect == "postgresql" else 1)


@pytest.mark.parametrize("output", [None, '{"sum":"five"}', "no JSON"])
async def test_a_result_that_does_not_fit(pair: list[Lilota], output: str | None) -> None:
    """As of a model that has changed since: a clear error, and the row has it as it is."""
    task_id = await pair[0].schedule(add, AddInput(2, 3))
    await pair[0].wait(task_id)
    await _edit(pair[0], task_id, output=type_coerce(output, Text))
    for lilota in pair:
        with pytest.raises(InvalidOutput, match=r"output of task 'add' .* get_task_by_id\(\)"):
            await lilota.result(task_id)


async def test_result_of_a_failed_task(pair: list[Lilota]) -> None:
    """TaskFailed carries the row and says what happened."""
    task_id = await pair[0].schedule(fail, "no paper")
    for lilota in pair:
        with pytest.raises(TaskFailed, match="error: ValueError: no paper") as caught:
            await lilota.result(task_id)
        task = caught.value.task
        assert task.id == task_id
        assert task.exception is not None
        assert task.exception["traceback"].startswith("Traceback")
        assert "lilota_async" not in task.exception["traceback"]


async def test_result_of_a_cancelled_task(pair: list[Lilota]) -> None:
    """TaskCancelled carries the row, for one that waited and for one that comes later."""
    looker = pair[1]
    make_blocked(looker)
    task_id = await looker.schedule("nobody", 1)
    waiting = [asyncio.ensure_future(lilota.result(task_id)) for lilota in pair]
    await until(lambda: all(_is_watching(lilota, task_id) for lilota in pair), "the waiting")
    assert await looker.cancel(task_id)
    for each in waiting:
        with pytest.raises(TaskCancelled, match="was cancelled") as caught:
            await each
        assert caught.value.task.status is TaskStatus.CANCELLED


def make_blocked(lilota: Lilota) -> None:
    """Let this node schedule a task that nobody runs: `nobody`."""
    lilota.register("nobody")(echo)


def _is_watching(lilota: Lilota, task_id: TaskId[Any]) -> bool:
    return lilota._node is not None and task_id in lilota._node.events._listeners


async def test_an_end_that_is_not_written_here(pair: list[Lilota], directory: Path) -> None:
    """Who waits for a task that others have taken over waits on for what they make of it."""
    lilota = pair[0]
    task_id = await lilota.schedule(hold, str(directory))
    await marked(directory)
    waiting = asyncio.ensure_future(lilota.wait(task_id))
    await until(lambda: _is_watching(lilota, task_id), "the waiting")
    await _edit(lilota, task_id, attempts=2)
    (directory / "release").touch()
    assert lilota._node is not None
    running = lilota._node.running
    await until(lambda: running.find(task_id) is None, "the end here")
    await until(lambda: _is_watching(lilota, task_id), "waiting on")
    assert not waiting.done()
    await _edit(lilota, task_id, status=TaskStatus.CANCELLED)
    assert (await waiting).status is TaskStatus.CANCELLED


async def _edit(lilota: Lilota, task_id: TaskId[Any], **values: Any) -> None:
    async with session(lilota._database().url) as editing:
        await editing.execute(update(Task).where(Task.id == task_id).values(**values))
        await editing.commit()


async def test_waiting_between_the_end_and_what_follows_from_it(
    make_lilota: MakeLilota, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row is written and told when others are released; who comes then is told as well."""
    lilota = make_lilota(hold, nothing)
    async with lilota:
        assert lilota._node is not None
        on_end, let_go = lilota._node.dependencies.on_end, asyncio.Event()

        async def released(task_id: TaskId[Any], then: Callable[[], None]) -> None:
            await let_go.wait()
            on_end(task_id, then)

        def held(task_id: TaskId[Any], then: Callable[[], None]) -> None:
            releases.append(asyncio.ensure_future(released(task_id, then)))

        releases: list[asyncio.Future[None]] = []
        monkeypatch.setattr(lilota._node.dependencies, "on_end", held)
        task_id = await lilota.schedule(hold, str(directory))
        await marked(directory)
        follower = await lilota.schedule(nothing, after=(task_id,))
        (directory / "release").touch()
        await row_when(lilota, task_id, lambda task: task.status == "completed")
        waiting = asyncio.ensure_future(lilota.wait(task_id))
        await until(lambda: _is_watching(lilota, task_id), "the waiting")
        assert lilota._node.running.find(task_id) is not None
        let_go.set()
        async with asyncio.timeout(DEADLINE):
            assert (await waiting).status is TaskStatus.COMPLETED
            await lilota.wait(follower)


async def test_timeout_of_wait(pair: list[Lilota], directory: Path) -> None:
    """After the timeout TimeoutError is raised, and the task goes on."""
    worker, looker = pair
    task_id = await worker.schedule(hold, str(directory))
    await marked(directory)
    for lilota in pair:
        for call in (lilota.wait, lilota.result):
            with pytest.raises(TimeoutError):
                await call(task_id, timeout=0.05)
            with pytest.raises(TimeoutError):
                await call(task_id, timeout=0)
        await until(lambda lilota=lilota: not _is_watching(lilota, task_id), "the clean-up")  # type: ignore[misc]
        with pytest.raises(ConfigurationError, match="timeout"):
            await lilota.wait(task_id, timeout=-1)
    assert (await row(worker, task_id)).status == "running"
    (directory / "release").touch()
    assert await looker.result(task_id) == "released"


async def test_a_cancelled_waiter_does_not_cancel_the_task(
    pair: list[Lilota], directory: Path
) -> None:
    """Who stops waiting leaves the task alone."""
    task_id = await pair[0].schedule(hold, str(directory))
    waiting = asyncio.ensure_future(pair[0].result(task_id))
    await marked(directory)
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    (directory / "release").touch()
    assert await pair[0].result(task_id) == "released"


async def test_unknown_ids(pair: list[Lilota]) -> None:
    """Waiting for a task that does not exist is an error at once."""
    unknown: TaskId[Any] = TaskId()
    for lilota in pair:
        for waiting in (lilota.wait(unknown), lilota.result(unknown), _events(lilota, unknown)):
            with pytest.raises(TaskNotFound, match=str(unknown)) as caught:
                await waiting
            assert caught.value.task_id == unknown


async def test_a_task_that_is_deleted_while_somebody_waits(pair: list[Lilota]) -> None:
    """Who waits for a task that is deleted hears of it, here and elsewhere."""
    make_blocked(pair[1])
    task_id = await pair[1].schedule("nobody", 1)
    waiting = [asyncio.ensure_future(lilota.wait(task_id)) for lilota in pair]
    await until(lambda: all(_is_watching(lilota, task_id) for lilota in pair), "the waiting")
    assert await pair[0].delete_task_by_id(task_id)
    for each in waiting:
        with pytest.raises(TaskNotFound):
            await each


async def test_watch_here(pair: list[Lilota], directory: Path) -> None:
    """The events are in order, without gaps in the status, and end with the final one."""
    task_id = await pair[0].schedule(progress_and_hold, str(directory))
    watching = asyncio.ensure_future(_events(pair[0], task_id))
    await marked(directory)
    (directory / "release").touch()
    events = await watching
    statuses = [event.status for event in events if event.kind == "status"]
    assert statuses in (
        ["pending", "running", "completed"],
        ["running", "completed"],
    )
    assert all(event.task_id == task_id for event in events)
    assert all(not event.status.is_final for event in events[:-1])
    assert (events[-1].kind, events[-1].progress_percentage) == ("status", 100)


async def test_watch_progress_here(pair: list[Lilota], directory: Path) -> None:
    """Progress that is set while somebody watches arrives before the end."""
    task_id = await pair[0].schedule(progress_and_hold, str(directory))
    seen: list[int] = []
    async for event in pair[0].watch(task_id):
        seen.append(event.progress_percentage)
        if event.progress_percentage == 30:
            (directory / "release").touch()
    assert 30 in seen
    assert seen == sorted(seen)


async def test_watch_elsewhere(pair: list[Lilota], directory: Path) -> None:
    """Another node sees status and progress through the database, and the end."""
    task_id = await pair[0].schedule(progress_and_hold, str(directory))
    seen: list[tuple[str, int]] = []
    async for event in pair[1].watch(task_id):
        seen.append((str(event.status), event.progress_percentage))
        if seen[-1] == ("running", 30):
            (directory / "release").touch()
    assert ("running", 30) in seen
    assert seen[-1] == ("completed", 100)


async def test_watch_after_the_end(pair: list[Lilota]) -> None:
    """A final task has one event: how it is."""
    task_id = await pair[0].schedule(echo, 1)
    await pair[0].wait(task_id)
    for lilota in pair:
        events = await _events(lilota, task_id)
        assert [(event.kind, event.status) for event in events] == [("status", "completed")]


async def test_leaving_watch_early(pair: list[Lilota], directory: Path) -> None:
    """Who leaves the loop leaves nothing behind."""
    task_id = await pair[0].schedule(hold, str(directory))
    async for _ in pair[0].watch(task_id):
        break
    await until(lambda: not _is_watching(pair[0], task_id), "the clean-up")
    (directory / "release").touch()


async def test_waiting_without_start(make_lilota: MakeLilota) -> None:
    """What is final can be waited for at any time; what is not needs a running lilota."""
    lilota = make_lilota(echo, nothing)
    async with lilota:
        done = await lilota.schedule(echo, 3)
    scheduler = make_lilota(nothing, number_of_processes=0)
    async with scheduler:
        pending = await scheduler.schedule(nothing)
    assert await lilota.result(done) == 3
    assert (await lilota.wait(done)).status == "completed"
    assert len(await _events(lilota, done)) == 1
    for waiting in (lilota.wait(pending), lilota.result(pending), _events(lilota, pending)):
        with pytest.raises(NotRunning):
            await waiting


async def test_waiting_while_stop_drains(make_lilota: MakeLilota, directory: Path) -> None:
    """Who waits while lilota stops gets the result of what is drained."""
    lilota = make_lilota(hold, echo)
    await lilota.start()
    first = await lilota.schedule(hold, str(directory))
    await marked(directory)
    second = await lilota.schedule(echo, 2)
    waiting = [asyncio.ensure_future(lilota.result(task_id)) for task_id in (first, second)]
    stopping = asyncio.ensure_future(lilota.stop())
    await asyncio.sleep(0)
    (directory / "release").touch()
    async with asyncio.timeout(DEADLINE):
        await stopping
        assert await asyncio.gather(*waiting) == ["released", 2]


async def test_waiting_while_stop_gives_up(make_lilota: MakeLilota, directory: Path) -> None:
    """Who waits for what goes back to pending is told so, and does not hang."""
    lilota = make_lilota(hold, echo)
    await lilota.start()
    task_id = await lilota.schedule(hold, str(directory))
    await marked(directory)
    waiting = asyncio.ensure_future(lilota.result(task_id))
    await until(lambda: _is_watching(lilota, task_id), "the waiting")
    async with asyncio.timeout(DEADLINE):
        await lilota.stop(drain=False, timeout=0)
        with pytest.raises(NotRunning):
            await waiting
    assert (await row(lilota, task_id)).status == "pending"


async def test_waiting_in_another_loop(pair: list[Lilota], directory: Path) -> None:
    """It is refused, and the loop of its own goes on."""
    lilota = pair[0]
    task_id = await lilota.schedule(hold, str(directory))
    await marked(directory)
    for waiting in (lilota.wait, lilota.result, partial(_events, lilota)):
        with pytest.raises(ConfigurationError, match="another event loop"):
            await asyncio.to_thread(_run_alone, waiting(task_id))
    (directory / "release").touch()
    assert await lilota.result(task_id) == "released"


def _run_alone(waiting: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(waiting)
