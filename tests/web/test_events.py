"""Streams of events: from the beginning, from where a client was, and to the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from lilota_async import Lilota, TaskEvent, TaskId, TaskStatus
from lilota_async.engine.story import Position
from lilota_async.integrations import allow_all
from lilota_async.integrations.starlette import router
from tests.api.support import MakeLilota, row_when
from tests.web.support import DEADLINE, Event, events_of, served
from tests.web.tasks import add, bill, earn, wait_for_mark

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]

Follow = Callable[..., Any]


@pytest.fixture
async def lilota(make_lilota: MakeLilota) -> AsyncIterator[Lilota]:
    """A started Lilota."""
    lilota = make_lilota(add, wait_for_mark, number_of_processes=2)
    lilota.register(redact=["secret"])(bill)
    async with lilota:
        yield lilota


@pytest.fixture
async def client(lilota: Lilota) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the router behind a server."""
    async with served(router(lilota, authorize=allow_all, heartbeat=0.05)) as client:
        yield client


async def all_events(client: httpx.AsyncClient, task_id: Any, after: str = "") -> list[Event]:
    """The events of a stream, to its end."""
    headers = {"last-event-id": after} if after else {}
    async with (
        asyncio.timeout(DEADLINE),
        client.stream("GET", f"/{task_id}/events", headers=headers) as response,
    ):
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        return [event async for event in events_of(response)]


def logged(events: list[Event]) -> str:
    """All that was logged, in order."""
    return "".join(event.data["text"] for event in events if event.kind == "log")


async def test_from_beginning_to_end(
    client: httpx.AsyncClient, lilota: Lilota, directory: Path
) -> None:
    """Status, progress and log of a task that runs, and nothing after the final status."""
    mark = directory / "mark"
    task_id = await lilota.schedule(wait_for_mark, str(mark))
    seen: list[Event] = []
    async with (
        asyncio.timeout(DEADLINE),
        client.stream("GET", f"/{task_id}/events") as response,
    ):
        async for event in events_of(response):
            seen.append(event)
            if "waiting" in logged(seen) and event.data.get("progress") == 10:
                mark.touch()
    assert [event.data["status"] for event in seen if event.kind == "status"][-1] == "completed"
    assert seen[-1].kind == "status"
    assert logged(seen) == "waiting\nseen\n"
    assert {10, 90} <= {event.data["progress"] for event in seen if event.kind != "log"}


async def test_going_on_where_it_broke_off(
    client: httpx.AsyncClient, lilota: Lilota, directory: Path
) -> None:
    """With Last-Event-ID, from any event on, what is missing comes and nothing comes twice."""
    mark = directory / "mark"
    task_id = await lilota.schedule(wait_for_mark, str(mark))
    await row_when(lilota, task_id, lambda task: task.progress_percentage == 10)
    first: list[Event] = []
    async with client.stream("GET", f"/{task_id}/events") as response:
        async for event in events_of(response):
            first.append(event)
            if event.kind == "status":
                break
    mark.touch()
    rest = await all_events(client, task_id, first[-1].id)
    assert logged(first) + logged(rest) == "waiting\nseen\n"
    assert rest[-1].data["status"] == "completed"
    states = [event.data for event in [*first, *rest] if event.kind == "status"]
    assert [state["status"] for state in states] == ["running", "completed"]


async def test_after_the_end(client: httpx.AsyncClient, lilota: Lilota) -> None:
    """A late client gets the log and the end; one that has seen it is told not to come again."""
    task_id = await lilota.schedule(bill, {"amount": 1})
    await lilota.wait(task_id, timeout=DEADLINE)
    events = await all_events(client, task_id)
    assert [event.kind for event in events] == ["log", "status"]
    assert logged(events) == "billing with \n"
    again = await client.get(f"/{task_id}/events", headers={"last-event-id": events[-1].id})
    assert again.status_code == 204
    for nonsense in ("x" * 10_000, "1-running-5", "9-completed-100-x", "-1-running-0-0"):
        assert len(await all_events(client, task_id, nonsense)) == 2


async def test_a_task_that_is_run_again(
    client: httpx.AsyncClient, lilota: Lilota, directory: Path
) -> None:
    """Its stream goes on for a client that has seen the end of the attempt before."""
    mark = directory / "mark"
    mark.touch()
    task_id = await lilota.schedule(wait_for_mark, str(mark))
    await lilota.wait(task_id, timeout=DEADLINE)
    end = (await all_events(client, task_id))[-1].id
    mark.unlink()
    await lilota.retry(task_id)
    await row_when(lilota, task_id, lambda task: task.progress_percentage == 10)
    mark.touch()
    events = await all_events(client, task_id, end)
    assert logged(events) == "waiting\nseen\n", events
    assert events[-1].data["attempt"] == 2
    assert len(await all_events(client, task_id, end)) == 2  # all of it, when it has ended too


async def test_an_end_that_is_just_committed(
    lilota: Lilota, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The final event comes although the node has not forgotten the attempt yet."""
    task_id = await lilota.schedule(add, 1)
    await lilota.wait(task_id, timeout=DEADLINE)

    class Attempt:
        def event(self) -> TaskEvent:
            return TaskEvent(
                kind="status",
                task_id=task_id,
                status=TaskStatus.RUNNING,
                progress_percentage=50,
                attempt=1,
            )

        def log_since(self, _start: int) -> str:
            return ""

    node: Any = lilota._node
    monkeypatch.setattr(node.running, "find", lambda _: Attempt())
    async with asyncio.timeout(DEADLINE):
        events = [event async for event in lilota.watch(task_id, after="")]
    assert events[-1].status is TaskStatus.COMPLETED


async def test_heartbeats(client: httpx.AsyncClient, lilota: Lilota, directory: Path) -> None:
    """While nothing happens, comments keep the connection alive."""
    task_id = await lilota.schedule(wait_for_mark, str(directory / "never"))
    beats = 0
    async with (
        asyncio.timeout(DEADLINE),
        client.stream("GET", f"/{task_id}/events") as response,
    ):
        async for line in response.aiter_lines():
            beats += line.startswith(": heartbeat")
            if beats == 3:
                break
    await lilota.cancel(task_id)


async def test_a_redacted_value_is_not_in_the_log(
    client: httpx.AsyncClient, lilota: Lilota
) -> None:
    """What redact= names is looked for in the log as well."""
    task_id = await lilota.schedule(bill, {"amount": 1, "secret": "tiger-17"})
    await lilota.wait(task_id, timeout=DEADLINE)
    assert logged(await all_events(client, task_id)) == "billing with [redacted]\n"


async def test_a_deleted_task_ends_its_streams(
    client: httpx.AsyncClient, lilota: Lilota, directory: Path
) -> None:
    """For those who watch, a row that is gone is the end."""
    blockers = [await lilota.schedule(wait_for_mark, str(directory / "go")) for _ in range(2)]
    task_id = await lilota.schedule(add, 1)
    try:
        following = asyncio.create_task(all_events(client, task_id))
        async with asyncio.timeout(DEADLINE):
            # Its row has been read then.
            while task_id not in lilota._node.events._polled():  # type: ignore[union-attr]
                await asyncio.sleep(0.01)
        assert await lilota.delete_task_by_id(task_id)
        events = await following
        assert events[-1].data["status"] == "cancelled"
    finally:
        (directory / "go").touch()
    for blocker in blockers:
        await lilota.wait(blocker, timeout=DEADLINE)


async def test_streams_poll_together(
    make_lilota: MakeLilota, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 streams of one node ask the database once for all, and all see the end.

    The tasks run on another node, so that only the database knows.
    """
    runner = make_lilota(wait_for_mark, number_of_processes=1)
    reader = make_lilota(number_of_processes=0)
    async with runner, reader, served(router(reader, authorize=allow_all)) as client:
        mark = directory / "mark"
        task_id = await runner.schedule(wait_for_mark, str(mark))
        streams = [asyncio.create_task(all_events(client, task_id)) for _ in range(200)]
        subscriptions = reader._node.events._listeners  # type: ignore[union-attr]
        async with asyncio.timeout(DEADLINE):
            while len(subscriptions.get(TaskId(task_id), ())) < 200:
                await asyncio.sleep(0.01)
        reads = 0
        original = reader._node.events._read_states  # type: ignore[union-attr]

        async def counted(ids: Any) -> Any:
            nonlocal reads
            reads += 1
            return await original(ids)

        monkeypatch.setattr(reader._node.events, "_read_states", counted)  # type: ignore[union-attr]
        began = asyncio.get_running_loop().time()
        mark.touch()
        results = await asyncio.gather(*streams)
        seconds = asyncio.get_running_loop().time() - began
    assert reads <= 2 + seconds / 0.05
    for events in results:
        assert events[-1].data["status"] == "completed"
        assert logged(events) == "waiting\nseen\n"


def test_positions_of_clients() -> None:
    """A position says what was seen; what is none says that nothing was."""
    position = Position.parse("2-running-40-1234")
    assert (position.attempt, position.status, position.progress, position.log_end) == (
        2,
        "running",
        40,
        1234,
    )
    assert Position.parse("1-failed-0-0").is_final
    assert not position.is_final
    for text in ("", "1-odd-0-0 ", "\u0661-running-1-1", "1-running-1-1\n"):
        assert Position.parse(text) == Position()


async def test_what_only_the_output_holds_is_not_in_the_log_of_others(
    make_lilota: MakeLilota, sqlite_url: str
) -> None:
    """The log of another node's task comes with its end, and so is redacted by its output."""
    worker, looker = make_lilota(), make_lilota(number_of_processes=0)
    for each in (worker, looker):
        each.register(redact=["secret"])(earn)
    app = router(looker, authorize=allow_all)
    async with looker, served(app) as client:
        task_id = await looker.schedule("earn", {"amount": 1})
        following = asyncio.create_task(all_events(client, task_id))
        async with asyncio.timeout(DEADLINE):
            while task_id not in looker._node.events._listeners:  # type: ignore[union-attr]
                await asyncio.sleep(0.01)
        async with worker:
            assert logged(await following) == "earned [redacted]\n"
