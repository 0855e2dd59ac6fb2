"""The newest lilota: a scheduler, and two workers that poll as often as makes sense."""

from __future__ import annotations

import importlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.peers.common import Peer

POLL_SECONDS = 0.002
LONGEST_POLL_SECONDS = 0.01


@dataclass
class AddInput:
    a: int
    b: int


@dataclass
class AddOutput:
    sum: int


class Newest(Peer):
    """Its calls block: the hundred callers come one after the other."""

    package = "lilota"
    finished_sql = (
        "SELECT count(*) FROM lilota_task WHERE status = 'completed' AND output IS NOT NULL"
    )
    done_sql = "SELECT status = 'completed' FROM lilota_task WHERE id = %s"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        logging.disable(logging.CRITICAL)
        self._url = url.replace("postgresql:", "postgresql+psycopg:", 1)
        self._scheduler: Any = None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        core: Any = importlib.import_module("lilota.core")
        self._scheduler = core.Lilota.scheduler(self._url)
        self._scheduler.start()
        try:
            yield
        finally:
            self._scheduler.stop()

    async def enqueue(self, number: int) -> Any:
        return self._scheduler.schedule("add", {"a": number, "b": 3})

    async def work(self) -> None:
        worker: Any = importlib.import_module("lilota.worker").LilotaWorker(
            self._url,
            task_heartbeat_interval=POLL_SECONDS,
            max_task_heartbeat_interval=LONGEST_POLL_SECONDS,
        )

        def add(input: AddInput) -> AddOutput:
            return AddOutput(sum=input.a + input.b)

        # Not the texts that annotations are in this module.
        add.__annotations__ = {"input": AddInput, "return": AddOutput}
        worker.task(add)
        worker.start()


PEER = Newest
