"""A run on a fresh database, and a PostgreSQL cluster that may be stopped hard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.cluster import Cluster
from tests.faults.harness import Run

MakeRun = Callable[..., Run]


@pytest.fixture
def make_run(tmp_path: Path) -> Iterator[MakeRun]:
    """`make_run(url, lease=...)`: everything that it has started is gone at the end."""
    with ExitStack() as stack:
        yield lambda url, **options: stack.enter_context(Run(url, tmp_path, **options))


@pytest.fixture(scope="session")
def one_cluster() -> Iterator[Cluster]:
    """A PostgreSQL cluster of our own."""
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(one_cluster: Cluster) -> Cluster:
    """It is up, and its database empty."""
    one_cluster.start()
    one_cluster.empty()
    return one_cluster
