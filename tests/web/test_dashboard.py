"""The dashboard's pages without a browser: what they show, what they hide, what they refuse."""

from __future__ import annotations

import asyncio
import html
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from sqlalchemy import update
from sse_starlette.event import ServerSentEvent
from starlette.applications import Starlette
from starlette.requests import Request

from lilota_async import Lilota, Node, StoreUnavailable, Task, TaskId
from lilota_async.errors import ConfigurationError
from lilota_async.integrations import allow_all
from lilota_async.integrations.authorization import Guard
from lilota_async.integrations.dashboard import dashboard, live, rendering
from tests.api.support import MakeLilota, row_when, session
from tests.web.support import DEADLINE, client_of, events_of, served
from tests.web.tasks import add, bill, fail, fail_with_secret, wait_for_mark

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]
SNAPSHOTS = "lilota_async.integrations.dashboard.snapshots"
XSS = "<img src=x onerror=alert(1)>\"'<script>alert(2)</script>{{7*7}}"


def mounted(lilota: Lilota, **options: Any) -> Starlette:
    """An application with the dashboard at /lilota."""
    app = Starlette()
    app.mount("/lilota", dashboard(lilota, **{"authorize": allow_all, **options}))
    return app


@pytest.fixture(autouse=True)
def always_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read is not kept for those who look a moment later."""
    for name in ("FRESH_SECONDS", "HISTORY_FRESH_SECONDS", "PAUSE_FACTOR"):
        monkeypatch.setattr(f"{SNAPSHOTS}.{name}", 0.0)


@pytest.fixture
async def lilota(make_lilota: MakeLilota) -> AsyncIterator[Lilota]:
    """A started Lilota with tasks of every kind."""
    lilota = make_lilota(add, fail, wait_for_mark)
    lilota.register(redact=["secret"])(bill)
    async with lilota:
        yield lilota


@pytest.fixture
async def client(lilota: Lilota) -> AsyncIterator[httpx.AsyncClient]:
    """A client that keeps cookies, like a browser."""
    async with client_of(mounted(lilota)) as client:
        yield client


async def ended(lilota: Lilota, name: str, value: Any, **options: Any) -> Task:
    """A task of this name, once it has ended."""
    task_id = await lilota.schedule(name, value, **options)
    return await lilota.wait(task_id, timeout=DEADLINE)


async def shown(client: httpx.AsyncClient, path: str) -> str:
    """The text of a page."""
    answer = await client.get(f"/lilota{path}")
    assert answer.status_code == 200, answer.text
    return answer.text


async def press(client: httpx.AsyncClient, task: Task, action: str) -> httpx.Response:
    """Send the form of a task's page, as its button does."""
    page = await shown(client, f"/tasks/{task.id}")
    token = re.search(r'name="csrf" value="([^"]+)"', page)
    assert token
    return await client.post(f"/lilota/tasks/{task.id}/{action}", data={"csrf": token[1]})


def test_authorize_is_required() -> None:
    """No dashboard without saying who may see it."""
    make: Any = dashboard
    with pytest.raises(TypeError, match="authorize"):
        make(Lilota())
    with pytest.raises(ConfigurationError, match="allow_all"):
        make(Lilota(), authorize=True)


async def test_the_first_screen_answers(client: httpx.AsyncClient, lilota: Lilota) -> None:
    """All is well at first; then what fails and why, first of all."""
    await ended(lilota, "add", 1)
    assert "All is well" in await shown(client, "/")
    await ended(lilota, "fail", "no paper in printer 7")
    page = html.unescape(await shown(client, "/"))
    assert "Needs attention" in page
    verdict = page.split('class="verdict bad"')[1].split("</section>")[0]
    assert "1 of 2 tasks that ended in the last hour failed “fail”" in verdict
    assert "RuntimeError: no paper in printer 7" in verdict


async def test_names_that_nobody_runs_are_told(make_lilota: MakeLilota) -> None:
    """Tasks that wait for a node, and nodes that are silent, need attention."""
    lilota = make_lilota(add, number_of_processes=0)
    async with lilota:
        await lilota.schedule("add", 1)
        async with session(str(lilota.database.url)) as own:
            long_ago = datetime(2001, 1, 1, tzinfo=UTC)
            times = {"started_at": long_ago, "last_seen_at": long_ago}
            numbers = {"pid": 1, "pid_started": 1, "slots": 4, "lease_seconds": 30.0}
            texts = {"machine": "elsewhere", "host": "lost-7", "version": "1"}
            own.add(Node(id=TaskId(), **times, **numbers, **texts))
            await own.commit()
        async with client_of(mounted(lilota)) as client:
            page = html.unescape(await shown(client, "/"))
    assert "Needs attention" in page
    assert "No node that runs tasks is up." in page
    assert "Node lost-7, process 1, has been silent for" in page


async def test_list_filters_and_pages(client: httpx.AsyncClient, lilota: Lilota) -> None:
    """By status, name, tag and text in errors; older ones on pages of their own."""
    for task_id in await lilota.schedule_many("add", range(60), tags=["bulk"]):
        await lilota.wait(task_id, timeout=DEADLINE)
    failed = await ended(lilota, "fail", "out of paper")
    page = await shown(client, "/tasks")
    assert page.count('data-label="Status"') == 50
    older = re.search(r'rel="next" href="/lilota(/tasks\?[^"]+)"', page)
    assert older
    rest = await shown(client, html.unescape(older[1]))
    assert rest.count('data-label="Status"') == 11
    assert "⇤ Newest" in rest
    for query in ("status=failed", "name=fail", "error=of+PAPER"):
        found = await shown(client, f"/tasks?{query}")
        assert found.count('data-label="Status"') == 1
        assert str(failed.id) in found
    assert (await shown(client, "/tasks?tag=bulk&status=completed")).count("data-label") > 50
    assert "No task fits" in await shown(client, "/tasks?tag=bul")
    for query in ("status=odd", "before=x", "name=%00", f"tag={'x' * 300}"):
        assert (await client.get(f"/lilota/tasks?{query}")).status_code == 404


async def test_payloads_are_hidden_until_asked_for(
    client: httpx.AsyncClient, lilota: Lilota
) -> None:
    """And what redact= names even then, wherever it stands."""
    task = await ended(lilota, "bill", {"amount": 4711, "secret": "tiger-17"})
    page = await shown(client, f"/tasks/{task.id}")
    assert "4711" not in page
    full = html.unescape(await shown(client, f"/tasks/{task.id}?show=payloads"))
    assert '"amount": 4711' in full
    assert '"secret": "[redacted]"' in full
    assert "billing with [redacted]" in full
    for path in ("/", "/tasks", f"/tasks/{task.id}?show=payloads"):
        assert "tiger-17" not in await shown(client, path)


async def test_unregistered_names_are_not_shown(lilota: Lilota, make_lilota: MakeLilota) -> None:
    """Where it is not known what of a task to hide, nothing of its payloads is shown."""
    task = await ended(lilota, "bill", {"amount": 4711, "secret": "tiger-17"})
    broken = await ended(lilota, "fail", "tiger-18")
    other = make_lilota(db_url=lilota.database.url, number_of_processes=0)
    paths = [f"/tasks/{t.id}?show=payloads" for t in (task, broken)] + ["/", "/tasks"]
    async with client_of(mounted(other)) as client:
        for path in paths:
            page = await shown(client, path)
            assert "tiger" not in page
            assert "4711" not in page
    async with client_of(mounted(other, show_unregistered=True)) as client:
        assert "tiger-17" in await shown(client, paths[0])


async def test_buttons(client: httpx.AsyncClient, lilota: Lilota, directory: Path) -> None:
    """Cancel, run again, delete; each leads back to a page that says so."""
    mark = directory / "mark"
    task = await row_when(
        lilota,
        await lilota.schedule(wait_for_mark, str(mark)),
        lambda row: row.progress_percentage == 10,
    )
    refused = await press(client, task, "delete")
    assert refused.status_code == 409
    cancelled = await press(client, task, "cancel")
    assert cancelled.status_code == 303
    assert cancelled.headers["location"] == f"/lilota/tasks/{task.id}?notice=cancelled"
    mark.touch()
    assert (await press(client, task, "retry")).status_code == 303
    await lilota.wait(task.id, timeout=DEADLINE)
    deleted = await press(client, task, "delete")
    assert deleted.headers["location"] == "/lilota/tasks?notice=deleted"
    assert await lilota.get_task_by_id(task.id) is None
    assert "is deleted" in await shown(client, "/tasks?notice=deleted")
    assert (await client.get(f"/lilota/tasks/{task.id}")).status_code == 404


async def test_a_forged_form_does_nothing(client: httpx.AsyncClient, lilota: Lilota) -> None:
    """Without the token of the browser's cookie, or from another site, or by GET."""
    task = await ended(lilota, "add", 1)
    await shown(client, f"/tasks/{task.id}")
    path = f"/lilota/tasks/{task.id}/delete"
    token = client.cookies["lilota_csrf"]
    for form in ({}, {"csrf": ""}, {"csrf": token[:-1] + "é"}, {"csrf": "x" * 20_000}):
        assert (await client.post(path, data=form)).status_code in (403, 413)
    foreign = {"origin": "https://evil.example"}
    assert (await client.post(path, data={"csrf": token}, headers=foreign)).status_code == 403
    assert (await client.get(path)).status_code == 405
    async with client_of(mounted(lilota)) as without:
        for cookies in ({}, {"lilota_csrf": ""}):
            headers = {"cookie": "; ".join(f"{k}={v}" for k, v in cookies.items())}
            answer = await without.post(path, data={"csrf": ""}, headers=headers)
            assert answer.status_code == 403
    assert await lilota.get_task_by_id(task.id) is not None


async def test_what_is_denied_is_neither_shown_nor_done(lilota: Lilota) -> None:
    """403 on every page; with payloads denied, a page without them and without their button."""
    task = await ended(lilota, "add", 4711)
    async with client_of(mounted(lilota, authorize=lambda *_: False)) as client:
        for path in ("/", "/live", "/tasks", "/tasks/live", f"/tasks/{task.id}"):
            answer = await client.get(f"/lilota{path}")
            assert answer.status_code == 403
            assert str(task.id) not in answer.text.replace(path, "")

    def no_payloads(_request: Request, action: str, _task: Task | None) -> bool:
        return action in ("list", "read")

    async with client_of(mounted(lilota, authorize=no_payloads)) as client:
        page = await shown(client, f"/tasks/{task.id}")
        assert "show=payloads" not in page
        assert "Run again" not in page
        denied = await client.get(f"/lilota/tasks/{task.id}?show=payloads")
        assert denied.status_code == 403
        assert "4711" not in denied.text


async def test_every_field_is_text(client: httpx.AsyncClient, lilota: Lilota) -> None:
    """Markup in the fields of tasks and nodes is shown, not interpreted, on every page."""
    lilota.register(XSS[:60])(bill)
    task = await ended(lilota, "fail", XSS, tags=[XSS])
    values = {
        "name": XSS[:60],
        "input": {XSS: XSS},
        "output": [XSS],
        "checkpoint": XSS,
        "log": XSS,
        "unique_key": XSS,
        "concurrency_key": XSS,
        "exception": {
            "kind": XSS,
            "type": XSS,
            "message": XSS,
            "traceback": XSS,
            XSS: XSS,
        },
        "failures": [{"attempt": XSS, "kind": XSS, "type": XSS, "message": XSS}],
    }
    async with session(str(lilota.database.url)) as own:
        await own.execute(update(Task).where(Task.id == task.id).values(**values))
        await own.execute(update(Node).values(host=XSS, version="<script>"))
        await own.commit()
    pages = ["/", "/tasks", f"/tasks/{task.id}?show=payloads", "/tasks?error=%3Cscript%3E&tag=%3C"]
    for path in pages:
        page = await shown(client, path)
        assert "<img src=x" not in page
        assert "<script>alert" not in page
        assert "49" not in re.findall(r"alert\(2\)&lt;/script&gt;(.{1,8})", page)
    for path in pages[:3]:
        assert "&lt;script&gt;alert(2)" in await shown(client, path)


async def test_a_row_that_was_edited_by_hand(client: httpx.AsyncClient, lilota: Lilota) -> None:
    """Texts where JSON should be, and a status that nobody knows, still make a page."""
    task = await ended(lilota, "fail", "x")
    async with session(str(lilota.database.url)) as own:
        connection = await own.connection()
        await connection.exec_driver_sql(
            "UPDATE lilota_task SET exception = 'no json', failures = '{}', tags = '3',"
            " status = 'odd'"
        )
        await own.commit()
    for path in ("/", "/tasks", f"/tasks/{task.id}?show=payloads"):
        await shown(client, path)


async def test_headers(client: httpx.AsyncClient, lilota: Lilota) -> None:
    """Every answer forbids foreign scripts and frames; no page has a script or style inside."""
    task = await ended(lilota, "add", 1)
    for path in ("/", "/tasks", f"/tasks/{task.id}", "/static/dashboard.js", "/nothing"):
        answer = await client.get(f"/lilota{path}")
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        if "html" in answer.headers["content-type"]:
            assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=", answer.text)
            assert "http:" not in answer.text.replace("http://www.w3.org", "")
    cookie = (await client_of(mounted(lilota)).get("/lilota/")).headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "path=/lilota" in cookie


async def test_behind_a_prefix(lilota: Lilota) -> None:
    """Links, forms and streams begin with what a proxy puts before them."""
    task = await ended(lilota, "add", 1)
    app = mounted(lilota)

    async def proxied(scope: Any, receive: Any, send: Any) -> None:
        path = "/behind" + scope["path"]
        await app({**scope, "root_path": "/behind", "path": path}, receive, send)

    async with client_of(proxied) as client:
        for path in ("/", "/tasks", f"/tasks/{task.id}"):
            page = await shown(client, path)
            links = re.findall(r'(?:href|src|action|data-live)="([^"#]+)"', page)
            assert links
            assert all(link.startswith("/behind/lilota/") for link in links), links


async def test_pages_follow(lilota: Lilota, directory: Path) -> None:
    """The stream of a task's page brings how it is, what it writes, and its end."""
    mark = directory / "mark"
    task_id = await lilota.schedule(wait_for_mark, str(mark))
    seen: list[str] = []
    log = ""
    async with (
        asyncio.timeout(DEADLINE),
        served(mounted(lilota)) as client,
        client.stream("GET", f"/lilota/tasks/{task_id}/live") as response,
    ):
        async for event in events_of(response):
            if event.kind == "log":
                log += event.data["text"]
            else:
                seen.append(event.data["html"])
            if "waiting" in log and 'value="10"' in seen[-1]:
                mark.touch()
            if "badge completed" in seen[-1] and "seen" in log:
                break
    assert log == "waiting\nseen\n"
    assert "badge running" in "".join(seen[:-1])


async def test_pages_on_every_database(make_lilota: MakeLilota, database_url: str) -> None:
    """The pages are the same, whichever database has the tasks."""
    lilota = make_lilota(add, fail, db_url=database_url)
    async with lilota:
        done = await ended(lilota, "add", 1, tags=["vip"])
        await ended(lilota, "fail", "no paper in printer 7")
        async with client_of(mounted(lilota)) as client:
            for path in ("/", "/?hours=24", "/tasks", "/tasks?error=PAPER"):
                assert "no paper in printer 7" in await shown(client, path)
            assert str(done.id) in await shown(client, "/tasks?tag=vip&name=add")
            assert "completed" in await shown(client, f"/tasks/{done.id}?show=payloads")


async def test_many_viewers_read_once(
    client: httpx.AsyncClient, lilota: Lilota, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred who look at the overview at the same time cost what one does, templates too."""
    reads = loads = 0
    original, load = lilota.stats, rendering._load
    monkeypatch.setattr(f"{SNAPSHOTS}.FRESH_SECONDS", DEADLINE)

    async def counted() -> Any:
        nonlocal reads
        reads += 1
        return await original()

    def counted_load() -> Any:
        nonlocal loads
        loads += 1
        return load()

    monkeypatch.setattr(lilota, "stats", counted)
    monkeypatch.setattr(rendering, "_load", counted_load)
    await asyncio.gather(*(shown(client, "/") for _ in range(100)))
    assert (reads, loads) == (1, 1)


async def test_without_a_database(
    client: httpx.AsyncClient, lilota: Lilota, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that says so, with 503."""

    async def refuse(*_: object, **__: object) -> None:
        raise StoreUnavailable("postgresql://secret-host/app cannot be used")

    monkeypatch.setattr(lilota, "stats", refuse)
    answer = await client.get("/lilota/")
    assert answer.status_code == 503
    assert "The database cannot be used" in answer.text
    assert "secret-host" not in answer.text


def test_everything_is_in_the_wheel() -> None:
    """Templates and what pages load lie in the package, of which the wheel is made."""
    folder = Path(dashboard.__code__.co_filename).parent
    names = {path.name for path in (folder / "static").iterdir()}
    assert names >= {"dashboard.css", "dashboard.js", "icon.svg", "theme.js"}
    assert (folder / "templates" / "base.html").exists()


async def test_a_message_that_is_hidden_is_not_found(
    client: httpx.AsyncClient, lilota: Lilota
) -> None:
    """Whoever searches for parts of a secret would learn it letter by letter."""
    lilota.register(redact=["secret"])(fail_with_secret)
    hidden = await ended(lilota, "fail_with_secret", {"amount": 1, "secret": "tiger-17"})
    told = await ended(lilota, "fail", "no access for anybody")
    for search in ("tiger-1", "no access", "tiger-2"):
        assert str(hidden.id) not in await shown(client, f"/tasks?error={search}")
    assert str(told.id) in await shown(client, "/tasks?error=no+access")
    assert str(hidden.id) in await shown(client, "/tasks")


async def test_run_again_while_another_has_the_key(
    client: httpx.AsyncClient, lilota: Lilota, directory: Path
) -> None:
    """A page says so."""
    task = await ended(lilota, "fail", "once", unique_key="key")
    held = await lilota.schedule("fail", "again", unique_key="key", delay=3600)
    answer = await press(client, task, "retry")
    assert answer.status_code == 409
    assert "unique key" in answer.text
    assert await lilota.cancel(held)


async def test_a_viewer_who_takes_nothing_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is given up nothing is left of it, however much has come meanwhile."""

    async def written(*_: Any) -> AsyncIterator[ServerSentEvent]:
        while True:
            yield ServerSentEvent("line")
            await asyncio.sleep(0)

    async def page(_request: Request) -> str:
        return "<p>"

    before = asyncio.all_tasks()
    monkeypatch.setattr(live.Live, "_log", written)
    pages: Any = SimpleNamespace(task_html=page)
    nothing: Any = None
    events: Any = live.Live(nothing, Guard(allow_all), nothing, pages)._task(nothing)
    async with asyncio.timeout(10):
        await anext(events)
        while not events.ag_frame.f_locals["queue"].full():
            await asyncio.sleep(0.01)
        await events.aclose()
    assert asyncio.all_tasks() == before
