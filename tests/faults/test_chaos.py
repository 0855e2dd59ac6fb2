"""A short chaos run on each database; the long ones are `python -m tests.faults.chaos`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.chaos import TAKEOVER_BAR, Options, chaos


@pytest.mark.timeout(240)
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_nothing_is_lost_in_chaos(tmp_path: Path, database: str) -> None:
    """Applications, task processes and the database die every second, and no promise breaks."""
    options = Options(
        minutes=0.35,
        tasks=400,
        replicas=3 if database == "postgresql" else 1,
        seed=11,
        database=database,
        seconds=(0.001, 0.1),
        pause=(0.3, 1.5),
    )
    report = chaos(options, tmp_path)
    assert report.violations == [], report.text()
    assert report.takeover(0.99) <= TAKEOVER_BAR, report.text()
    assert sum(report.faults.values()) >= 5
    assert sum(report.statuses.values()) >= 20  # on a busy machine
