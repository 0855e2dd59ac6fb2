"""Values as people read them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from lilota_async.storage.dependencies import BLOCKED

LONGEST_JSON = 100_000
NOTHING = "\u2013"
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"))


def duration(seconds: float | None) -> str:
    """A time in one or two units: "340 ms", "12.4 s", "3 min 20 s", "2 d 4 h"."""
    if seconds is None:
        return NOTHING
    seconds = max(0.0, seconds)
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    for number, (size, unit) in enumerate(_UNITS):
        if seconds >= size:
            whole, rest = divmod(int(seconds), size)
            smaller, name = _UNITS[number + 1] if number + 1 < len(_UNITS) else (1, "s")
            part = rest // smaller
            return f"{whole} {unit} {part} {name}" if part else f"{whole} {unit}"
    raise AssertionError("every time has a unit")


def count(number: int | None) -> str:
    """A number with its thousands apart."""
    return NOTHING if number is None else f"{number:,}".replace(",", "\u202f")


def size(number: int | None) -> str:
    """Bytes in the unit that fits."""
    if number is None:
        return NOTHING
    value = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"
        value /= 1024
    raise AssertionError("the last unit takes everything")


def pace(per_second: float) -> str:
    """A throughput, by the second or by the minute."""
    if per_second >= 1:
        return f"{per_second:.3g}/s"
    return f"{per_second * 60:.2g}/min" if per_second else "0/min"


def clock(time: datetime | None) -> str:
    """A time in UTC; the page's script says how long ago it is."""
    return NOTHING if time is None else time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def iso(time: datetime) -> str:
    """A time as machines read it."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def json(value: Any) -> str:
    """A payload with line breaks; a large one is cut."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    if len(text) <= LONGEST_JSON:
        return text
    return f"{text[:LONGEST_JSON]}\n… {len(text) - LONGEST_JSON} more characters"


def first_line(text: Any, most: int = 200) -> str:
    """The beginning of a message."""
    lines = str(text).strip().splitlines()
    line = lines[0] if lines else ""
    return line if len(line) <= most else line[: most - 1] + "…"


def texts(value: Any) -> list[str]:
    """The texts of a list; of anything else, which a row may hold after an edit, none."""
    return [str(each) for each in value] if isinstance(value, list) else []


def is_held(task: Any) -> bool:
    """Whether the task waits for others to end, and has no time yet to be due at."""
    held: bool = task.run_at >= BLOCKED
    return held


FILTERS = {
    "is_held": is_held,
    "texts": texts,
    "duration": duration,
    "count": count,
    "size": size,
    "pace": pace,
    "clock": clock,
    "iso": iso,
    "json": json,
    "first_line": first_line,
}
