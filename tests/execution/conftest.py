"""Fixtures for task processes of both start methods."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.execution.support import Bench, bench


@pytest.fixture(params=["forkserver", "spawn"])
def method(request: pytest.FixtureRequest) -> str:
    """How processes are started."""
    return str(request.param)


@pytest.fixture
def whole_bursts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is taken back, however long a busy machine takes for a call, or for an import."""
    monkeypatch.setattr("lilota_async.execution.cells.HELD_UP_SECONDS", 60.0)


@pytest.fixture
async def cells(method: str, anyio_backend: str) -> AsyncIterator[Bench]:
    """A bench that must leave nothing behind."""
    async with bench(method) as made:
        yield made
