"""How many tasks have ended, and when: counted by the database, by the index of ended ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import text

from lilota_async.storage.database import Database
from lilota_async.storage.reading import by_index
from lilota_async.storage.stores import create_store

MOST_COUNTED = 50_000
"""Of each name and status; beyond it the oldest of the time asked for are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The tasks that have ended before `until`, in steps of `step_seconds`, from old to new."""

    until: datetime
    step_seconds: float
    completed: tuple[int, ...]
    failed: tuple[int, ...]
    is_cut: bool = False


async def read_history(
    database: Database, names: Sequence[str], *, seconds: float, steps: int
) -> History:
    """What has ended in the last `seconds`, of these names."""
    return await database.undisturbed(_read(database, names, seconds, steps))


async def _read(database: Database, names: Sequence[str], seconds: float, steps: int) -> History:
    store = create_store(database)
    dialect = store.dialect
    age = dialect.seconds_between("end_date_time", dialect.now)
    number = f"({age}) / :step"
    whole = f"CAST({number} AS INTEGER)" if database.dialect == "sqlite" else f"FLOOR({number})"
    statement = text(f"""
        SELECT step, COUNT(*) AS ended FROM (
            SELECT {whole} AS step FROM {dialect.ended_table}
            WHERE name = :name AND status = :status AND end_date_time >= :since
            ORDER BY end_date_time DESC LIMIT {MOST_COUNTED}) AS recent
        GROUP BY step""")
    counts = {"completed": [0] * steps, "failed": [0] * steps}
    is_cut = False
    step = seconds / steps
    async with by_index(database) as c:
        now = await store.clock(c)
        since = dialect.time(now - timedelta(seconds=seconds))
        for name in names:
            for status, counted in counts.items():
                parameters = {"name": name, "status": status, "since": since, "step": step}
                rows = (await c.execute(statement, parameters)).all()
                is_cut = is_cut or sum(row.ended for row in rows) >= MOST_COUNTED
                for row in rows:
                    counted[steps - 1 - min(max(int(row.step), 0), steps - 1)] += row.ended
    return History(
        until=now,
        step_seconds=step,
        completed=tuple(counts["completed"]),
        failed=tuple(counts["failed"]),
        is_cut=is_cut,
    )
