"""A factory of Lilotas that are stopped at the end of the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from lilota_async import Lilota
from tests.api.support import DEADLINE, MakeLilota
from tests.databases import Servers


@pytest.fixture
def sqlite_url(servers: Servers, tmp_path: Path) -> str:
    """The URL of a new SQLite file."""
    return servers.database("sqlite", tmp_path)


@pytest.fixture
async def make_lilota(sqlite_url: str) -> AsyncIterator[MakeLilota]:
    """`make_lilota(*functions, **options)`: on SQLite, with one process, unless told otherwise."""
    made: list[Lilota] = []

    def make(*functions: Callable[..., object], **options: Any) -> Lilota:
        if "engine" not in options:
            options.setdefault("db_url", sqlite_url)
        lilota = Lilota(**{"number_of_processes": 1, "grace": 0.3, **options})
        for function in functions:
            lilota.register(function)
        made.append(lilota)
        return lilota

    yield make
    async with asyncio.timeout(DEADLINE):
        for lilota in reversed(made):
            if lilota.is_running:
                await lilota.stop(drain=False, timeout=0)


@pytest.fixture
def without_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dispatcher must know by itself when there is something to do."""
    for name in ("POLL_SECONDS", "NOTIFIED_POLL_SECONDS"):
        monkeypatch.setattr(f"lilota_async.engine.dispatcher.{name}", 10 * DEADLINE)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where a task leaves its marks."""
    directory = tmp_path / "marks"
    directory.mkdir()
    return directory
