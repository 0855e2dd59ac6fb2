"""What a peer is, and how each of them is measured; runs in the environment of the peer."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

CALLERS = 100
WORKERS = 2
LONE_ENQUEUES = 200
ENQUEUES = 2_000
BULK_ROWS = 4_000
TASKS = 3_000
LONE_TASKS = 100
POLL_SECONDS = 0.005
LONE_POLL_SECONDS = 0.0005


class Peer(ABC):
    """One system: how it enqueues, works, and where it says that a job has succeeded."""

    package: str
    finished_sql: str
    """Counts what has succeeded and is stored."""
    done_sql: str
    """Is true when the job of this id (`%s`) is among those."""

    bulk_tasks = TASKS
    """How many to run that were enqueued in bulk: enough for half a second."""

    def __init__(self, url: str) -> None:
        self.url = url

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Install the schema and be able to enqueue."""
        yield

    @abstractmethod
    async def enqueue(self, number: int) -> Any:
        """Enqueue one job that adds; its id."""

    async def enqueue_many(self, count: int) -> None:
        """Enqueue in bulk, where the system can."""
        raise NotImplementedError

    async def work(self) -> None:
        """Run jobs until the process is ended."""
        raise NotImplementedError

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Two worker processes for the time of the block."""
        name = type(self).__module__.rpartition(".")[2]
        command = [sys.executable, "-m", "benchmarks.peers.run", name, "work", self.url]
        workers = [subprocess.Popen(command) for _ in range(WORKERS)]
        try:
            yield
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()


class Measurement:
    """Takes one figure after the other from a peer."""

    def __init__(self, peer: Peer, connection: Any, scale: float) -> None:
        self._peer = peer
        self._connection = connection
        self._scale = scale
        self._enqueued = 0

    async def run(self) -> dict[str, Any]:
        """All figures; None for what the peer does not have."""
        found: dict[str, Any] = {}
        async with self._peer.opened():
            await self._enqueue_only(found)
            async with self._peer.working():
                await self._until_finished()
                await self._end_to_end(found)
                found["lone_ms"] = await self._lone_tasks()
                await self._until_finished()
        found["stored"] = self._enqueued
        return found

    async def _enqueue_only(self, found: dict[str, Any]) -> None:
        times = [await self._timed(self._enqueue(n)) for n in range(self._count(LONE_ENQUEUES))]
        found["enqueue_ms"] = 1000 * statistics.median(times)
        count = self._count(ENQUEUES)
        found["enqueue_rate"] = count / await self._callers(count)
        found["bulk_rate"] = await self._in_bulk(self._count(BULK_ROWS))

    async def _end_to_end(self, found: dict[str, Any]) -> None:
        count = self._count(TASKS)
        await self._callers(count // 4)
        await self._until_finished()
        started = time.perf_counter()
        await self._callers(count)
        await self._until_finished()
        found["end_to_end"] = count / (time.perf_counter() - started)
        count = self._count(self._peer.bulk_tasks)
        started = time.perf_counter()
        bulk = await self._in_bulk(count)
        await self._until_finished()
        found["end_to_end_bulk"] = bulk and count / (time.perf_counter() - started)

    async def _lone_tasks(self) -> list[float]:
        return [1000 * await self._timed(self._lone(n)) for n in range(self._count(LONE_TASKS))]

    async def _lone(self, number: int) -> None:
        task_id = await self._enqueue(number)
        while not await self._value(self._peer.done_sql, task_id):
            await asyncio.sleep(LONE_POLL_SECONDS)

    async def _enqueue(self, number: int) -> Any:
        task_id = await self._peer.enqueue(number)
        self._enqueued += 1
        return task_id

    async def _callers(self, count: int) -> float:
        numbers = iter(range(count))

        async def caller() -> None:
            for number in numbers:
                await self._enqueue(number)

        started = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        return time.perf_counter() - started

    async def _in_bulk(self, count: int) -> float | None:
        started = time.perf_counter()
        try:
            await self._peer.enqueue_many(count)
        except NotImplementedError:
            return None
        self._enqueued += count
        return count / (time.perf_counter() - started)

    async def _until_finished(self) -> None:
        while (finished := await self._value(self._peer.finished_sql)) != self._enqueued:
            if finished > self._enqueued:
                raise RuntimeError(f"{finished} jobs have succeeded, of {self._enqueued}")
            await asyncio.sleep(POLL_SECONDS)

    async def _value(self, query: str, *parameters: Any) -> Any:
        cursor = await self._connection.execute(query, parameters or None)
        return (await cursor.fetchone())[0]

    async def _timed(self, call: Awaitable[Any]) -> float:
        started = time.perf_counter()
        await call
        return time.perf_counter() - started

    def _count(self, full: int) -> int:
        return max(20, round(full * self._scale))
