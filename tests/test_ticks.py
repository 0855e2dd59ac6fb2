"""Which ticks there are, and which of them are due."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import pytest

from lilota_async.errors import ConfigurationError
from lilota_async.ticks import Cron, Every, Periodic, read_periodic, tick_id


def utc(text: str) -> datetime:
    """A time in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def berlin(expression: str) -> Cron:
    """A cron expression in a timezone with summer time."""
    return Cron(expression=expression, timezone="Europe/Berlin")


SPRING = "2026-03-29"  # 02:00 becomes 03:00, which is 01:00 in UTC
AUTUMN = "2026-10-25"  # 03:00 becomes 02:00, which is 01:00 in UTC


@pytest.mark.parametrize(
    ("expression", "after", "expected"),
    [
        ("*/5 * * * *", "2026-01-01 00:00", ["2026-01-01 00:05", "2026-01-01 00:10"]),
        ("0 9 * * MON-FRI", "2026-07-03 12:00", ["2026-07-06 07:00", "2026-07-07 07:00"]),
        # A time that the change leaves out comes right after it.
        ("30 2 * * *", "2026-03-28 12:00", [f"{SPRING} 01:00", "2026-03-30 00:30"]),
        ("0 2,3 * * *", "2026-03-28 12:00", [f"{SPRING} 01:00", "2026-03-30 00:00"]),
        # One that comes twice counts once.
        ("30 2 * * *", "2026-10-24 12:00", [f"{AUTUMN} 00:30", "2026-10-26 01:30"]),
        ("30 2 * * *", f"{AUTUMN} 01:00", ["2026-10-26 01:30", "2026-10-27 01:30"]),
        # What goes by the hour or the minute goes on as it is.
        ("0 * * * *", f"{SPRING} 00:00", [f"{SPRING} 01:00", f"{SPRING} 02:00"]),
        ("*/30 * * * *", f"{AUTUMN} 00:15", [f"{AUTUMN} 00:30", f"{AUTUMN} 01:00"]),
        ("*/30 * * * *", f"{AUTUMN} 01:15", [f"{AUTUMN} 01:30", f"{AUTUMN} 02:00"]),
        ("*/20 * * * * *", "2026-01-01 00:00", ["2026-01-01 00:00:20", "2026-01-01 00:00:40"]),
    ],
)
def test_ticks_of_cron(expression: str, after: str, expected: list[str]) -> None:
    """They come in order, also where the clock is put forward or back."""
    found = list(islice(berlin(expression).after(utc(after)), 2))
    assert found == [utc(each) for each in expected]


@pytest.mark.parametrize(
    "expression", ["30 2 * * *", "0 2,3 * * *", "*/30 * * * *", "15 */2 * * *"]
)
@pytest.mark.parametrize("day", [SPRING, AUTUMN])
def test_the_latest_tick_is_one_of_them(expression: str, day: str) -> None:
    """Seen from any minute around a change, the latest tick is the last of those before."""
    cron = berlin(expression)
    start = utc(day) - timedelta(hours=30)
    ticks = list(islice(cron.after(start), 500))
    moment = start + timedelta(hours=27)
    while moment < start + timedelta(hours=36):
        before = [tick for tick in ticks if tick <= moment]
        following = next(tick for tick in ticks if tick > moment)
        assert cron.latest(moment) == before[-1], moment
        assert next(cron.after(moment)) == following, moment
        moment += timedelta(minutes=7, microseconds=3)


def test_ticks_of_every() -> None:
    """They are the multiples of the period, whenever one begins to look."""
    every = Every(period=timedelta(minutes=15))
    for after in ("2026-01-01 10:00", "2026-01-01 10:14:59"):
        assert next(every.after(utc(after))) == utc("2026-01-01 10:15")
    assert every.latest(utc("2026-01-01 10:15")) == utc("2026-01-01 10:15")
    tenths = Every(period=timedelta(seconds=0.1))
    found = list(islice(tenths.after(utc("2026-01-01 10:00:00.050000")), 2))
    assert [tick.microsecond for tick in found] == [100_000, 200_000]


@pytest.mark.parametrize(
    ("now", "expected"),
    [("10:03:30", ["10:01", "10:02", "10:03"]), ("10:00:59", []), ("10:01:00", ["10:01"])],
)
def test_what_is_due(now: str, expected: list[str]) -> None:
    """Each tick since the last look."""
    periodic = Periodic(rhythm=Every(period=timedelta(minutes=1)), catch_up="one")
    due = periodic.due(utc("2026-01-01 10:00"), utc(f"2026-01-01 {now}"), limit=10)
    assert due == [utc(f"2026-01-01 {each}") for each in expected]


@pytest.mark.parametrize(
    ("catch_up", "expected"),
    [("all", ["10:01", "10:02", "10:03"]), ("one", ["10:03"]), ("skip", [])],
)
@pytest.mark.parametrize("now", ["10:03:00", "10:03:30"])
def test_what_was_missed(catch_up: Any, now: str, expected: list[str]) -> None:
    """All of the ticks, or the latest, or none; the next one counts in any case."""
    periodic = Periodic(rhythm=Every(period=timedelta(minutes=1)), catch_up=catch_up)
    time = utc(f"2026-01-01 {now}")
    after = periodic.pass_over(utc("2026-01-01 10:00"), time)
    assert periodic.due(after, time, limit=10) == [utc(f"2026-01-01 {each}") for each in expected]
    assert utc("2026-01-01 10:04") in periodic.due(after, utc("2026-01-01 10:04"), limit=10)


@pytest.mark.parametrize("catch_up", ["all", "one", "skip"])
def test_nothing_was_missed(catch_up: Any) -> None:
    """What has been taken care of is not due again."""
    periodic = Periodic(rhythm=Every(period=timedelta(minutes=1)), catch_up=catch_up)
    handled, now = utc("2026-01-01 10:03:20"), utc("2026-01-01 10:03:40")
    after = periodic.pass_over(handled, now)
    assert periodic.due(after, now, limit=10) == []


def test_what_is_due_has_a_limit() -> None:
    """The rest comes next."""
    periodic = Periodic(rhythm=Every(period=timedelta(minutes=1)), catch_up="all")
    after, now = utc("2026-01-01 10:00"), utc("2026-01-08 10:00")
    due = periodic.due(after, now, limit=3)
    assert due == [utc(f"2026-01-01 10:0{minute}") for minute in (1, 2, 3)]


def test_ids_follow_from_name_and_tick() -> None:
    """The same on every node, different for each tick and each task, and in the order of time."""
    ticks = list(islice(Every(period=timedelta(seconds=0.1)).after(utc("2026-01-01")), 100))
    ids = [tick_id("report", tick) for tick in ticks]
    assert ids == [tick_id("report", tick) for tick in ticks]
    assert ids == sorted(ids)
    assert len({*ids, *(tick_id("other", tick) for tick in ticks)}) == 200
    assert {(each.version, each.variant) for each in ids} == {(7, "specified in RFC 4122")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cron": "* * * *"}, "cannot be read"),
        ({"cron": "61 * * * *"}, r"Bad minute"),
        ({"cron": 5}, "is a text such as"),
        ({"cron": "0" * 200}, "up to 150 characters"),
        ({"cron": "* * * * *", "timezone": "Mars/Base"}, "no timezone 'Mars/Base'"),
        ({"cron": "* * * * *", "every": 5}, "not both"),
        ({"timezone": "UTC"}, "timezone= is that of cron="),
        ({"every": 0}, "every must be 0.1 s or more"),
        ({"every": "5"}, "every must be seconds or a timedelta"),
        ({"every": timedelta.max}, "every must be 100 years at most"),
    ],
)
def test_rhythms_that_cannot_be_kept(options: dict[str, Any], message: str) -> None:
    """They are refused, and the message says what is wrong."""
    given = {"cron": None, "timezone": None, "every": None, "catch_up": "one", **options}
    with pytest.raises(ConfigurationError, match=message):
        read_periodic(**given)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "cronsim", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'lilota-async\[cron\]'"):
        read_periodic("* * * * *", None, None, "one")
    assert read_periodic(None, None, timedelta(hours=1), "one") is not None
