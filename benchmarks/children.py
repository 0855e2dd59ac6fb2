"""Measurements that need an application of their own: `python -m benchmarks.children KIND ...`."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from typing import Any

SETTLE_SECONDS = 1.0


def run_child(kind: str, *arguments: str) -> dict[str, Any]:
    """Run it in a new process and return what it found; it fails as that process does."""
    command = [sys.executable, "-m", "benchmarks.children", kind, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


async def backlog(url: str, count: str) -> dict[str, Any]:
    """Schedule so many tasks that are for others to run."""
    from benchmarks.tasks import AddInput, create_lilota

    async with create_lilota(url, processes=0) as lilota:
        left = int(count)
        while left:
            size = min(left, 10_000)
            await lilota.schedule_many("add", [AddInput(a=n, b=3) for n in range(size)])
            left -= size
    return {}


async def drain(url: str, count: str) -> dict[str, Any]:
    """Run what is pending; by how much the peak of the application's memory grows."""
    from benchmarks.ledgers import open_ledger
    from benchmarks.tasks import create_lilota

    async with create_lilota(url) as lilota, open_ledger(url) as ledger:
        assert lilota.is_running
        peak = PeakMemory()
        await ledger.until_done()
        await ledger.check_stored(int(count))
        return {"growth_mib": peak.growth_mib()}


async def bulk(url: str, count: str) -> dict[str, Any]:
    """Schedule so many at once, from a generator; the growth of the peak memory."""
    from benchmarks.tasks import AddInput, create_lilota

    async with create_lilota(url, processes=0) as lilota:
        await lilota.schedule_many("add", (AddInput(a=n, b=3) for n in range(1000)))
        peak = PeakMemory()
        await lilota.schedule_many("add", (AddInput(a=n, b=3) for n in range(int(count))))
        return {"growth_mib": peak.growth_mib()}


async def lag(url: str, count: str, repeats: str) -> dict[str, Any]:
    """How late the event loop is under so many tasks at a time, in seconds."""
    from benchmarks.measure import event_loop_lag
    from benchmarks.rows.throughput import end_to_end

    samples: list[float] = []
    async with end_to_end(url) as measured:
        for _ in range(int(repeats)):
            async with event_loop_lag() as lags:
                await measured.rate(int(count))
            samples += lags
    return {"samples": samples}


async def idle(url: str, seconds: str) -> dict[str, Any]:
    """CPU of an idle node with its processes, and the statements it sends."""
    import psutil
    from sqlalchemy import event
    from sqlalchemy.ext.asyncio import create_async_engine

    from benchmarks.tasks import create_lilota

    seen: Counter[str] = Counter()
    engine = create_async_engine(url.replace("postgresql:", "postgresql+asyncpg:", 1))

    def count(statement: str) -> None:
        seen[" ".join(statement.split())[:50]] += 1

    @event.listens_for(engine.sync_engine, "before_cursor_execute")
    def through_sqlalchemy(_c: Any, _cursor: Any, statement: str, *_: object) -> None:
        count(statement)

    @event.listens_for(engine.sync_engine, "connect")
    def past_it(connection: Any, _record: object) -> None:
        connection.driver_connection.add_query_logger(lambda logged: count(logged.query))

    async with create_lilota(url, engine=engine):
        await asyncio.sleep(SETTLE_SECONDS)
        own = psutil.Process()
        family = [own, *own.children(recursive=True)]
        seen.clear()
        before = _cpu_seconds(family)
        await asyncio.sleep(float(seconds))
        used = _cpu_seconds(family) - before
        statements = dict(seen)
    await engine.dispose()
    return {
        "cpu_percent": 100 * used / float(seconds),
        "statements_per_second": sum(statements.values()) / float(seconds),
        "seen": statements,
    }


async def footprint(url: str, kind: str) -> dict[str, Any]:
    """PSS of an application that sleeps: `bare`, with parts of the field's own, or with `lilota`.

    These are a `database` engine with its connection, or that and `pools` of one process each.
    """
    if kind == "bare":
        return await _settled_pss()
    if kind in ("database", "pools"):
        from sqlalchemy import text
        from sqlalchemy.ext.asyncio import create_async_engine

        engine = create_async_engine(url.replace("postgresql:", "postgresql+asyncpg:", 1))
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
            with ExitStack() as pools:
                if kind == "pools":
                    _start_pools(pools)
                found = await _settled_pss()
        await engine.dispose()
        return found

    from benchmarks.tasks import create_lilota

    async with create_lilota(url):
        return await _settled_pss()


def _start_pools(pools: ExitStack) -> None:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    context = multiprocessing.get_context("forkserver")
    for _ in range(2):
        pool = pools.enter_context(ProcessPoolExecutor(1, context))
        pool.submit(os.getpid).result()


async def _settled_pss() -> dict[str, Any]:
    await asyncio.sleep(SETTLE_SECONDS)
    parts = [_pss_mib(pid) for pid in _family(os.getpid())]
    return {"pss_mib": sum(parts), "parts": parts}


def _family(pid: int) -> list[int]:
    """The process and all below it, without psutil, which would weigh on what is measured."""
    family = [pid]
    for thread in os.listdir(f"/proc/{pid}/task"):  # each knows of those that it has started
        with open(f"/proc/{pid}/task/{thread}/children") as file:
            family += [each for child in file.read().split() for each in _family(int(child))]
    return family


def _pss_mib(pid: int) -> float:
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pss:")) / 1024


class PeakMemory:
    """By how much this process has grown at its peak since then; Linux only.

    Not `ru_maxrss`, which a process inherits from the one that started it.
    """

    def __init__(self) -> None:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak begins anew
        self._before = _status_mib("VmRSS")

    def growth_mib(self) -> float:
        return _status_mib("VmHWM") - self._before


def _status_mib(name: str) -> float:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) / 1024


def _cpu_seconds(family: list[Any]) -> float:
    times = [process.cpu_times() for process in family]
    return float(sum(each.user + each.system for each in times))


KINDS = {each.__name__: each for each in (backlog, drain, bulk, lag, idle, footprint)}

if __name__ == "__main__":
    print(json.dumps(asyncio.run(KINDS[sys.argv[1]](*sys.argv[2:]))))
