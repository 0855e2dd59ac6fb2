"""lilota 0.6.0, the synchronous ancestor: two processes of the application itself."""

from __future__ import annotations

import importlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.peers.common import WORKERS, Peer


@dataclass
class AddInput:
    a: int
    b: int


@dataclass
class AddOutput:
    sum: int


def add(data: Any) -> AddOutput:
    return AddOutput(sum=data.a + data.b)


class Ancestor(Peer):
    """Its calls block: the hundred callers come one after the other."""

    package = "lilota"
    finished_sql = "SELECT count(*) FROM task WHERE status = 'COMPLETED' AND output IS NOT NULL"
    done_sql = "SELECT status = 'COMPLETED' FROM task WHERE id = %s"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        logging.disable(logging.CRITICAL)
        core: Any = importlib.import_module("lilota.core")
        self._lilota = core.Lilota(
            url.replace("postgresql:", "postgresql+psycopg:", 1), number_of_processes=WORKERS
        )
        self._lilota.register("add", input_model=AddInput, output_model=AddOutput)(add)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        self._lilota.start()
        try:
            yield
        finally:
            self._lilota.stop()

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        yield  # it works from its start on

    async def enqueue(self, number: int) -> Any:
        return self._lilota.schedule("add", AddInput(a=number, b=3))


PEER = Ancestor
