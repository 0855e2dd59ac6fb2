"""Who takes what from whom, and when: deaths, freezes, policies, and outages in between."""

from __future__ import annotations

import time

import psutil
import pytest

from tests.faults.cluster import Cluster
from tests.faults.conftest import MakeRun
from tests.faults.harness import Run, wait_until
from tests.faults.history import Change
from tests.faults.replica import Load

pytestmark = pytest.mark.timeout(90)
SHORT_LEASE = 1.0
HELD = Load(tasks=2, holds=True, patient=1.0)


def _takeovers(run: Run) -> list[Change]:
    """Every change by which a running task got another owner."""
    return [
        change
        for change in run.tables.history()
        if change.old
        and change.new
        and change.old.status == change.new.status == "running"
        and change.old.locked_by != change.new.locked_by
    ]


def _silences(run: Run) -> list[float]:
    """How long before its removal each node had renewed its lease for the last time."""
    renewed: dict[str, float] = {}
    found = []
    for change in run.tables.node_history():
        if change.kind == "delete":
            found.append(change.wall - renewed[change.id])
        renewed[change.id] = change.wall
    return found


def _pids(run: Run) -> set[int]:
    return {entry.pid for entry in run.ledger.read(["start"])}


def test_a_death_on_the_same_host_is_noticed_at_once(
    make_run: MakeRun, fast_database_url: str
) -> None:
    """The next heartbeat of another node finds the process gone, long before the lease is over."""
    lease = 12.0
    run = make_run(fast_database_url, lease=lease)
    dying = run.start(load=HELD)
    wait_until(lambda: run.started(2), "the start of its tasks")
    other = run.start().wait_until_ready()
    dying.kill()
    wait_until(lambda: run.started(4), "the takeover", lease / 3 + 3.0)
    run.release(2)
    assert run.wait_for_rest()
    other.stop()
    assert len(_takeovers(run)) == 2
    assert run.violations() == []


def test_a_frozen_node_comes_back(make_run: MakeRun, fast_database_url: str) -> None:
    """Taken from after its lease, it kills what it runs, writes nothing, and takes new tasks."""
    run = make_run(fast_database_url, lease=SHORT_LEASE)
    frozen = run.start(load=HELD)
    wait_until(lambda: run.started(2), "the start of its tasks")
    other = run.start().wait_until_ready()
    own = _pids(run)
    frozen_at = time.time()
    frozen.freeze()
    wait_until(lambda: run.started(4), "the takeover")
    time.sleep(SHORT_LEASE)  # two in all
    assert all(psutil.pid_exists(pid) for pid in own)
    assert min(change.wall for change in _takeovers(run)) > frozen_at
    assert min(_silences(run)) > SHORT_LEASE - 0.25
    frozen.thaw()
    wait_until(lambda: not any(map(psutil.pid_exists, own)), "the end of its tasks")
    other.kill()
    wait_until(lambda: run.started(6), "its going on with tasks")
    frozen.kill()
    assert {row.status for row in run.tables.rows()} == {"running"}
    assert {row.attempts for row in run.tables.rows()} == {3}
    violations = [v for v in run.violations() if v.invariant != "I1"]  # they are never released
    assert violations == []


def test_the_lease_of_the_silent_one_counts(make_run: MakeRun, fast_database_url: str) -> None:
    """A node with a shorter one leaves it its tasks."""
    run = make_run(fast_database_url, lease=SHORT_LEASE)
    patient = run.start(load=HELD, lease=60 * SHORT_LEASE)
    wait_until(lambda: run.started(2), "the start of its tasks")
    other = run.start().wait_until_ready()
    patient.freeze()
    time.sleep(3 * SHORT_LEASE)
    patient.thaw()
    run.release(1)
    assert run.wait_for_rest()
    for node in (other, patient):
        node.stop()
    assert _takeovers(run) == []
    assert run.violations() == []


def test_a_node_with_a_longer_lease_looks_as_often(
    make_run: MakeRun, fast_database_url: str
) -> None:
    """It takes over when the other one's has run out, and not when its own would have."""
    run = make_run(fast_database_url, lease=SHORT_LEASE)
    frozen = run.start(load=HELD)
    wait_until(lambda: run.started(2), "the start of its tasks")
    patient = run.start(lease=300 * SHORT_LEASE).wait_until_ready()
    frozen.freeze()
    wait_until(lambda: run.started(4), "the takeover", 10 * SHORT_LEASE)
    frozen.kill()
    run.release(2)
    assert run.wait_for_rest()
    patient.stop()
    assert len(_takeovers(run)) == 2
    assert run.violations() == []


def test_a_frozen_node_whose_tasks_nobody_else_knows(
    make_run: MakeRun, fast_database_url: str
) -> None:
    """It has lost its lease, nobody could take its tasks: it runs them again by itself."""
    run = make_run(fast_database_url, lease=SHORT_LEASE)
    frozen = run.start(load=HELD)
    other = run.start(names=("work",))
    wait_until(lambda: run.started(2), "the start of its tasks")
    other.wait_until_ready()
    frozen.freeze()
    gone = "SELECT count(*) FROM lilota_node"
    wait_until(lambda: run.tables.fetch(gone)[0][0] == 1, "the end of its lease")
    frozen.thaw()
    wait_until(lambda: run.started(4), "their second start")
    run.release(2)
    assert run.wait_for_rest()
    for node in (other, frozen):
        node.stop()
    assert {(row.status, row.attempts) for row in run.tables.rows()} == {("completed", 2)}
    assert run.violations() == []


def test_interruptions_by_policy(make_run: MakeRun, fast_database_url: str) -> None:
    """`fail` fails at the first death; a limit of one puts up with one and fails at the second."""
    run = make_run(fast_database_url)
    loads = {
        "once": Load(tasks=1, holds=True, once=1.0),
        "limited": Load(tasks=1, holds=True, limited=1.0),
    }
    first = [run.start(processes=1, names=(name,), load=load) for name, load in loads.items()]
    wait_until(lambda: run.started(2), "the start of both")
    for node in first:
        node.kill()
    second = run.start()
    wait_until(lambda: run.started(3), "the second start of the one")
    second.kill()
    last = run.start().wait_until_ready()
    assert run.wait_for_rest()
    last.stop()
    rows = {row.name: row for row in run.tables.rows()}
    assert {row.status for row in rows.values()} == {"failed"}
    assert {row.exception["kind"] for row in rows.values()} == {"interrupted"}
    assert {name: (row.attempts, row.interruptions) for name, row in rows.items()} == {
        "once": (1, 1),
        "limited": (2, 2),
    }
    assert run.violations() == []


def test_no_takeover_right_after_an_outage(make_run: MakeRun, cluster: Cluster) -> None:
    """Those that live renew their leases first; one that is frozen is left alone for a lease."""
    lease = 2.0
    run = make_run(cluster.url, lease=lease)
    frozen, living = run.start(load=HELD), run.start(load=HELD)
    watching = run.start(processes=0)
    for node in (frozen, living, watching):
        node.wait_until_ready()
    wait_until(lambda: run.started(4), "the start of the tasks")
    frozen.freeze()
    cluster.stop_immediately()
    time.sleep(2 * lease)
    up = time.time()  # or a little later: the nodes may see it before `start()` returns
    cluster.start()
    wait_until(lambda: len(_takeovers(run)) == 2, "the takeover from the frozen one", 4 * lease)
    assert min(change.wall for change in _takeovers(run)) >= up + lease
    time.sleep(lease)
    assert len(_takeovers(run)) == 2
    assert run.started(4)
    frozen.kill()
    for node in (living, watching):
        node.kill()
    violations = [v for v in run.violations() if v.invariant != "I1"]  # they are never released
    assert violations == []
