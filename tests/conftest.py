"""Fixtures for the whole suite."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.databases import BACKENDS, FAST_BACKENDS, Servers


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """lilota runs on asyncio only."""
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def no_main_script() -> Iterator[None]:
    """Task processes import the main script, which is pytest here: spare them that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["__main__"], "__spec__", None)
        patch.setattr(sys.modules["__main__"], "__file__", None, raising=False)
        yield


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """The database servers of this session."""
    found = Servers(tmp_path_factory.mktemp("servers"))
    yield found
    found.close()


@pytest.fixture(params=BACKENDS)
def database_url(request: pytest.FixtureRequest, servers: Servers, tmp_path: Path) -> str:
    """The URL of a database without rows, once for every backend."""
    return servers.database(request.param, tmp_path)


@pytest.fixture(params=FAST_BACKENDS)
def fast_database_url(request: pytest.FixtureRequest, servers: Servers, tmp_path: Path) -> str:
    """The URL of a database without rows, on SQLite and on PostgreSQL only."""
    return servers.database(request.param, tmp_path)


@pytest.fixture
def postgresql_url(servers: Servers, tmp_path: Path) -> str:
    """The URL of a database without rows on the server of all tests, which must stay up."""
    return servers.database("postgresql+asyncpg", tmp_path)


@pytest.fixture(params=BACKENDS)
def empty_database_url(request: pytest.FixtureRequest, servers: Servers, tmp_path: Path) -> str:
    """The URL of a database without tables, once for every backend."""
    return servers.empty_database(request.param, tmp_path)
