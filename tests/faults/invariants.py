"""The invariants I1 to I8, checked on ledgers and histories by nothing of the library's own.

I1  Every acknowledged id has a row, and at rest every row is final.
I2  What runs has a row; every row was asked for, once; what was refused has none.
I3  An attempt starts at most once, after it was committed; starts never exceed attempts.
I4  Attempts never exceed what is allowed.
I5  No two runs of one id overlap, but for a node that was silent for its lease.
I6  `completed` follows an `end` of that very attempt, with its output.
I7  Transitions are legal, and nobody takes a task from a node that lives and renews its lease.
I8  A task that must not be repeated is started at most once.

I9, that nothing is left behind after `stop()`, is looked at where processes are (`harness`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from tests.faults.history import Change, NodeChange, Row, State
from tests.faults.ledger import Entry

FINAL = ("completed", "failed", "cancelled")
CLOCK_SECONDS = 0.005  # SQLite's clock has milliseconds
HEARTBEATS_PER_LEASE = 3
HEARTBEAT_LATE_SECONDS = 0.25
LEGAL = {
    ("pending", "running"),
    ("pending", "cancelled"),
    ("running", "running"),
    ("running", "pending"),
    *(("running", final) for final in FINAL),
    *((final, "pending") for final in FINAL),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Freeze:
    """A process that stood still between two moments of the wall clock."""

    pid: int
    start: float
    end: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was done to the processes, and what the tasks were registered with."""

    lease_seconds: float
    ended: dict[int, float] = field(default_factory=dict)
    freezes: list[Freeze] = field(default_factory=list)
    max_attempts: dict[str, int] = field(default_factory=dict)
    never_repeated: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What was written down while it ran."""

    ledger: list[Entry]
    history: list[Change]
    nodes: list[NodeChange]
    rows: list[Row]


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """An invariant that does not hold, and for which task."""

    invariant: str
    id: str
    what: str

    def __str__(self) -> str:
        return f"{self.invariant} {self.id}: {self.what}"


@dataclass(slots=True, kw_only=True)
class Run:
    """One attempt's body, as far as it was seen to live."""

    attempt: int
    start: float
    end: float
    ended: bool = False
    value: object = None


def check(evidence: Evidence, facts: Facts) -> list[Violation]:
    """Every violation that the evidence shows."""
    case = Case(evidence, facts)
    checks = (
        case.nothing_lost,
        case.nothing_unasked,
        case.starts_are_counted,
        case.attempts_are_allowed,
        case.no_overlap,
        case.completed_is_true,
        case.transitions_are_legal,
        case.never_repeated,
    )
    return [violation for each in checks for violation in each()]


class Case:
    """The evidence, sorted by task."""

    def __init__(self, evidence: Evidence, facts: Facts) -> None:
        self._facts = facts
        self._rows = {row.id: row for row in evidence.rows}
        self._told: dict[str, set[str]] = defaultdict(set)
        self._acknowledged: set[str] = set()
        self._stopped = {e.pid: e.wall for e in evidence.ledger if e.kind == "stopped"}
        self._starts: dict[str, list[Entry]] = defaultdict(list)
        self._runs: dict[str, list[Run]] = defaultdict(list)
        self._history: dict[str, list[Change]] = defaultdict(list)
        self._nodes: dict[str, list[NodeChange]] = defaultdict(list)
        for node in evidence.nodes:
            self._nodes[node.id].append(node)
        self._pids = {change.id: change.pid for change in evidence.nodes if change.kind == "insert"}
        for each in evidence.history:
            self._history[each.id].append(each)
        for entry in evidence.ledger:
            self._note(entry)

    def _note(self, entry: Entry) -> None:
        if entry.kind in ("intent", "ack", "unknown", "refused"):
            self._told[entry.token].add(entry.kind)
            if entry.kind == "ack":
                self._acknowledged.add(entry.id)
        elif entry.kind == "start":
            self._starts[entry.id].append(entry)
            run = Run(attempt=entry.attempt, start=entry.wall, end=entry.wall)
            self._runs[entry.id].append(run)
        elif entry.kind in ("tick", "end"):
            for run in reversed(self._runs[entry.id]):
                if run.attempt == entry.attempt:
                    run.end = entry.wall
                    run.ended = run.ended or entry.kind == "end"
                    run.value = entry.value if entry.kind == "end" else run.value
                    break

    def nothing_lost(self) -> Iterator[Violation]:
        """I1."""
        for task_id in self._acknowledged - set(self._rows):
            yield Violation(invariant="I1", id=task_id, what="acknowledged, and has no row")
        for row in self._rows.values():
            if row.status not in FINAL:
                yield Violation(invariant="I1", id=row.id, what=f"at rest it is {row.status}")

    def nothing_unasked(self) -> Iterator[Violation]:
        """I2."""
        for task_id, starts in self._starts.items():
            inserted = [c.wall for c in self._history[task_id] if c.old is None]
            if not inserted or inserted[0] > starts[0].wall + CLOCK_SECONDS:
                yield Violation(invariant="I2", id=task_id, what="it ran before it had a row")
        seen: set[str] = set()
        for row in self._rows.values():
            if "intent" not in self._told[row.token] or row.token in seen:
                yield Violation(invariant="I2", id=row.id, what="nobody asked for this row")
            if self._told[row.token] == {"intent", "refused"}:
                yield Violation(invariant="I2", id=row.id, what="refused, and has a row")
            seen.add(row.token)

    def starts_are_counted(self) -> Iterator[Violation]:
        """I3."""
        for task_id, starts in self._starts.items():
            attempts = [entry.attempt for entry in starts]
            row = self._rows.get(task_id)
            if len(set(attempts)) < len(attempts):
                yield Violation(invariant="I3", id=task_id, what=f"attempts started: {attempts}")
            if row is not None and max(len(attempts), *attempts) > row.attempts:
                what = f"{attempts} started, {row.attempts} are recorded"
                yield Violation(invariant="I3", id=task_id, what=what)
            claims = {
                c.new.attempts: c.wall
                for c in reversed(self._history[task_id])
                if c.new and _is_claim(c)
            }
            for entry in starts:
                if claims.get(entry.attempt, entry.wall + 1) > entry.wall + CLOCK_SECONDS:
                    what = f"attempt {entry.attempt} started before it was recorded"
                    yield Violation(invariant="I3", id=task_id, what=what)

    def attempts_are_allowed(self) -> Iterator[Violation]:
        """I4."""
        for row in self._rows.values():
            if row.attempts > row.max_attempts:
                what = f"{row.attempts} attempts, {row.max_attempts} are allowed"
                yield Violation(invariant="I4", id=row.id, what=what)
            registered = self._facts.max_attempts.get(row.name)
            put_back = sum(
                1 for c in self._history[row.id] if _is(c, "running", "pending") or _is_retry(c)
            )
            if registered is not None and row.max_attempts > registered + put_back:
                what = f"{row.max_attempts} allowed of {registered}, put back {put_back} times"
                yield Violation(invariant="I4", id=row.id, what=what)

    def no_overlap(self) -> Iterator[Violation]:
        """I5."""
        for task_id, runs in self._runs.items():
            ordered = sorted(runs, key=lambda run: run.start)
            for earlier, later in pairwise(ordered):
                overlap = earlier.end > later.start + CLOCK_SECONDS
                if overlap and not self._was_silent(self._node_of(task_id, earlier), later.start):
                    what = f"attempts {earlier.attempt} and {later.attempt} ran at the same time"
                    yield Violation(invariant="I5", id=task_id, what=what)

    def completed_is_true(self) -> Iterator[Violation]:
        """I6."""
        for task_id, changes in self._history.items():
            for change in changes:
                if change.new is None or not _is(change, "running", "completed"):
                    continue
                attempt = change.new.attempts
                runs = [r for r in self._runs[task_id] if r.attempt == attempt and r.ended]
                if not any(run.end <= change.wall + CLOCK_SECONDS for run in runs):
                    what = f"completed, and attempt {attempt} had not come to its end"
                    yield Violation(invariant="I6", id=task_id, what=what)
                row = self._rows.get(task_id)
                is_last = row is not None and row.attempts == attempt
                if row and is_last and runs and row.output not in [run.value for run in runs]:
                    yield Violation(invariant="I6", id=task_id, what=f"output {row.output!r}")

    def transitions_are_legal(self) -> Iterator[Violation]:
        """I7."""
        for task_id, changes in self._history.items():
            for change in changes:
                what = self._illegal(change)
                if what:
                    yield Violation(invariant="I7", id=task_id, what=what)

    def never_repeated(self) -> Iterator[Violation]:
        """I8."""
        for task_id, starts in self._starts.items():
            row = self._rows.get(task_id)
            if row is not None and row.name in self._facts.never_repeated and len(starts) > 1:
                what = f"{row.name} was started {len(starts)} times"
                yield Violation(invariant="I8", id=task_id, what=what)

    def _illegal(self, change: Change) -> str | None:
        old, new = change.old, change.new
        if new is None:
            return "the row was deleted"
        if old is None:
            runs = new.status == "running" and new.attempts == 1 and new.locked_by
            return None if new.status == "pending" or runs else f"born {new.status}"
        step = f"{_told(old)} -> {_told(new)}"
        if (old.status, new.status) not in LEGAL:
            return step
        if old.status == "pending" and new.status == "running":
            return None if new.attempts == old.attempts + 1 and new.locked_by else step
        if old.status == new.status == "running":
            if new.locked_by == old.locked_by:
                return None if new.attempts == old.attempts else step
            if new.interruptions != old.interruptions + 1 or new.attempts != old.attempts:
                return step
            return self._illegal_takeover(old, change.wall)
        if new.status in FINAL and (new.attempts, new.locked_by) != (old.attempts, old.locked_by):
            return step
        if new.status == "pending" and new.attempts not in (old.attempts, old.attempts - 1):
            return step
        return None

    def _illegal_takeover(self, old: State, wall: float) -> str | None:
        if old.locked_by is None:
            return None
        pid = self._pids.get(old.locked_by)
        if pid is None:
            return f"taken from the node {old.locked_by}, which nobody has seen"
        if self._stopped.get(pid, wall) < wall:
            return f"left running by process {pid}, which has stopped in order"
        ended = self._facts.ended.get(pid)
        if ended is not None and ended <= wall + CLOCK_SECONDS:
            return None
        if self._was_silent(old.locked_by, wall):
            return None
        return f"taken from process {pid}, which lives"

    def _was_silent(self, node: str | None, wall: float) -> bool:
        """Whether it had lost its lease by this moment: it stood still, or was too slow.

        One that was too slow has noticed it, and registered again. When its row was removed,
        the last renewal that the database has seen was a lease ago, whyever that was.
        """
        if node is None:
            return False
        pid = self._pids.get(node)
        if self._was_frozen(pid, wall):
            return True
        changes = self._nodes[node]
        for number, (last, change) in enumerate(pairwise(changes), start=2):
            silence = change.wall - last.wall
            is_over = silence > self._facts.lease_seconds - HEARTBEAT_LATE_SECONDS
            if change.kind != "delete" or change.wall > wall + CLOCK_SECONDS or not is_over:
                continue
            came_back = any(each.kind == "insert" for each in changes[number:])
            stood = any(f.pid == pid and f.start <= change.wall for f in self._facts.freezes)
            if came_back or stood:
                return True
        return False

    def _was_frozen(self, pid: int | None, wall: float) -> bool:
        """Whether it had been silent for a lease by this moment, for it stood still."""
        lease = self._facts.lease_seconds
        # It may have been about to renew its lease when it was frozen.
        silent = lease / HEARTBEATS_PER_LEASE + HEARTBEAT_LATE_SECONDS
        return any(
            freeze.pid == pid and min(wall, freeze.end) - freeze.start > lease - silent
            for freeze in self._facts.freezes
        )

    def _node_of(self, task_id: str, run: Run) -> str | None:
        for change in self._history[task_id]:
            if change.new and _is_claim(change) and change.new.attempts == run.attempt:
                return change.new.locked_by
        return None


def _is(change: Change, old: str, new: str) -> bool:
    return bool(change.old and change.new and (change.old.status, change.new.status) == (old, new))


def _is_claim(change: Change) -> bool:
    """pending -> running, or inserted as running."""
    born = change.old is None and change.new is not None and change.new.status == "running"
    return born or _is(change, "pending", "running")


def _is_retry(change: Change) -> bool:
    return bool(
        change.old and change.new and change.old.status in FINAL and change.new.status == "pending"
    )


def _told(state: State) -> str:
    return f"{state.status}/{state.attempts}"


def invariants_of(violations: Iterable[Violation]) -> set[str]:
    """Which invariants are violated."""
    return {violation.invariant for violation in violations}
