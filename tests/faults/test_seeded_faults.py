"""The checker is checked: each fault planted into the library is caught, and none without one."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.databases import Servers
from tests.faults.conftest import MakeRun
from tests.faults.harness import DEADLINE, Run, wait_until
from tests.faults.invariants import invariants_of
from tests.faults.replica import Load
from tests.faults.seeded import FAULTS

LEASE = 1.0
SETTLING_SECONDS = 5.0  # with a fault, after which there may be no end to what is due
pytestmark = pytest.mark.timeout(90)


def _patience(fault: str | None) -> float:
    return DEADLINE if fault is None else SETTLING_SECONDS


def _load(run: Run, fault: str | None) -> None:
    """One node with a little of everything."""
    load = Load(tasks=30, seconds=(0, 0.02), crashing=0.2, failing=0.2, hopeless=0.1)
    node = run.start(load=load, fault=fault, drain=False).wait_until_ready()
    run.wait_for_rest(_patience(fault), load=30)
    node.stop()


def _competition(run: Run, fault: str | None) -> None:
    """Two nodes that both have free places, and a third that schedules."""
    nodes = [run.start(fault=fault) for _ in range(2)]
    nodes.append(run.start(processes=0, load=Load(tasks=150, seconds=(0, 0.005))))
    for node in nodes:
        node.wait_until_ready()
    run.wait_for_rest(_patience(fault), load=150)
    for node in nodes:
        node.stop()


def _neighbour(run: Run, fault: str | None) -> None:
    """A node at work for longer than a lease, and another that keeps an eye on it."""
    load = Load(tasks=2, holds=True, patient=1.0)
    nodes = [run.start(load=load, fault=fault)]
    wait_until(lambda: run.started(2), "the start of its tasks")
    nodes.append(run.start().wait_until_ready())
    end = time.monotonic() + (4 * LEASE if fault is None else DEADLINE / 2)
    while not run.started(3) and time.monotonic() < end:  # what only a fault starts again
        time.sleep(0.05)
    for attempt in (1, 2, 3):
        run.release(attempt)
    run.wait_for_rest(_patience(fault))
    for node in nodes:
        node.stop()


def _freeze(run: Run, fault: str | None) -> None:
    """A node stands still past its lease and comes back while its tasks run elsewhere."""
    frozen = run.start(load=Load(tasks=2, holds=True, patient=1.0), fault=fault)
    wait_until(lambda: run.started(2), "the start of its tasks")
    other = run.start().wait_until_ready()
    frozen.freeze()
    wait_until(lambda: run.started(4), "the takeover")
    run.release(1)  # its own processes come to their ends while it stands still
    wait_until(lambda: run.started(2, "end"), "the ends of its own attempts")
    frozen.thaw()
    end = time.monotonic() + (0.5 if fault is None else DEADLINE / 2)
    while run.tables.unfinished() == 2 and time.monotonic() < end:  # what only a fault ends now
        time.sleep(0.05)
    run.release(2)
    run.wait_for_rest(_patience(fault))
    for node in (frozen, other):
        node.stop()


def _death(run: Run, fault: str | None) -> None:
    """A node dies in the middle of what must not be repeated, and another starts."""
    dying = run.start(load=Load(tasks=2, holds=True, once=1.0), fault=fault)
    wait_until(lambda: run.started(2), "the start of its tasks")
    dying.kill()
    run.release(2)
    after = run.start(fault=fault).wait_until_ready()
    run.wait_for_rest(_patience(fault))
    after.stop()


def _stop(run: Run, fault: str | None) -> None:
    """A node is stopped in order while it runs tasks."""
    load = Load(tasks=4, seconds=(1.0, 1.1), patient=1.0)
    node = run.start(load=load, drain=False, fault=fault)
    wait_until(lambda: run.started(2), "the start of its tasks")
    node.stop()
    after = run.start().wait_until_ready()
    run.wait_for_rest(_patience(fault))
    after.stop()


SCENARIOS: dict[str, tuple[Callable[[Run, str | None], None], str, str]] = {
    "fence_dropped": (_freeze, "sqlite", "I6"),
    "claim_without_skip_locked": (_competition, "postgresql+asyncpg", "I7"),
    "finish_before_run": (_load, "sqlite", "I6"),
    "host_clock": (_neighbour, "sqlite", "I7"),
    "lease_not_renewed": (_neighbour, "sqlite", "I7"),
    "requeue_without_counting": (_load, "sqlite", "I3"),
    "crash_taken_as_success": (_load, "sqlite", "I6"),
    "finish_error_swallowed": (_load, "sqlite", "I1"),
    "stop_drops_work": (_stop, "sqlite", "I7"),
    "retry_with_a_new_id": (_load, "sqlite", "I2"),
    "acknowledged_before_commit": (_load, "sqlite", "I1"),
    "run_without_claim": (_load, "sqlite", "I3"),
    "interruption_policy_ignored": (_death, "sqlite", "I8"),
    "attempts_without_end": (_load, "sqlite", "I4"),
    "final_is_not_final": (_load, "sqlite", "I7"),
}


def test_each_fault_has_its_scenario() -> None:
    """No fault is planted nowhere."""
    assert set(SCENARIOS) == set(FAULTS)


@pytest.mark.parametrize("fault", list(SCENARIOS))
def test_a_seeded_fault_is_caught(
    make_run: MakeRun, servers: Servers, tmp_path: Path, fault: str
) -> None:
    """The invariant that the fault breaks is among those that the checker names."""
    scenario, backend, invariant = SCENARIOS[fault]
    run = make_run(servers.database(backend, tmp_path), lease=LEASE)
    scenario(run, fault)
    violations = run.violations()
    assert invariant in invariants_of(violations), violations


CLEAN = [
    *((scenario, "sqlite") for scenario in (_load, _competition, _neighbour, _freeze, _stop)),
    *((scenario, "postgresql+asyncpg") for scenario in (_load, _competition, _freeze, _death)),
]


@pytest.mark.parametrize(("scenario", "backend"), CLEAN)
def test_without_a_fault(
    make_run: MakeRun,
    servers: Servers,
    tmp_path: Path,
    scenario: Callable[[Run, str | None], None],
    backend: str,
) -> None:
    """The same scenarios with the library as it is violate nothing."""
    run = make_run(servers.database(backend, tmp_path), lease=LEASE)
    scenario(run, None)
    assert run.violations() == []
