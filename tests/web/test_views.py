"""What the pages say, decided without a database or a browser."""

from __future__ import annotations

import html
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from lilota_async import Lilota, Task, TaskStatus
from lilota_async.integrations import allow_all
from lilota_async.integrations.dashboard import dashboard, views
from lilota_async.integrations.dashboard.formatting import (
    LONGEST_JSON,
    count,
    duration,
    first_line,
    json,
    pace,
    size,
)
from lilota_async.integrations.payloads import REDACTED, Redaction, masked
from lilota_async.registry import Settings
from lilota_async.storage.history import History
from lilota_async.ticks import Every, Periodic
from tests.api.support import MakeLilota
from tests.web.support import client_of
from tests.web.tasks import add, fail

NOW = datetime(2025, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),  # noqa: RUF001
        (0.0034, "3 ms"),
        (12.44, "12.4 s"),
        (200, "3 min 20 s"),
        (7200, "2 h"),
        (187_000, "2 d 3 h"),
        (-1, "0 ms"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    """One unit or two, as people say it."""
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (count(1234567), "1\u202f234\u202f567"),
        (size(0), "0 B"),
        (size(1023), "1023 B"),
        (size(5 * 1024**3), "5 GiB"),
        (size(5000 * 1024**3), "5000 GiB"),
        (pace(12.345), "12.3/s"),
        (pace(0.5), "30/min"),
        (pace(0), "0/min"),
        (first_line(" a\nb"), "a"),
        (first_line(""), ""),
        (len(first_line("x" * 300)), 200),
    ],
)
def test_values_as_people_read_them(text: object, expected: object) -> None:
    """Few digits, and the unit that fits."""
    assert text == expected


def test_large_payloads_are_cut() -> None:
    """A page does not grow with what a task returns."""
    assert len(json("x" * 10 * LONGEST_JSON)) < LONGEST_JSON + 100
    assert json({"a": [1]}) == '{\n  "a": [\n    1\n  ]\n}'


def history(completed: list[int], failed: list[int]) -> History:
    """What has ended, in steps of a minute."""
    return History(until=NOW, step_seconds=60.0, completed=tuple(completed), failed=tuple(failed))


def test_bars_stand_on_the_ground_and_reach_the_top() -> None:
    """The highest fills the picture, one failure among thousands is seen, nothing is negative."""
    chart = views.chart(history([1000, 0, 0, 99_999], [0, 0, 3, 1]))
    top = chart.bars[3]
    assert top.completed_top == 0
    assert top.failed_height >= 2
    for bar in chart.bars:
        assert bar.completed_height >= 0
        total = bar.completed_top + bar.completed_height + bar.failed_height
        assert total == pytest.approx(views.CHART_HEIGHT, abs=0.02)
    assert (chart.most, chart.completed, chart.failed) == (100_000, 100_999, 4)
    assert chart.begin == NOW - timedelta(minutes=4)
    assert views.chart(history([0, 0], [0, 0])).most == 0


def failed(name: str, exception: Any) -> Task:
    """A task that has failed so."""
    return Task(name=name, status=TaskStatus.FAILED, exception=exception)


def test_failures_are_grouped_by_reason() -> None:
    """The most frequent first, with the newest of its tasks; no message where it might tell."""
    reset = {"kind": "error", "type": "builtins.OSError", "message": "reset\nby peer"}
    crash = {"kind": "crash", "type": "TaskCrashed", "message": "signal 9"}
    tasks = [failed("b", crash), *(failed("a", reset) for _ in range(3)), failed("b", "no json")]
    groups = views.failure_groups(tasks, lambda _: False)
    assert [(g.name, g.kind, g.message, g.number) for g in groups] == [
        ("a", "error", "OSError: reset", 3),
        ("b", "crash", "signal 9", 1),
        ("b", "error", "unreadable", 1),
    ]
    assert groups[0].latest is tasks[1]
    hidden = views.failure_groups(tasks, lambda name: name == "a")
    assert hidden[0].message == "OSError"


def test_next_ticks() -> None:
    """Those of the periodic tasks, the soonest first."""
    hourly = Periodic(rhythm=Every(period=timedelta(hours=1)), catch_up="one")
    daily = Periodic(rhythm=Every(period=timedelta(days=1)), catch_up="one")
    settings = {
        "daily": Settings(periodic=daily),
        "never": Settings(),
        "hourly": Settings(periodic=hourly),
    }
    found = views.ticks(settings, NOW)
    assert [(tick.name, tick.next) for tick in found] == [
        ("hourly", NOW + timedelta(hours=1)),
        ("daily", NOW + timedelta(hours=12)),
    ]


def test_redaction() -> None:
    """Fields at any depth; their values in texts, but not those that would be everywhere."""
    redaction = Redaction(Settings(redact=("password", "card")))
    payload = {
        "user": "ann",
        "login": [{"password": "tiger-17"}],
        "card": {"number": 12345, "x": "y"},
    }
    assert redaction.value(payload) == {
        "user": "ann",
        "login": [{"password": REDACTED}],
        "card": REDACTED,
    }
    secrets = redaction.secrets_of(Task(input=payload, output=None, checkpoint=None))
    assert secrets == ("tiger-17", "12345")
    assert masked("ann: tiger-17 12345 y", secrets) == f"ann: {REDACTED} {REDACTED} y"
    everything = Redaction(Settings(redact=True))
    assert everything.value({"a": 1}) == REDACTED
    assert everything.value(None) is None
    assert Redaction(None).value(payload) == payload
    assert Lilota().settings_of("nothing") is None


async def test_paused_and_held_tasks(make_lilota: MakeLilota) -> None:
    """What is paused and waits is told, and what waits for others has no time to be due at."""
    lilota = make_lilota(add, fail)
    async with lilota, client_of(dashboard(lilota, authorize=allow_all)) as client:
        await lilota.pause(add)
        first = await lilota.schedule(add, 1)
        held = await lilota.schedule(fail, "x", after=[first])
        page = html.unescape((await client.get("/")).text)
        assert "“add” is paused, and 1 wait." in page
        assert 'class="badge pending">paused' in page
        for path in ("/tasks?name=fail", f"/tasks/{held}"):
            assert "waits for other tasks" in (await client.get(path)).text
        await lilota.resume(add)
