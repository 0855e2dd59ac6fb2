"""Rows 8 and 9: many finished rows, and many pending ones."""

from __future__ import annotations

import asyncio
import statistics

import asyncpg

from benchmarks.children import run_child
from benchmarks.ledgers import open_ledger
from benchmarks.measure import compare, interleave
from benchmarks.rows.throughput import TASKS, EndToEnd, end_to_end
from benchmarks.settings import Context, Figure
from benchmarks.tasks import create_lilota

FINISHED_ROWS = 1_000_000
BACKLOG = 100_000
GROWTH_AIM_MIB = 16.0
REPEATS = 2  # times those of other rows: what counts is a twentieth
_FILL = """
    INSERT INTO lilota_task (id, name, status, priority, created_at, run_at, start_date_time,
        end_date_time, progress_percentage, input, output, attempts, max_attempts, interruptions)
    SELECT gen_random_uuid(), 'add', 'completed', 0, now(), now(), now(), now(), 100,
        '{"a":1,"b":3}', '{"sum":4}', 1, 1, 0
    FROM generate_series(1, $1)"""
_DRAIN_SECONDS = """
    SELECT CAST(extract(epoch FROM max(end_date_time) - min(start_date_time)) AS float8)
    FROM lilota_task"""


async def finished_rows(context: Context) -> list[Figure]:
    """Row 8: the same load on a full table and on an empty one, each in its own database."""
    count = context.settings.count(TASKS, least=500)
    rows = context.settings.count(FINISHED_ROWS, least=20_000)
    async with (
        context.server.database() as full_url,
        context.server.database() as empty_url,
        create_lilota(full_url) as lilota,
        open_ledger(full_url) as ledger,
        end_to_end(empty_url) as empty,
    ):
        await _fill(full_url, rows)
        full = EndToEnd(lilota, ledger, keeps_rows=True)
        await full.rate(count // 10)
        samples = await interleave(
            REPEATS * context.settings.repeats,
            lambda: full.rate(count),
            lambda: empty.rate(count),
        )
    return [
        compare(
            "8",
            f"row 1 with {rows:,} finished rows",
            ">= 0.95 of the empty table",
            samples,
            unit="tasks/s",
            at_least=0.95,
            names=("full table", "empty table"),
        )
    ]


async def _fill(url: str, rows: int) -> None:
    """Put finished rows there, and have the database know of them."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(_FILL, rows)
        await connection.execute("VACUUM ANALYZE lilota_task")
    finally:
        await connection.close()


async def backlog(context: Context) -> list[Figure]:
    """Row 9: another process has scheduled; an application of its own drains."""
    large = context.settings.count(BACKLOG, least=2000)
    before = await _rate_of_row_1(context)
    small_growth, _ = await _drain(context, large // 10)
    large_growth, rate = await _drain(context, large)
    after = await _rate_of_row_1(context)
    against = statistics.mean([before, after])
    more = large_growth - small_growth
    return [
        Figure(
            row="9",
            what=f"backlog of {large:,} pending rows of another process",
            aim="drained at >= 0.8 of row 1",
            value=rate,
            against=against,
            unit="tasks/s",
            ratio=rate / against,
            met=rate / against >= 0.8,
            samples={"drained": [rate], "row 1": [before, after]},
        ),
        Figure(
            row="9 m",
            what="peak memory of the app for it, over that for a tenth of it",
            aim=f"<= {GROWTH_AIM_MIB:g} MiB",
            value=more,
            unit="MiB",
            met=more <= GROWTH_AIM_MIB,
            samples={"growth": [small_growth, large_growth]},
        ),
    ]


async def _rate_of_row_1(context: Context) -> float:
    async with context.server.database() as url, end_to_end(url) as measured:
        return await measured.rate(context.settings.count(TASKS, least=500))


async def _drain(context: Context, size: int) -> tuple[float, float]:
    """The growth of the application's memory, and tasks per second by the database's clock."""
    async with context.server.database() as url:
        await asyncio.to_thread(run_child, "backlog", url, str(size))
        drained = await asyncio.to_thread(run_child, "drain", url, str(size))
        async with open_ledger(url) as ledger:
            await ledger.check_stored(size)
            seconds = await ledger.value(_DRAIN_SECONDS)
    return drained["growth_mib"], size / seconds


ROWS = {"8": finished_rows, "9": backlog}
