"""How long a slot is gone after its process was killed: `python -m benchmarks.isolation`.

Kills the idle task process a hundred times; each time, a task that is scheduled at that moment
tells by its result that a new process is up. Its models are in the main script, which each new
process imports.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from lilota_async import Lilota

KILLS = 100


@dataclass
class AddInput:
    a: int
    b: int


@dataclass
class AddOutput:
    sum: int


def add(data: AddInput) -> AddOutput:
    return AddOutput(sum=data.a + data.b)


async def measure(url: str) -> list[float]:
    """Seconds from each kill to the first result of the process that follows."""
    lilota = Lilota(url, number_of_processes=1)
    lilota.register("add")(add)
    seconds = []
    async with lilota:
        for number in range(KILLS):
            task = await lilota.wait(await lilota.schedule(add, AddInput(a=number, b=1)))
            assert task.pid is not None
            start = time.perf_counter()
            os.killpg(task.pid, signal.SIGKILL)
            await lilota.result(await lilota.schedule(add, AddInput(a=number, b=2)))
            seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        seconds = asyncio.run(measure(f"sqlite:///{Path(directory) / 'lilota.db'}"))
    last = statistics.quantiles(seconds, n=10)[-1]
    print(
        f"{KILLS} kills to first result: median {statistics.median(seconds) * 1000:.1f} ms, "
        f"p90 {last * 1000:.1f} ms, longest {max(seconds) * 1000:.1f} ms"
    )


if __name__ == "__main__":
    main()
