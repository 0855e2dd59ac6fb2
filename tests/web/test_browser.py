"""The pages in a real browser, Debian's chromium, before a real server.

Without a chromium they are skipped, but with CI in the environment they fail.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Dialog,
    Page,
    ViewportSize,
    expect,
    sync_playwright,
)

from lilota_async import Lilota
from tests.apps import ROOT, Server, free_port, serving
from tests.web.tasks import add, fail

ROWS = 10_000
XSS = "<img src=x onerror=alert(1)><script>alert(2)</script>"
PHONE: ViewportSize = {"width": 360, "height": 740}
TOO_WIDE = """width => document.documentElement.scrollWidth <= width ? [] :
    [...document.querySelectorAll("body *")]
    .filter(element => element.getBoundingClientRect().right > width + 1)
    .map(element => element.outerHTML.slice(0, 100))"""
MILLISECONDS = 30_000
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A chromium without a screen."""
    chromium = shutil.which("chromium")
    if chromium is None:
        message = "No chromium: apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    expect.set_options(timeout=MILLISECONDS)
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield browser
        browser.close()


@contextmanager
def open_page(browser: Browser, base: str, scheme: str = "light") -> Iterator[Page]:
    """A page in a context of its own, on which nothing may go wrong."""
    context = browser.new_context(base_url=base, color_scheme=scheme)  # type: ignore[arg-type]
    context.set_default_timeout(MILLISECONDS)
    page = context.new_page()
    wrong: list[str] = []

    def dismiss(dialog: Dialog) -> None:
        wrong.append(dialog.message)
        dialog.dismiss()

    def hear(said: ConsoleMessage) -> None:
        if said.type == "error":
            wrong.append(said.text)

    context.on("weberror", lambda error: wrong.append(str(error.error)))
    context.on("dialog", dismiss)
    context.on("console", hear)
    yield page
    context.close()
    assert wrong == []


def base_of(server: Server) -> str:
    """The address of the server."""
    return str(server.client.base_url)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The site of the tests, with ten thousand ended tasks and one full of markup."""
    directory = tmp_path_factory.mktemp("site")
    path = directory / "site.db"
    with ThreadPoolExecutor(1) as thread:  # Playwright has a loop on this one
        thread.submit(lambda: asyncio.run(fill(f"sqlite:///{path}"))).result()
    mark_ended(path)
    port = free_port()
    command = ["-m", "uvicorn", "--port", str(port), "tests.web.site:app"]
    variables = {"LILOTA_DB_URL": f"sqlite:///{path}", "PYTHONPATH": str(ROOT)}
    with serving(command, directory, port, variables) as server:
        yield server


async def fill(url: str) -> None:
    """Many rows, the newest of which is to be full of markup."""
    lilota = Lilota(url, number_of_processes=0)
    lilota.register(add)
    lilota.register(fail)
    async with lilota:
        await lilota.schedule_many(add, range(ROWS))
        await lilota.schedule(fail, XSS, tags=[XSS])


def mark_ended(path: Path) -> None:
    """As if all of them had run."""
    failure = json.dumps(
        {"kind": "error", "type": "RuntimeError", "message": XSS, "traceback": XSS}
    )
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(
            "UPDATE lilota_task SET status = 'completed', attempts = 1, progress_percentage = 100,"
            " start_date_time = created_at, end_date_time = created_at"
        )
        connection.execute(
            "UPDATE lilota_task SET status = 'failed', output = ?, log = ?, exception = ?,"
            " checkpoint = ?, unique_key = ? WHERE name = 'fail'",
            (f'"{XSS}"', XSS, failure, f'"{XSS}"', XSS),
        )
        connection.commit()


def test_the_story_of_a_report(browser: Browser, tmp_path: Path) -> None:
    """A sample becomes a chart before one's eyes; another is cancelled; the dashboard tells."""
    port = free_port()
    command = [str(ROOT / "examples" / "10_report_service" / "app.py")]
    slowly = {"STEP_SECONDS": "0.5"}
    with (
        serving(command, tmp_path, port, slowly) as server,
        open_page(browser, base_of(server)) as page,
    ):
        page.goto("/")
        page.get_by_role("button", name="Use a sample").click()
        page.wait_for_function(
            "document.getElementById('progress').value > 0"
            " && document.getElementById('progress').value < 100"
            " && document.getElementById('log').textContent.includes('2025-02: ')"
        )
        expect(page.locator("#status")).to_have_text("completed")
        assert page.locator("#log").inner_text().count("2025-03: ") == 1
        expect(page.locator("#chart")).to_be_visible()
        page.wait_for_function("document.getElementById('chart').naturalWidth > 0")
        with page.expect_download() as download:
            page.get_by_role("link", name="Download the chart").click()
        assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")

        page.reload()  # it comes back to its report
        expect(page.locator("#chart")).to_be_visible()
        assert page.locator("#log").inner_text().count("2025-03: ") == 1

        page.get_by_role("button", name="Use a sample").click()
        expect(page.locator("#log")).to_contain_text("2025-01: ")
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("#status")).to_have_text("cancelled")

        page.get_by_role("link", name="Dashboard").click()
        expect(page.get_by_role("heading", name="By name")).to_be_visible()
        page.get_by_role("link", name="Tasks").click()
        expect(page.locator("tbody tr")).to_have_count(2)
        expect(page.locator("tbody .badge")).to_have_text(["cancelled", "completed"])


def test_ten_thousand_rows(browser: Browser, site: Server) -> None:
    """The list filters, and pages from the newest to older ones and back."""
    with open_page(browser, base_of(site)) as page:
        page.goto("/lilota/tasks")
        expect(page.locator("#live")).to_have_text("live")
        expect(page.locator("tbody tr")).to_have_count(50)
        first = page.locator("tbody a").first.get_attribute("href")
        for _ in range(3):
            page.get_by_role("link", name="Older").click()
            expect(page.locator("tbody tr")).to_have_count(50)
        assert str(first) not in page.content()
        page.get_by_role("link", name="Newest").click()
        assert page.locator("tbody a").first.get_attribute("href") == first
        page.get_by_label("Status").select_option("failed")
        expect(page.locator("tbody tr")).to_have_count(1)
        assert "status=failed" in page.url
        expect(page.locator("#live")).to_have_text("live")  # its script has heard of the keyboard
        page.keyboard.press("/")  # to the search, by keyboard
        page.keyboard.type("onerror")
        page.keyboard.press("Enter")
        page.wait_for_url(re.compile("error=onerror"))
        expect(page.locator("tbody tr")).to_have_count(1)
        page.get_by_label("Error says").fill("nothing like it")
        page.get_by_role("button", name="Find").click()
        expect(page.locator(".empty")).to_contain_text("No task fits")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_markup_is_text(browser: Browser, site: Server, scheme: str) -> None:
    """No field of a task runs a script, before and after a page was changed by its stream."""
    with open_page(browser, base_of(site), scheme) as page:
        for path in ("/lilota/", "/lilota/tasks?status=failed"):
            page.goto(path)
            expect(page.locator("#live")).to_have_text("live")
            expect(page.locator("#page")).to_contain_text(XSS)
        page.locator("tbody a").first.click()
        page.get_by_role("link", name="Show").click()
        expect(page.locator("#live")).to_have_text("live")
        expect(page.locator("#log")).to_have_text(XSS)
        expect(page.locator(".payload")).to_have_count(3)
        for field in (".message", ".traceback", ".payload >> nth=0", ".facts .tag"):
            expect(page.locator(field).first).to_contain_text(XSS)
        assert page.locator("#main img, #main script").count() == 0


def test_a_second_tab_follows(browser: Browser, site: Server, tmp_path: Path) -> None:
    """What one tab cancels and runs again, the other shows without being loaded again."""
    mark = tmp_path / "mark"
    answer = site.client.post("/tasks/wait_for_mark", json=str(mark))
    task_id = answer.json()["id"]
    with open_page(browser, base_of(site)) as page:
        page.goto(f"/lilota/tasks/{task_id}")
        expect(page.locator("#log")).to_have_text("waiting\n")
        other = page.context.new_page()
        other.goto("/lilota/tasks?name=wait_for_mark")
        expect(other.locator("tbody .badge")).to_have_text("running")
        other.evaluate("window.notLoadedAgain = true")
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator(".notice:not(#trouble)")).to_contain_text("cancelled")
        expect(page.locator("h1 + .badge")).to_have_text("cancelled")
        expect(other.locator("tbody .badge")).to_have_text("cancelled")
        mark.touch()
        page.get_by_role("button", name="Run again").click()
        expect(other.locator("tbody .badge")).to_have_text("completed")
        expect(page.locator("#log")).to_have_text("waiting\nseen\n")
        assert other.evaluate("window.notLoadedAgain")


def test_themes_and_sizes(browser: Browser, site: Server) -> None:
    """Both themes, the one that was chosen kept; nothing is wider than a phone."""
    ground = "getComputedStyle(document.body).backgroundColor"
    with open_page(browser, base_of(site)) as page:
        page.goto("/lilota/")
        light = page.evaluate(ground)
        page.get_by_role("button", name="Switch to the dark theme").click()
        dark = page.evaluate(ground)
        assert light != dark
        page.goto("/lilota/tasks")
        assert page.evaluate(ground) == dark
        page.emulate_media(color_scheme="dark")
        page.get_by_role("button", name="Switch to the light theme").click()
        assert page.evaluate(ground) == light
        page.set_viewport_size(PHONE)
        for path in ("/lilota/", "/lilota/tasks", "/lilota/tasks?status=failed"):
            page.goto(path)
            assert page.evaluate(TOO_WIDE, PHONE["width"]) == [], path
        page.keyboard.press("Tab")  # the first stop leads past the head of the page
        assert page.evaluate("document.activeElement.className") == "skip"
