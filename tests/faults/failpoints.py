"""Twelve places at which the application dies: `python -m tests.faults.failpoints --runs 600`.

A chain of applications on one database: each takes over from the one before, schedules tasks
of its own and is killed when it comes to its point; at the end one runs everything to rest.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import itertools
import os
import random
import signal
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.faults.harness import Run
    from tests.faults.invariants import Violation

POINTS = (
    "before_claim_commit",
    "after_claim_commit",
    "submit",
    "start_record",
    "result_read",
    "before_finish_commit",
    "after_finish_commit",
    "heartbeat",
    "takeover",
    "stop_drain",
    "stop_halt",
    "stop_close",
)
REACH_SECONDS = 60.0
MOST_TURNS = 6
LEASE_SECONDS = 1.0

Reached = Callable[[Any], bool]


def plant(point: str, turn: int) -> None:
    """Have this process die when it comes to `point` for the `turn`-th time."""
    turns = itertools.count(1)

    def hit() -> None:
        if next(turns) == turn:
            os.kill(os.getpid(), signal.SIGKILL)

    _PLANTERS[point](hit)


def _plant_before_commit(method: str, hit: Callable[[], None]) -> None:
    from lilota_async.storage.postgresql import PostgresqlStore
    from lilota_async.storage.rows import RowStore

    _patch(RowStore, method, hit, when=bool)  # written, and not committed
    for each in (method, "finish_and_claim"):  # one statement, its own commit
        _patch(PostgresqlStore, each, hit, before=True)


def _plant_after_claim(hit: Callable[[], None]) -> None:
    from lilota_async.storage.writer import Writer

    _patch(Writer, "claim", hit, when=lambda claimed: claimed.tasks)


def _plant_after_finish(hit: Callable[[], None]) -> None:
    from lilota_async.storage.writer import Writer

    end = Writer.end

    def patched(self: Writer, value: Any, tell: Any, about: Any = None) -> None:
        def told(_about: None, written: Any, error: Exception | None) -> None:
            tell(about, written, error)
            if written:
                hit()

        end(self, value, told)

    Writer.end = patched  # type: ignore[method-assign, assignment]


def _plant_in_transaction(method: str, hit: Callable[[], None]) -> None:
    from lilota_async.storage.store import Store

    _patch(Store, method, hit, when=bool)


def _plant_heartbeat(hit: Callable[[], None]) -> None:
    from lilota_async.storage.postgresql import PostgresqlStore

    _plant_in_transaction("heartbeat", hit)
    _patch(PostgresqlStore, "renew", hit)  # one statement, its own commit


def _plant_submit(hit: Callable[[], None]) -> None:
    from lilota_async.execution.outbox import Outbox

    send = Outbox.send

    def patched(self: Outbox, data: bytes) -> None:
        send(self, data)
        hit()

    Outbox.send = patched  # type: ignore[method-assign]


def _plant_message(kind: str, hit: Callable[[], None]) -> None:
    from lilota_async.execution.cells import Cell

    on_message = Cell._on_message

    def patched(self: Any, message: Any) -> None:
        if type(message).__name__ == kind:
            hit()
        on_message(self, message)

    Cell._on_message = patched  # type: ignore[method-assign]


def _plant_stop(phase: str, hit: Callable[[], None]) -> None:
    from lilota_async.engine.dispatcher import Dispatcher
    from lilota_async.engine.recovery import Recovery

    if phase == "drain":
        _patch(Dispatcher, "drain", hit, before=True)
    elif phase == "halt":
        _patch(Dispatcher, "halt", hit)
    else:
        _patch(Recovery, "close", hit, before=True)


_PLANTERS: dict[str, Callable[[Callable[[], None]], None]] = {
    "before_claim_commit": functools.partial(_plant_before_commit, "claim"),
    "after_claim_commit": _plant_after_claim,
    "submit": _plant_submit,
    "start_record": functools.partial(_plant_message, "Begin"),
    "result_read": functools.partial(_plant_message, "Outcome"),
    "before_finish_commit": functools.partial(_plant_before_commit, "finish"),
    "after_finish_commit": _plant_after_finish,
    "heartbeat": _plant_heartbeat,
    "takeover": functools.partial(_plant_in_transaction, "adopt"),
    "stop_drain": functools.partial(_plant_stop, "drain"),
    "stop_halt": functools.partial(_plant_stop, "halt"),
    "stop_close": functools.partial(_plant_stop, "close"),
}


def _patch(
    owner: type,
    name: str,
    hit: Callable[[], None],
    *,
    before: bool = False,
    when: Reached = lambda _: True,
) -> None:
    """Call `hit` around an async method: before it, or after it when its result counts."""
    original = getattr(owner, name)
    assert inspect.iscoroutinefunction(original)

    async def patched(*arguments: Any, **keywords: Any) -> Any:
        if before:
            hit()
        result = await original(*arguments, **keywords)
        if not before and when(result):
            hit()
        return result

    setattr(owner, name, patched)


def run_chain(run: Run, points: list[str], seed: int, check_every: int = 12) -> list[Violation]:
    """Kill one application after the other at these points; what is violated at the end."""
    from tests.faults.replica import Load

    chance = random.Random(seed)
    load = Load(
        tasks=10,
        seconds=(0.001, 0.06),
        crashing=0.1,
        hanging=0.02,
        failing=0.1,
        once=0.1,
        patient=0.3,
    )
    numbers = itertools.count(1)
    for count, chosen in enumerate(points, start=1):
        for point, turn in _steps(chance, chosen):
            replica = run.start(
                seed=seed * 1_000_000 + next(numbers),
                load=load,
                failpoint=point,
                failpoint_turn=turn,
                stop_after_load=point.startswith("stop"),
            )
            code = replica.wait(REACH_SECONDS)
            assert code == -signal.SIGKILL, f"the application did not die at {point} but by {code}"
        if count % check_every == 0 and (violations := _rest(run)):
            return violations
    return _rest(run)


def _steps(chance: random.Random, point: str) -> list[tuple[str, int]]:
    """Where an application dies, and for which time it is there; before it another if need be."""
    if point == "takeover":  # there must be something to take
        return [("start_record", 2), (point, 1)]
    once_only = point == "heartbeat" or point.startswith("stop")
    return [(point, 1 if once_only else chance.randint(1, MOST_TURNS))]


def _rest(run: Run) -> list[Violation]:
    last = run.start().wait_until_ready()
    assert run.wait_for_rest(), "tasks are left, or one was lost"
    last.stop()
    return run.violations()


def main() -> None:
    """Run the points in a drawn order until there have been so many."""
    from tests.faults.cluster import Cluster
    from tests.faults.harness import Run

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    points = [point for _ in range(options.runs // 2 // len(POINTS) + 1) for point in POINTS]
    failed = False
    for database in ("sqlite", "postgresql"):
        chance.shuffle(points)
        with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
            url = f"sqlite+aiosqlite:///{name}/lilota.db"
            if database == "postgresql":
                url = stack.enter_context(Cluster()).url
            run = stack.enter_context(Run(url, Path(name), lease=LEASE_SECONDS))
            chosen = points[: options.runs // 2]
            violations = run_chain(run, chosen, options.seed)
            print(
                f"{database}: {len(chosen)} deaths, {len(run.tables.rows())} tasks,"
                f" {len(violations)} violations",
                flush=True,
            )
            for violation in violations:
                failed = True
                print(f"  {violation}")
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
