"""What `stats()` returns: how much waits, runs and has ended, and who is there to run it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class NameStats:
    """The tasks of one name, on all nodes; durations in seconds.

    Attributes:
        name: The name of the tasks.
        pending: How many wait, those that become due later included.
        due: How many of them could run now.
        running: How many run.
        failed: How many rows say `failed`, counted up to 10,000.
        oldest_pending_seconds: For how long the one that waits longest has been due; None
            when nothing is.
        finished: How many completed or failed in the last five minutes, of the latest 500
            of either.
        throughput: How many of them per second, from the start of the first of them to now.
        p50_seconds: How long the last attempts of the latest 500 completed tasks took: half
            of them not longer than this. None when there are none.
        p95_seconds: The same for 95 of 100.
        wait_seconds: About how long a task that is scheduled now waits for its start, by the
            throughput; None when something is due and nothing tells how fast it will go, and
            while it is paused.
        paused: Whether `pause()` keeps tasks of this name from starting.
    """

    name: str
    pending: int
    due: int
    running: int
    failed: int
    oldest_pending_seconds: float | None
    finished: int
    throughput: float
    p50_seconds: float | None
    p95_seconds: float | None
    wait_seconds: float | None
    paused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStats:
    """One started Lilota.

    `names` are those of the tasks that it runs; `slots` how many in processes at a time.
    `seconds_since_seen` is the age of its last heartbeat, by the database's clock; it is not
    `is_live` when that is longer than its lease.
    """

    id: UUID
    host: str
    pid: int
    slots: int
    names: tuple[str, ...]
    version: str
    seconds_since_seen: float
    is_live: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """How it stands with the tasks of one database.

    `names` has every name of a task in the table or of a live node. `unclaimable` are those
    that wait and that no live node has registered: they wait until one does.

    Example:
        >>> stats = await lilota.stats()
        >>> for each in stats.names.values():
        ...     print(each.name, each.pending, each.running, each.wait_seconds)
    """

    names: Mapping[str, NameStats]
    nodes: tuple[NodeStats, ...]
    unclaimable: tuple[str, ...]

    @property
    def pending(self) -> int:
        """How many tasks wait, of all names."""
        return sum(each.pending for each in self.names.values())

    @property
    def running(self) -> int:
        """How many tasks run, of all names."""
        return sum(each.running for each in self.names.values())
