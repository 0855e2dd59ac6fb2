"""Rows that were edited by hand: SQLite keeps any value in any column, and ids of any form."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import Any

MOST_ATTEMPTS = 2**31 - 2  # one more still fits into the column
_KEY = re.compile("[0-9a-f]{32}")


def is_sound(task_id: Any, *counts: Any) -> bool:
    """Whether the row can be run: an id in the right form, and attempts that can be counted."""
    return is_key(task_id) and all(
        isinstance(count, int) and abs(count) <= MOST_ATTEMPTS for count in counts
    )


def is_key(value: Any) -> bool:
    """Whether it is an id in the form in which this library writes it."""
    if not isinstance(value, str):
        return hasattr(value, "int")  # a driver's own class of UUIDs
    return _KEY.fullmatch(value) is not None


def limit_seconds(value: Any) -> float | None:
    """A timeout or a lease, if it is one."""
    is_number = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if is_number else None


def utc(value: Any) -> datetime | None:
    """A time as the driver gives it, if it is one: SQLite's is text, MariaDB's is naive."""
    if value is None:
        return None
    try:
        time = datetime.fromisoformat(value) if isinstance(value, str) else value
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, AttributeError):
        return None
