"""Replicas under load while processes and the database die: `python -m tests.faults.chaos`.

Which faults come, when and upon whom is drawn from the seed; how the processes interleave is
not. It prints what was done and what was found, and ends with 1 when an invariant was violated.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import os
import random
import signal
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from tests.faults.cluster import Cluster
from tests.faults.harness import Replica, Run
from tests.faults.history import Change
from tests.faults.invariants import Violation
from tests.faults.replica import NO_DATABASE, Load

LEASE_SECONDS = 3.0
HEARTBEAT_SECONDS = LEASE_SECONDS / 3
TAKEOVER_BAR = LEASE_SECONDS + HEARTBEAT_SECONDS + 2.0
FAULT_PAUSE = (2.0, 8.0)
DOWN_SECONDS = (0.0, 2.5)
RESTART_SECONDS = (0.2, 2.0)
YOUNG_SECONDS = 3.0  # an application that only just starts has not much to lose
# Well below the lease or well above it: what is right in between depends on the heartbeat.
FREEZES = ((0.1, 0.5), (1.7, 2.5))
REST_SECONDS = 90.0
STEP_SECONDS = 0.05
STATEMENT_ROWS = "SELECT count(*) FROM lilota_task"
STATEMENT_BACKENDS = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
    " AND backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY pid"
)

Kind = Literal["worker_kill", "replica_kill", "replica_stop", "freeze", "backend_kill", "restart"]
WEIGHTS: dict[Kind, int] = {
    "worker_kill": 5,
    "replica_kill": 3,
    "replica_stop": 1,
    "freeze": 3,
    "backend_kill": 3,
    "restart": 2,
}
SQLITE_KINDS: tuple[Kind, ...] = ("worker_kill", "replica_kill", "replica_stop")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command was asked for."""

    minutes: float = 1.0
    tasks: int = 1000
    replicas: int = 3
    seed: int = 1
    database: str = "postgresql"
    seconds: tuple[float, float] = (0.001, 0.5)
    pause: tuple[float, float] = FAULT_PAUSE


@dataclass(slots=True, kw_only=True)
class Report:
    """What a run has shown."""

    faults: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    repeated: int = 0
    takeovers: list[float] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    seconds: float = 0.0
    diary: list[str] = field(default_factory=list)  # of faults, and of what they violated

    def takeover(self, share: float) -> float:
        """The takeover time that this share of them does not exceed; 0 when there was none."""
        ordered = sorted(self.takeovers) or [0.0]
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    def text(self) -> str:
        """For people."""
        tasks = sum(self.statuses.values())
        lines = [
            f"{tasks} tasks in {self.seconds:.0f} s: "
            + ", ".join(f"{count} {status}" for status, count in sorted(self.statuses.items())),
            f"{sum(self.faults.values())} faults: "
            + ", ".join(f"{count} {kind}" for kind, count in sorted(self.faults.items())),
            f"{len(self.takeovers)} takeovers: p50 {self.takeover(0.5):.2f} s,"
            f" p99 {self.takeover(0.99):.2f} s, at most {TAKEOVER_BAR:g} s are allowed",
            f"{self.starts} starts, {self.repeated} of them repeat an earlier one of the same task;"
            " each has an attempt of its own in its row",
            f"{len(self.violations)} violations",
            *(f"  {violation}" for violation in self.violations),
            *(sorted(self.diary) if self.violations else ()),
        ]
        return "\n".join(lines)


class Chaos:
    """Replicas, and what befalls them."""

    def __init__(self, options: Options, run: Run, cluster: Cluster | None) -> None:
        self.report = Report()
        self._began = time.time()
        self._options = options
        self._run = run
        self._cluster = cluster
        self._chance = random.Random(options.seed)
        self._seeds = itertools.count(options.seed * 10_000)
        self._replicas: list[Replica] = []
        self._born: dict[int, float] = {}
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._serials = itertools.count()
        self._up: list[tuple[float, float]] = []  # when the database went and came back
        rate = options.tasks / (options.minutes * 60) / options.replicas
        self._load = Load(
            tasks=None,
            pause=1 / rate,
            seconds=options.seconds,
            crashing=0.05,
            hanging=0.02,
            failing=0.03,
            once=0.1,
            patient=0.3,
        )

    def go(self) -> Report:
        """Do harm for the time that was given, then let all come to rest, and judge."""
        began = time.monotonic()
        end = began + self._options.minutes * 60
        for _ in range(self._options.replicas):
            self._start_one()
        next_fault = began + YOUNG_SECONDS
        while (now := time.monotonic()) < end:
            self._do_what_is_due(now)
            self._look_after()
            if now >= next_fault:
                self._harm()
                next_fault = time.monotonic() + self._chance.uniform(*self._options.pause)
            time.sleep(STEP_SECONDS)
        while self._later:
            self._do_what_is_due(time.monotonic())
            time.sleep(STEP_SECONDS)
        self.report.seconds = time.monotonic() - began
        self._rest()
        self._judge()
        return self.report

    def _start_one(self) -> None:
        replica = self._run.start(
            seed=next(self._seeds), load=self._load, drain=False, stop_timeout=0.3
        )
        self._born[replica.pid] = time.monotonic()
        self._replicas.append(replica)

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._serials), action))

    def _do_what_is_due(self, now: float) -> None:
        while self._later and self._later[0][0] <= now:
            heapq.heappop(self._later)[2]()

    def _harm(self) -> None:
        """One fault, the same for the same seed as far as there is somebody to hit."""
        kinds = [kind for kind in WEIGHTS if self._cluster or kind in SQLITE_KINDS]
        (kind,) = self._chance.choices(kinds, [WEIGHTS[kind] for kind in kinds])
        at, amount = self._chance.random(), self._chance.random()
        old = time.monotonic() - YOUNG_SECONDS
        whole = [r for r in self._replicas if not r.is_frozen and self._born[r.pid] < old]
        if not whole:
            return
        victim = whole[int(at * len(whole))]
        done = {
            "worker_kill": lambda: self._kill_worker(victim, amount),
            "replica_kill": lambda: self._kill_replica(victim, amount),
            "replica_stop": lambda: self._stop_replica(victim, amount),
            "freeze": lambda: self._freeze(victim, amount),
            "backend_kill": lambda: self._kill_backends(amount),
            "restart": lambda: self._restart(amount),
        }[kind]()
        self.report.faults[done] += 1
        self._note(time.time(), f"process {victim.pid}: {done}")

    def _note(self, wall: float, what: str) -> None:
        self.report.diary.append(f"{wall - self._began:8.3f} s  {what}")

    def _kill_worker(self, victim: Replica, amount: float) -> str:
        processes = victim.task_processes()
        if processes:
            with suppress(ProcessLookupError):
                os.kill(processes[int(amount * len(processes))], signal.SIGKILL)
        return "task processes killed"

    def _kill_replica(self, victim: Replica, amount: float) -> str:
        self._replicas.remove(victim)
        victim.kill()
        self._after(_within(RESTART_SECONDS, amount), self._start_one)
        return "applications killed"

    def _stop_replica(self, victim: Replica, amount: float) -> str:
        self._replicas.remove(victim)
        if victim.has_started():
            victim.stop()
        else:
            self._judge_end(victim)
        self._after(_within(RESTART_SECONDS, amount), self._start_one)
        return "applications stopped in order"

    def _freeze(self, victim: Replica, amount: float) -> str:
        long = amount < 0.5
        share = amount * 2 if long else amount * 2 - 1
        victim.freeze()

        def thaw() -> None:
            if victim.is_frozen:
                victim.thaw()
                self._note(time.time(), f"process {victim.pid}: goes on")

        self._after(_within(FREEZES[long], share) * LEASE_SECONDS, thaw)
        return f"applications frozen for {'more' if long else 'less'} than a lease"

    def _kill_backends(self, amount: float) -> str:
        pids = [row[0] for row in self._run.tables.fetch(STATEMENT_BACKENDS)]
        count = max(1, round(amount * len(pids)))
        chosen = self._chance.sample(pids, min(count, len(pids)))
        if chosen:
            numbers = ", ".join(map(str, chosen))
            self._run.tables.fetch(
                f"SELECT pg_terminate_backend(p) FROM unnest(ARRAY[{numbers}]) p"
            )
        return "rounds of connections killed"

    def _restart(self, amount: float) -> str:
        assert self._cluster is not None
        gone = time.time()
        self._cluster.stop_immediately()
        time.sleep(_within(DOWN_SECONDS, amount))
        self._cluster.start()
        self._up.append((gone, time.time()))
        return "database crashes"

    def _look_after(self) -> None:
        for replica in [each for each in self._replicas if not each.is_alive]:
            self._judge_end(replica)
            self._replicas.remove(replica)
            self._start_one()

    def _judge_end(self, replica: Replica) -> None:
        """One that has ended by itself is a failure, unless its start() found no database."""
        code = replica.wait()
        if code == NO_DATABASE:
            self.report.faults["starts without a database"] += 1
        else:
            what = f"ended by itself with {code}"
            violation = Violation(invariant="life", id=str(replica.pid), what=what)
            self.report.violations.append(violation)

    def _rest(self) -> None:
        while not all(replica.has_started() for replica in self._replicas):
            self._look_after()
        for replica in self._replicas:
            replica.schedule_no_more()
        self._run.wait_for_rest(REST_SECONDS)  # what is left is for the checker to tell
        for replica in self._replicas:
            replica.stop()

    def _judge(self) -> None:
        report, run = self.report, self._run
        # Silence counts from the last heartbeat, which may have been a while before the freeze.
        run.facts.freezes[:] = [
            replace(freeze, start=freeze.start - HEARTBEAT_SECONDS - 0.2)
            for freeze in run.facts.freezes
        ]
        report.violations += run.violations()
        report.statuses = Counter(row.status for row in run.tables.rows())
        starts = Counter(entry.id for entry in run.ledger.read(["start"]))
        report.starts = sum(starts.values())
        report.repeated = report.starts - len(starts)
        report.takeovers = self._takeovers()
        self._tell_the_violated()
        if run.tables.is_sqlite and run.tables.fetch("PRAGMA integrity_check") != [("ok",)]:
            report.violations.append(
                Violation(invariant="file", id="sqlite", what="integrity_check is not ok")
            )

    def _tell_the_violated(self) -> None:
        violated = {violation.id for violation in self.report.violations}
        pids = {node.id: node.pid for node in self._run.tables.node_history()}
        for change in self._run.tables.history():
            if change.id in violated and change.new is not None:
                new, owner = change.new, pids.get(change.new.locked_by or "")
                what = f"{new.status}, attempt {new.attempts}, of process {owner}"
                self._note(change.wall, f"task {change.id}: {what}")
        for node in self._run.tables.node_history():
            if node.kind != "update":
                self._note(node.wall, f"process {node.pid}: its node's {node.kind}")

    def _takeovers(self) -> list[float]:
        """Seconds from each loss to its takeover, from when the database was there for it."""
        pids = {node.id: node.pid for node in self._run.tables.node_history()}
        frozen: dict[int, list[float]] = defaultdict(list)
        for freeze in self._run.facts.freezes:
            frozen[freeze.pid].append(freeze.start + HEARTBEAT_SECONDS + 0.2)
        found = []
        for change in self._run.tables.history():
            owner = _loser(change)
            pid = pids.get(owner) if owner else None
            if pid is None:
                continue
            moments = [*frozen[pid], self._run.facts.ended.get(pid, float("inf"))]
            lost = max((each for each in moments if each <= change.wall), default=change.wall)
            for gone, back in self._up:
                if lost - LEASE_SECONDS <= back and gone <= change.wall:
                    lost = max(lost, back)  # after an outage everybody gets a lease's time
            found.append(max(0.0, change.wall - lost))
        return found


def _loser(change: Change) -> str | None:
    """Whose task another node has taken by this change."""
    old, new = change.old, change.new
    if not old or not new or (old.status, new.status) != ("running", "running"):
        return None
    return old.locked_by if old.locked_by != new.locked_by else None


def _within(bounds: tuple[float, float], share: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * share


def chaos(options: Options, directory: Path) -> Report:
    """One run in a new database."""
    with ExitStack() as stack:
        cluster = None
        url = f"sqlite+aiosqlite:///{directory / 'lilota.db'}"
        if options.database == "postgresql":
            cluster = stack.enter_context(Cluster())
            url = cluster.url
        run = stack.enter_context(Run(url, directory, lease=LEASE_SECONDS))
        return Chaos(options, run, cluster).go()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    defaults = Options()
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--replicas", type=int, help="3, or 1 on SQLite")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--longest", type=float, default=0.5, help="seconds of a task")
    parser.add_argument("--database", choices=("postgresql", "sqlite"), default="postgresql")
    given = parser.parse_args()
    replicas = given.replicas or (1 if given.database == "sqlite" else defaults.replicas)
    options = Options(
        minutes=given.minutes,
        tasks=given.tasks,
        replicas=replicas,
        seed=given.seed,
        database=given.database,
        seconds=(0.001, given.longest),
    )
    print(f"seed {options.seed}, {options.replicas} replicas on {options.database}", flush=True)
    with tempfile.TemporaryDirectory(prefix="lilota-chaos-") as name:
        report = chaos(options, Path(name))
    print(report.text())
    raise SystemExit(bool(report.violations) or report.takeover(0.99) > TAKEOVER_BAR)


if __name__ == "__main__":
    main()
