"""Who may do what: authorization, and requests that another site makes a browser send."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from lilota_async import Lilota, Task
from lilota_async.errors import ConfigurationError
from lilota_async.integrations import allow_all
from lilota_async.integrations.authorization import Guard
from lilota_async.integrations.dashboard import dashboard
from lilota_async.integrations.fastapi import router as fastapi_router
from lilota_async.integrations.starlette import router
from tests.api.support import MakeLilota
from tests.web.support import DEADLINE, client_of
from tests.web.tasks import add, bill

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]

CHANGES = ("/add", "/{id}/cancel", "/{id}/retry")
LOOKS = ("/", "/{id}", "/{id}/result", "/{id}/events")


@pytest.fixture
async def lilota(make_lilota: MakeLilota) -> AsyncIterator[Lilota]:
    """A started Lilota with one public task."""
    lilota = make_lilota(bill)
    lilota.register(public=True)(add)
    async with lilota:
        yield lilota


async def finished(lilota: Lilota, **options: Any) -> str:
    """The id of a task that is completed."""
    task_id = await lilota.schedule("add", 1, **options)
    await lilota.wait(task_id, timeout=DEADLINE)
    return str(task_id)


@pytest.mark.parametrize("make", [router, fastapi_router])
def test_authorize_is_required(make: Any) -> None:
    """Left out or None, the router is not made; everybody must be spelled out."""
    lilota = Lilota()
    with pytest.raises(TypeError, match="authorize"):
        make(lilota)
    with pytest.raises(ConfigurationError, match="allow_all"):
        make(lilota, authorize=None)
    make(lilota, authorize=allow_all)


async def test_what_is_denied_is_not_done(lilota: Lilota) -> None:
    """403 for everything but health, and nothing has changed."""
    task_id = await finished(lilota)
    async with client_of(router(lilota, authorize=lambda *_: False)) as client:
        for path in LOOKS:
            assert (await client.get(path.format(id=task_id))).status_code == 403
        for path in CHANGES:
            assert (await client.post(path.format(id=task_id), json=1)).status_code == 403
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/readyz")).status_code == 200
    (task,) = await lilota.get_all_tasks()
    assert task.status == "completed"


async def test_only_true_is_a_yes(lilota: Lilota) -> None:
    """A coroutine is awaited, and a value that only looks like a yes is none."""
    asked: list[tuple[Any, Any]] = []

    async def authorize(request: Request, action: str, task: Task | None) -> Any:
        asked.append((action, task and str(task.id)))
        return True if request.headers.get("x-user") == "ann" else "yes"

    task_id = await finished(lilota)
    async with client_of(router(lilota, authorize=authorize)) as client:
        assert (await client.get(f"/{task_id}")).status_code == 403
        assert (await client.get(f"/{task_id}", headers={"x-user": "ann"})).status_code == 200
        assert (await client.get("/", headers={"x-user": "ann"})).json()["tasks"]
        await client.post("/add", json=1, headers={"x-user": "ann"})
    assert asked == [
        ("read", task_id),
        ("read", task_id),
        ("list", None),
        ("list", task_id),
        ("schedule", None),
    ]


async def test_lists_hold_what_one_may_see(lilota: Lilota) -> None:
    """A task that is somebody else's is in no list, and 403 by its id."""
    own = await finished(lilota, tags=["user:ann"])
    other = await finished(lilota, tags=["user:bob"])

    def authorize(request: Request, _action: str, task: Task | None) -> bool:
        return task is None or f"user:{request.headers['x-user']}" in (task.tags or ())

    client = client_of(router(lilota, authorize=authorize), headers={"x-user": "ann"})
    async with client:
        listed = (await client.get("/")).json()["tasks"]
        assert [task["id"] for task in listed] == [own]
        assert (await client.get(f"/{other}")).status_code == 403


async def test_authorize_may_answer_by_itself(lilota: Lilota) -> None:
    """An HTTPException, such as 401 with a challenge, is the answer."""

    def authorize(*_: object) -> bool:
        raise HTTPException(401, "Sign in", {"www-authenticate": "Bearer"})

    async with client_of(router(lilota, authorize=authorize)) as client:
        answer = await client.get("/")
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


async def test_nothing_changes_by_get(lilota: Lilota) -> None:
    """The routes that change something answer to POST only."""
    task_id = await finished(lilota)
    async with client_of(router(lilota, authorize=allow_all)) as client:
        for path in CHANGES[1:]:
            for method in ("GET", "HEAD", "PUT", "DELETE"):
                answer = await client.request(method, path.format(id=task_id))
                assert answer.status_code in (404, 405)
    (task,) = await lilota.get_all_tasks()
    assert (task.status, task.attempts) == ("completed", 1)


FOREIGN: list[dict[str, str]] = [
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site", "origin": "http://other.testserver"},
    {"sec-fetch-site": "cross-site", "origin": "http://testserver"},
    {"origin": "http://evil.example"},
    {"origin": "http://testserver.evil.example"},
    {"origin": "http://testserver:81"},
    {"origin": "null"},
    {"origin": ""},
    {"origin": "http://[broken"},
    {"origin": "http://testserver:99999"},
]
OWN: list[dict[str, str]] = [
    {},
    {"sec-fetch-site": "same-origin", "origin": "http://testserver"},
    {"sec-fetch-site": "none"},
    {"origin": "http://testserver"},
    {"origin": "http://testserver:80"},
    {"origin": "https://testserver", "host": "testserver:443"},
    {"sec-fetch-site": "cross-site", "origin": "https://front.example"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
async def test_other_sites_change_nothing(lilota: Lilota, headers: dict[str, str]) -> None:
    """A browser that another site has made ask gets 403."""
    task_id = await finished(lilota)
    async with client_of(router(lilota, authorize=allow_all)) as client:
        for path in CHANGES:
            answer = await client.post(path.format(id=task_id), json=1, headers=headers)
            assert answer.status_code == 403
    assert len(await lilota.get_all_tasks()) == 1


@pytest.mark.parametrize("headers", OWN, ids=str)
async def test_own_pages_and_other_clients_may(lilota: Lilota, headers: dict[str, str]) -> None:
    """The page's own requests, those of clients that are no browsers, and trusted sites."""
    app = router(lilota, authorize=allow_all, trusted_origins=["https://Front.example"])
    async with client_of(app) as client:
        assert (await client.post("/add", json=1, headers=headers)).status_code == 202


@pytest.mark.parametrize(
    "origins",
    ["https://a.example", ["a.example"], ["https://a/b"], ["https://a?b"], ["http://["], [3], 5],
)
def test_origins_are_checked(origins: Any) -> None:
    """A text instead of a list, or what is no origin, is refused at once."""
    with pytest.raises(ConfigurationError):
        Guard(allow_all, origins)


@pytest.mark.parametrize("make", [router, fastapi_router, dashboard])
@pytest.mark.parametrize("wrong", [None, Lilota, "sqlite:///lilota.db"], ids=str)
def test_a_lilota_is_required(make: Any, wrong: Any) -> None:
    """What is none is refused before the first request."""
    with pytest.raises(ConfigurationError, match="must be a Lilota"):
        make(wrong, authorize=allow_all)


@pytest.mark.parametrize("make", [router, fastapi_router])
def test_tags_come_from_a_callable(make: Any) -> None:
    """Tags that are the same for all are refused with what to give."""
    with pytest.raises(ConfigurationError, match="tags must be a callable"):
        make(Lilota(), authorize=allow_all, tags=["web"])


def test_show_unregistered_is_a_yes_or_a_no() -> None:
    """A text that means no does not show what is secret."""
    wrong: Any = "no"
    with pytest.raises(ConfigurationError, match="show_unregistered must be True or False"):
        dashboard(Lilota(), authorize=allow_all, show_unregistered=wrong)


@pytest.mark.parametrize("redact", ["password", b"x", 3, [""], [3]])
def test_redact_is_checked(redact: Any) -> None:
    """Field names, or True; a single text is a mistake."""
    with pytest.raises(ConfigurationError, match="redact"):
        Lilota().register(redact=redact)(add)


async def test_answers_are_kept_by_nobody(lilota: Lilota) -> None:
    """No cache keeps them, and no browser guesses their type."""
    async with client_of(router(lilota, authorize=allow_all)) as client:
        answers = [await client.get("/"), await client.post("/add", json=1)]
    for answer in answers:
        assert isinstance(answer, httpx.Response)
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_core_does_not_need_the_web(tmp_path: Path) -> None:
    """Importing and making a Lilota imports no web framework."""
    import subprocess
    import sys

    script = (
        "import sys, lilota_async.core, lilota_async.node; lilota_async.core.Lilota();"
        "print([m for m in ('starlette', 'jinja2', 'sse_starlette') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
