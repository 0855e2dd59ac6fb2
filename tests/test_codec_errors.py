"""Texts and exceptions made safe for every database."""

from __future__ import annotations

import traceback

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lilota_async.codec import describe, escape_text


@settings(max_examples=200, deadline=None)
@given(st.text(), st.integers(min_value=0, max_value=40))
def test_escaped_text_is_storable(text: str, limit: int) -> None:
    """Whatever the text, the result is UTF-8 without U+0000 and within the limit."""
    escaped = escape_text(text, limit)
    assert len(escaped) <= limit
    assert "\0" not in escaped
    escaped.encode()


def test_escape_text_keeps_the_end() -> None:
    """The end of a traceback says most, so that the start is cut, with a mark."""
    assert escape_text("a\0\ud800é😀", 100) == "a\\x00\\ud800é😀"
    assert escape_text("0123456789" * 2, 12) == "[...] 456789"
    assert escape_text("\0" * 5, 12).startswith("[...] ")


class HostileError(Exception):
    def __str__(self) -> str:
        raise SystemExit("not that easy")

    __repr__ = __str__


class Liar(str):
    __slots__ = ()

    def __getitem__(self, _: object) -> str:
        raise KeyboardInterrupt


class LyingError(Exception):
    def __str__(self) -> str:
        return Liar("text")


def caught(exception: BaseException) -> BaseException:
    secret = "local value"  # noqa: F841 - must not show
    try:
        raise exception
    except BaseException as error:
        return error


def test_describe() -> None:
    """An exception becomes kind, type, message and a traceback without local values."""
    described = describe(caught(ValueError("no\0")), kind="error")
    assert described["kind"] == "error"
    assert described["type"] == "ValueError"
    assert described["message"] == "no\\x00"
    assert described["traceback"].endswith("ValueError: no\\x00\n")
    assert "raise exception" in described["traceback"]
    assert "'local value'" not in described["traceback"]


def test_describe_shows_groups_causes_and_notes() -> None:
    """The members of a group, causes and notes are in the traceback."""
    error = ValueError("inner")
    error.add_note("a note")
    error.__cause__ = KeyError("cause")
    described = describe(caught(ExceptionGroup("several", [error])), kind="error")
    assert described["type"] == "ExceptionGroup"
    for part in ("several", "inner", "a note", "KeyError: 'cause'"):
        assert part in described["traceback"]


def test_describe_survives_hostile_exceptions() -> None:
    """Methods that raise, even SystemExit, cannot make describe() fail."""
    for exception in (HostileError(), LyingError(), ExceptionGroup("g", [HostileError()])):
        described = describe(caught(exception), kind="error")
        assert described["type"] == type(exception).__name__
        assert described["message"]
        assert "raise exception" in described["traceback"]


def test_describe_falls_back_when_formatting_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The frames and the message are kept when the standard library cannot format."""

    def fail(_: BaseException) -> list[str]:
        raise RecursionError

    monkeypatch.setattr(traceback, "format_exception", fail)
    described = describe(caught(ValueError("no")), kind="error")
    assert "raise exception" in described["traceback"]
    assert described["traceback"].endswith("no")


def test_describe_is_bounded() -> None:
    """A message of any length is cut to what a row should hold."""
    described = describe(ValueError("x" * 1_000_000), kind="error")
    assert len(described["message"]) == 10_000
    assert len(described["traceback"]) == 50_000
