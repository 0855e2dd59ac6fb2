"""Rows 11 and 12: what an application pays that has nothing to do."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys

from benchmarks.children import run_child
from benchmarks.settings import Context, Figure

IDLE_SECONDS = 30
CPU_AIM_PERCENT = 0.3
STATEMENTS_AIM = 0.2
MEMORY_AIM_MIB = 60.0
IMPORT_AIM_MS = 40.0
_IMPORT = (
    "import time; t = time.perf_counter(); import lilota_async{}; print(time.perf_counter() - t)"
)


async def idle_node(context: Context) -> list[Figure]:
    """Row 11, in a process of its own whose statements are counted by SQLAlchemy."""
    seconds = context.settings.count(IDLE_SECONDS, least=11)
    async with context.server.database() as url:
        idle = await asyncio.to_thread(run_child, "idle", url, str(seconds))
    cpu, statements = idle["cpu_percent"], idle["statements_per_second"]
    return [
        Figure(
            row="11",
            what=f"idle node with 2 cells, CPU in {seconds} s",
            aim=f"<= {CPU_AIM_PERCENT:g} % of a core",
            value=cpu,
            unit="%",
            met=cpu <= CPU_AIM_PERCENT,
        ),
        Figure(
            row="11 s",
            what="its statements",
            aim="<= 1 per 5 s",
            value=5 * statements,
            unit="per 5 s",
            met=statements <= STATEMENTS_AIM,
            note=", ".join(f"{number} x {text}" for text, number in idle["seen"].items()),
        ),
    ]


async def memory(context: Context) -> list[Figure]:
    """Row 12: applications that only sleep, without and with lilota; and the import."""
    names = ("bare", "database", "pools", "first", "lilota")
    sizes: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(context.settings.repeats):
        async with context.server.database() as url:
            for name, samples in sizes.items():  # the first start creates the tables
                kind = "lilota" if name == "first" else name
                found = await asyncio.to_thread(run_child, "footprint", url, kind)
                samples.append(found["pss_mib"])
    return [
        _memory_over("12", "an app without SQLAlchemy", sizes, "lilota", "bare"),
        _memory_over("12 f", "that, at the start that makes the tables", sizes, "first", "bare"),
        _memory_over("12 d", "one with SQLAlchemy and a connection", sizes, "lilota", "database"),
        _memory_of_parts(sizes),
        *[await _import_time(context, name) for name in ("", ".core")],
    ]


def _memory_over(
    row: str, what: str, sizes: dict[str, list[float]], with_it: str, without: str
) -> Figure:
    over = statistics.median(sizes[with_it]) - statistics.median(sizes[without])
    return Figure(
        row=row,
        what=f"PSS with 2 cells, over {what}",
        aim=f"<= {MEMORY_AIM_MIB:g} MiB",
        value=over,
        unit="MiB",
        met=over <= MEMORY_AIM_MIB,
        samples=sizes,
    )


def _memory_of_parts(sizes: dict[str, list[float]]) -> Figure:
    """What no application of these parts can go below."""
    return Figure(
        row="12 b",
        what="SQLAlchemy, a connection and 2 pools of one process, over the first",
        aim="",
        value=statistics.median(sizes["pools"]) - statistics.median(sizes["bare"]),
        unit="MiB",
    )


async def _import_time(context: Context, name: str) -> Figure:
    command = [sys.executable, "-c", _IMPORT.format(name)]

    def once() -> float:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return 1000 * float(done.stdout)

    await asyncio.to_thread(once)
    samples = [await asyncio.to_thread(once) for _ in range(3 * context.settings.repeats)]
    value = statistics.median(samples)
    return Figure(
        row="12 i" if not name else "12 c",
        what=f"import lilota_async{name}",
        aim=f"<= {IMPORT_AIM_MS:g} ms" if not name else "",
        value=value,
        unit="ms",
        met=value <= IMPORT_AIM_MS if not name else None,
        samples={"import": samples},
    )


ROWS = {"11": idle_node, "12": memory}
