"""The harness freezes applications, and nothing more than these."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.databases import Servers
from tests.faults.conftest import MakeRun
from tests.faults.replica import Load

pytestmark = pytest.mark.timeout(90)


def test_a_frozen_application_does_not_hold_the_lock_of_sqlite(
    make_run: MakeRun, servers: Servers, tmp_path: Path
) -> None:
    """It would keep everybody else from writing: no lease is of use against that."""
    run = make_run(servers.database("sqlite", tmp_path))
    replica = run.start(load=Load(tasks=None, seconds=(0, 0.001))).wait_until_ready()
    for _ in range(20):
        replica.freeze()
        assert run.tables.is_writable(within=5.0)
        replica.thaw()
        time.sleep(0.01)
