"""The application dies at each of the named points, and nothing is lost or run unrecorded."""

from __future__ import annotations

import pytest

from tests.faults.conftest import MakeRun
from tests.faults.failpoints import LEASE_SECONDS, POINTS, run_chain


@pytest.mark.timeout(240)
def test_a_death_at_each_point(make_run: MakeRun, fast_database_url: str) -> None:
    """Twelve applications in a row die where it hurts; the last one brings all to rest."""
    run = make_run(fast_database_url, lease=LEASE_SECONDS)
    assert run_chain(run, list(POINTS), seed=7) == []
    starts = len(run.ledger.read(["start"]))
    assert starts > len(run.tables.rows()) > 50
