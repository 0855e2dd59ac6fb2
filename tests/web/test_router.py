"""The router: what each route answers, on Starlette and on FastAPI."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette

from lilota_async import Lilota, StoreUnavailable, TaskId
from lilota_async.errors import ConfigurationError
from lilota_async.integrations import allow_all
from lilota_async.integrations.fastapi import router as fastapi_router
from lilota_async.integrations.starlette import router as starlette_router
from tests.api.support import MakeLilota
from tests.web.support import DEADLINE, client_of
from tests.web.tasks import add, bill, fail, greet, wait_for_mark

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]
NOWHERE = "01939e4a-7d1c-7000-8000-000000000000"

Mount = Callable[..., Any]


def on_starlette(lilota: Lilota, **options: Any) -> Starlette:
    """An application with the router at /tasks."""
    app = Starlette()
    app.mount("/tasks", starlette_router(lilota, **{"authorize": allow_all, **options}))
    return app


def on_fastapi(lilota: Lilota, **options: Any) -> FastAPI:
    """The same with FastAPI."""
    app = FastAPI()
    options = {"authorize": allow_all, **options}
    app.include_router(fastapi_router(lilota, **options), prefix="/tasks")
    return app


@pytest.fixture(params=[on_starlette, on_fastapi])
def mount(request: pytest.FixtureRequest) -> Mount:
    """Makes an application with the router at /tasks."""
    made: Mount = request.param
    return made


@pytest.fixture
async def lilota(make_lilota: MakeLilota) -> AsyncIterator[Lilota]:
    """A started Lilota with public tasks, and one that is not."""
    lilota = make_lilota(wait_for_mark)
    for function in (add, fail):
        lilota.register(public=True)(function)
    lilota.register(public=True, redact=["secret"])(bill)
    async with lilota:
        yield lilota


@pytest.fixture
async def client(lilota: Lilota, mount: Mount) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application."""
    async with client_of(mount(lilota)) as client:
        yield client


async def test_the_story_of_a_task(client: httpx.AsyncClient) -> None:
    """Accepted with a place to look at, which tells how it is, and at last its output."""
    accepted = await client.post("/tasks/add", json=41)
    assert accepted.status_code == 202
    place = accepted.headers["location"]
    assert accepted.json() == {
        "id": place.rsplit("/", 1)[1],
        "name": "add",
        "status": "pending",
        "url": place,
    }
    result = await client.get(f"{place}/result", params={"wait": 30})
    assert result.status_code == 200
    assert result.json()["output"] == 42
    state = (await client.get(place)).json()
    assert (state["status"], state["progress"], state["error"]) == ("completed", 100, None)
    assert "output" not in state
    assert "input" not in state


async def test_input_that_does_not_fit(client: httpx.AsyncClient, lilota: Lilota) -> None:
    """422 with the place and the reason; nothing is written."""
    answer = await client.post("/tasks/bill", json={"amount": 1, "lines": [1, "x"]})
    assert answer.status_code == 422
    (reason,) = answer.json()["detail"]
    assert reason["loc"][:2] == ["body", "lines"]
    assert "int" in reason["msg"]
    broken = await client.post(
        "/tasks/add", content=b"{", headers={"content-type": "application/json"}
    )
    assert broken.status_code == 422
    form = await client.post("/tasks/add", content=b"1", headers={"content-type": "text/plain"})
    assert form.status_code == 415
    assert await lilota.get_all_tasks() == []


async def test_every_reason_is_told(make_lilota: MakeLilota, mount: Mount) -> None:
    """A pydantic model says all that is wrong, and each place is in the answer."""
    lilota = make_lilota(number_of_processes=0)
    lilota.register(public=True)(greet)
    async with lilota, client_of(mount(lilota)) as client:
        answer = await client.post("/tasks/greet", json={"age": "old", "emails": ["a", 3]})
    assert answer.status_code == 422
    places = [reason["loc"] for reason in answer.json()["detail"]]
    assert places == [["body", "name"], ["body", "age"], ["body", "emails", 1]]
    assert all(reason["msg"] for reason in answer.json()["detail"])


async def test_only_public_names_are_scheduled(client: httpx.AsyncClient) -> None:
    """A name that is registered without public=True is as unknown as one that is not."""
    private = await client.post("/tasks/wait_for_mark", json="x")
    unknown = await client.post("/tasks/nothing", json="x")
    assert private.status_code == unknown.status_code == 404
    assert private.json() == unknown.json()


async def test_an_input_that_is_too_large(make_lilota: MakeLilota, mount: Mount) -> None:
    """413, before all of it is read."""
    lilota = make_lilota(max_payload_bytes=1000)
    lilota.register(public=True)(add)
    async with lilota, client_of(mount(lilota)) as client:
        answer = await client.post("/tasks/add", json="x" * 2000)
    assert answer.status_code == 413


async def test_ids_without_a_task(client: httpx.AsyncClient) -> None:
    """404 for an id of no task, 422 for what is no id."""
    for path in ("", "/result", "/events"):
        assert (await client.get(f"/tasks/{NOWHERE}{path}")).status_code == 404
        assert (await client.get(f"/tasks/nonsense{path}")).status_code == 422
    for action in ("cancel", "retry"):
        assert (await client.post(f"/tasks/{NOWHERE}/{action}")).status_code == 404


async def test_cancel_and_retry(client: httpx.AsyncClient, lilota: Lilota, directory: Path) -> None:
    """A running task is cancelled, run again, and then not again: 409 says what it is."""
    mark = directory / "mark"
    task_id = await lilota.schedule(wait_for_mark, str(mark))
    early = await client.get(f"/tasks/{task_id}/result")
    assert early.status_code == 202
    assert "retry-after" in early.headers
    cancelled = await client.post(f"/tasks/{task_id}/cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    mark.touch()
    assert (await client.post(f"/tasks/{task_id}/retry")).status_code == 200
    result = await client.get(f"/tasks/{task_id}/result", params={"wait": 30})
    assert result.json()["output"] == "done"
    again = await client.post(f"/tasks/{task_id}/cancel")
    assert (again.status_code, again.json()["status"]) == (409, "completed")


async def test_a_failure_is_told_by_its_kind(client: httpx.AsyncClient) -> None:
    """The message, which may tell more than a client should know, is not told."""
    place = (await client.post("/tasks/fail", json="password=tiger")).headers["location"]
    result = await client.get(f"{place}/result", params={"wait": 30})
    assert (result.json()["status"], result.json()["error"]) == ("failed", "error")
    assert "tiger" not in result.text + (await client.get(place)).text


async def test_listing(client: httpx.AsyncClient, lilota: Lilota) -> None:
    """The newest first, by status, name and tag, in pages."""
    ids = await lilota.schedule_many("add", range(5), tags=["a", 'b"]'])
    other = await lilota.schedule("fail", "x", tags=["a"])
    for task_id in (*ids, other):
        await lilota.wait(task_id, timeout=DEADLINE)

    async def listed(**query: Any) -> list[str]:
        answer = await client.get("/tasks/", params=query)
        assert answer.status_code == 200, answer.text
        return [task["id"] for task in answer.json()["tasks"]]

    newest = [str(task_id) for task_id in reversed(ids)]
    assert await listed() == [str(other), *newest]
    assert await listed(status="failed") == [str(other)]
    assert await listed(name="add", status="completed") == newest
    assert await listed(tag='b"]') == newest
    assert await listed(tag="b") == []
    first = (await client.get("/tasks/", params={"limit": 2})).json()
    assert [task["id"] for task in first["tasks"]] == [str(other), newest[0]]
    assert await listed(limit=200, before=first["next"]) == newest[1:]
    for query in ({"status": "odd"}, {"limit": "201"}, {"limit": "-1"}, {"before": "x"}):
        assert (await client.get("/tasks/", params=query)).status_code == 422


async def test_a_redacted_field_is_in_no_answer(client: httpx.AsyncClient) -> None:
    """Output fields that redact= names are left out."""
    body = {"amount": 3, "secret": "tiger-17"}
    place = (await client.post("/tasks/bill", json=body)).headers["location"]
    result = await client.get(f"{place}/result", params={"wait": 30})
    assert result.json()["output"] == {"total": 3, "secret": "[redacted]"}


async def test_health(client: httpx.AsyncClient, lilota: Lilota) -> None:
    """Ready while it runs; alive, and not ready, when it is stopped."""
    ready = await client.get("/tasks/readyz")
    assert ready.status_code == 200
    assert ready.json() == {
        "status": "ready",
        "checks": {"running": True, "database": True, "cells": True, "lease": True},
    }
    await lilota.stop()
    assert (await client.get("/tasks/healthz")).status_code == 200
    stopped = await client.get("/tasks/readyz")
    assert stopped.status_code == 503
    assert stopped.json()["status"] == "unavailable"
    refused = await client.post("/tasks/add", json=1)
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0


async def test_a_full_queue(make_lilota: MakeLilota, mount: Mount) -> None:
    """503, and Retry-After says when there is likely to be room."""
    lilota = make_lilota(number_of_processes=0)
    lilota.register(public=True, max_pending=1)(add)
    async with lilota, client_of(mount(lilota)) as client:
        assert (await client.post("/tasks/add", json=1)).status_code == 202
        full = await client.post("/tasks/add", json=1)
        assert full.status_code == 503
        assert int(full.headers["retry-after"]) >= 1


async def test_without_a_database(
    client: httpx.AsyncClient, lilota: Lilota, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 with Retry-After, and nothing about the database."""

    async def refuse(*_: object, **__: object) -> None:
        raise StoreUnavailable("postgresql://secret-host/app cannot be used")

    monkeypatch.setattr("lilota_async.storage.queries.read", refuse)
    monkeypatch.setattr("lilota_async.storage.reader.ask", refuse)
    monkeypatch.setattr("lilota_async.storage.browsing.read", refuse)
    for path in ("/tasks/", f"/tasks/{NOWHERE}", f"/tasks/{NOWHERE}/events"):
        answer = await client.get(path)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert "secret-host" not in answer.text
    ready = await client.get("/tasks/readyz")
    assert (ready.status_code, ready.json()["checks"]["database"]) == (503, False)


async def test_tags_of_the_request(lilota: Lilota, mount: Mount) -> None:
    """A callable gives each scheduled task its tags, sync or async."""

    async def tags(request: Any) -> list[str]:
        return [f"user:{request.headers['x-user']}"]

    async with client_of(mount(lilota, tags=tags)) as client:
        answer = await client.post("/tasks/add", json=1, headers={"x-user": "ann"})
    task = await lilota.get_task_by_id(TaskId(answer.json()["id"]))
    assert task is not None
    assert task.tags == ["user:ann"]


@pytest.mark.parametrize("root_path", ["", "/behind/proxy"])
async def test_behind_a_prefix(lilota: Lilota, mount: Mount, root_path: str) -> None:
    """The place of a task is a path that the client can ask for, whatever stands before it."""
    app = mount(lilota)

    async def proxied(scope: Any, receive: Any, send: Any) -> None:
        path = root_path + scope["path"]
        await app({**scope, "root_path": root_path, "path": path}, receive, send)

    async with client_of(proxied) as client:
        answer = await client.post("/tasks/add", json=1)
    assert answer.headers["location"] == f"{root_path}/tasks/{answer.json()['id']}"


async def test_waiting_for_a_result_ends(
    client: httpx.AsyncClient, lilota: Lilota, directory: Path
) -> None:
    """`?wait=` returns what is known when the time is over."""
    task_id = await lilota.schedule(wait_for_mark, str(directory / "never"))
    async with asyncio.timeout(DEADLINE):
        answer = await client.get(f"/tasks/{task_id}/result", params={"wait": 1})
    assert answer.status_code == 202
    assert answer.json()["output"] is None
    assert await lilota.cancel(task_id)


async def test_run_again_while_another_has_the_key(
    client: httpx.AsyncClient, lilota: Lilota
) -> None:
    """409, since that one would have to end first."""
    task_id = await lilota.schedule("fail", "once", unique_key="key")
    await lilota.wait(task_id, timeout=DEADLINE)
    held = await lilota.schedule("fail", "again", unique_key="key", delay=3600)
    answer = await client.post(f"/tasks/{task_id}/retry")
    assert answer.status_code == 409
    assert "unique key" in answer.json()["detail"]
    assert await lilota.cancel(held)


async def test_a_task_that_is_deleted_while_its_result_is_awaited(
    client: httpx.AsyncClient, lilota: Lilota
) -> None:
    """404, as for any that is not there."""
    task_id = await lilota.schedule("add", 1, delay=3600)
    waiting = asyncio.create_task(client.get(f"/tasks/{task_id}/result", params={"wait": 30}))
    async with asyncio.timeout(DEADLINE):
        while task_id not in lilota._node.events._listeners:  # type: ignore[union-attr]
            await asyncio.sleep(0.01)
        assert await lilota.delete_task_by_id(task_id)
        assert (await waiting).status_code == 404


async def test_tags_are_several(lilota: Lilota, mount: Mount) -> None:
    """One text is a mistake of the application's, and not many short tags."""
    async with client_of(mount(lilota, tags=lambda _: "alice")) as client:
        with pytest.raises(ConfigurationError, match=r"tags=\['alice'\]"):
            await client.post("/tasks/add", json=1)
    assert await lilota.get_all_tasks() == []
