"""SQLite's statements for batches: each takes all rows as one JSON text.

Row by row, the driver would let go of Python's lock for each, and wait for it again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from sqlalchemy import text

from lilota_async.storage.dialect import PAUSED
from lilota_async.storage.rows import ENDED

# SQLite has milliseconds; the zeros make the text comparable with microseconds.
NOW = "strftime('%Y-%m-%d %H:%M:%f000', 'now')"
# By primary key, one row each: with the sign, an owner's index is none to choose.
_FENCE = """task.id = new.id AND task.attempts = new.attempt
    AND +task.locked_by = new.node AND +task.status = 'running'"""


def later(seconds: str) -> str:
    """The SQL of a time so many seconds from now."""
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', printf('%+.3f seconds', {seconds}))"


def encode(rows: Iterable[tuple[Any, ...]]) -> dict[str, str]:
    """The parameter of a statement of this module."""
    return {"rows": msgspec.json.encode(list(rows)).decode()}


def _rows(*columns: str) -> str:
    """The rows that `encode()` has encoded, named `new`."""
    values = (f"json_extract(value, '$[{place}]') AS {name}" for place, name in enumerate(columns))
    return f"(SELECT {', '.join(values)} FROM json_each(:rows)) AS new"


INSERT = text(f"""
INSERT INTO lilota_task (id, name, status, priority, created_at, run_at, progress_percentage,
    input, attempts, max_attempts, interruptions, timeout_seconds, tags, unique_key,
    unique_until, concurrency_key, locked_by, pid, start_date_time, nominal_time)
SELECT id, name, CASE WHEN node_id IS NULL THEN 'pending' ELSE 'running' END, priority, {NOW},
    COALESCE(run_at, {later("delay")}), 0, input, node_id IS NOT NULL, max_attempts, 0, timeout,
    tags, unique_key, CASE WHEN unique_seconds IS NOT NULL THEN {later("unique_seconds")} END,
    concurrency_key, node_id, pid, CASE WHEN node_id IS NOT NULL THEN {NOW} END, nominal_time
FROM {
    _rows(
        "id",
        "name",
        "priority",
        "delay",
        "run_at",
        "input",
        "max_attempts",
        "timeout",
        "tags",
        "unique_key",
        "unique_seconds",
        "concurrency_key",
        "node_id",
        "pid",
        "nominal_time",
    )
}
WHERE node_id IS NULL OR (name NOT IN {PAUSED} AND '' NOT IN {PAUSED})
ON CONFLICT DO NOTHING""")

CLAIM = text(f"""
UPDATE lilota_task AS task SET status = 'running', attempts = task.attempts + 1, pid = new.pid,
    locked_by = :node_id, start_date_time = {NOW}, end_date_time = NULL,
    progress_percentage = 0, cancel_requested_at = NULL
FROM {_rows("id", "pid")}
WHERE task.id = new.id""")

FINISH = text(f"""
UPDATE lilota_task AS task SET status = new.status, end_date_time = {NOW}, output = new.output,
    exception = new.exception,
    progress_percentage = COALESCE(new.progress, task.progress_percentage),
    cpu_seconds = new.cpu, peak_memory_bytes = new.memory, log = new.log
FROM {_rows(*ENDED)}
WHERE {_FENCE}""")
