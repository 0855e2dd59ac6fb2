"""Several nodes share a backlog, and each takes only what it knows."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.faults.conftest import MakeRun
from tests.faults.harness import Run, wait_until
from tests.faults.replica import Load

pytestmark = pytest.mark.timeout(90)
BACKLOG = 120


def _workers(run: Run) -> Counter[int]:
    """How many tasks each node has ended, by the process of the node.

    A busy one may have put some back before they began, which is no attempt.
    """
    pids = {node.id: node.pid for node in run.tables.node_history()}
    return Counter(
        pids[change.new.locked_by or ""]
        for change in run.tables.history()
        if change.new and change.new.status == "completed"
    )


def test_two_nodes_share_a_backlog(make_run: MakeRun, fast_database_url: str) -> None:
    """What waits when both come is done by both, each task once."""
    run = make_run(fast_database_url)
    load = Load(tasks=BACKLOG, seconds=(0.03, 0.04), holds=True, patient=1.0)
    source = run.start(processes=0, load=load)
    wait_until(lambda: run.started(BACKLOG, "ack"), "the scheduling")
    nodes = [run.start(), run.start()]
    for node in nodes:
        node.wait_until_ready()
    wait_until(lambda: run.started(4), "the start of two tasks on each")  # or one would do it all
    run.release(1)
    assert run.wait_for_rest()
    for node in (source, *nodes):
        node.stop()
    done = _workers(run)
    assert sum(done.values()) == BACKLOG
    assert min(done[node.pid] for node in nodes) > BACKLOG / 10
    assert {row.attempts for row in run.tables.rows()} == {1}
    assert run.violations() == []


def test_an_idle_node_helps(make_run: MakeRun, fast_database_url: str) -> None:
    """A node that has more than it can run at once leaves the rest to one with nothing to do."""
    run = make_run(fast_database_url)
    idle = run.start().wait_until_ready()
    busy = run.start(load=Load(tasks=BACKLOG, seconds=(0.03, 0.04)), processes=1)
    assert run.wait_for_rest(load=BACKLOG)
    for node in (busy, idle):
        node.stop()
    done = _workers(run)
    assert done[idle.pid] > BACKLOG / 4
    assert done[busy.pid] > 0
    assert run.violations() == []


def test_a_node_takes_only_what_it_knows(make_run: MakeRun, fast_database_url: str) -> None:
    """During a rolling deployment the old version leaves alone what only the new one knows."""
    run = make_run(fast_database_url)
    load = Load(tasks=40, seconds=(0, 0.01), patient=0.5)
    old = run.start(names=("work",)).wait_until_ready()
    source = run.start(processes=0, load=load)
    wait_until(lambda: run.started(40, "ack"), "the scheduling")
    left = "SELECT count(*) FROM lilota_task WHERE status <> 'completed' AND name = 'work'"
    wait_until(lambda: not run.tables.fetch(left)[0][0], "the end of what it knows")
    statuses = {(row.name, row.status) for row in run.tables.rows()}
    assert statuses == {("work", "completed"), ("patient", "pending")}
    new = run.start()
    assert run.wait_for_rest()
    for node in (old, source, new.wait_until_ready()):
        node.stop()
    assert {row.status for row in run.tables.rows()} == {"completed"}
    assert run.violations() == []
