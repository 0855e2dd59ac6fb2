"""What the engine asks of the store, and what it gets back: frozen values, JSON as text.

Structs, since making a frozen dataclass takes ten times as long, and each task makes five.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING
from uuid import UUID

import msgspec

from lilota_async.models.rates import Rate
from lilota_async.models.values import TaskId, TaskStatus

if TYPE_CHECKING:
    from lilota_async.models.tables import Task

FAILURES_KEPT = 20  # of the earlier attempts of a task, the latest ones


class NewTask(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A row to insert: pending, or running at once by this node in the process `pid`.

    Due at `run_at`, or after `delay_seconds`. A `unique_key` is taken until the task is final,
    and for `unique_seconds` at least.
    """

    id: TaskId
    name: str
    input: str | None = None
    priority: int = 0
    delay_seconds: float = 0.0
    run_at: datetime | None = None
    max_attempts: int = 1
    timeout_seconds: float | None = None
    tags: str | None = None
    unique_key: str | None = None
    unique_seconds: float | None = None
    concurrency_key: str | None = None
    node_id: UUID | None = None
    pid: int | None = None
    nominal_time: datetime | None = None

    @property
    def is_due(self) -> bool:
        """Whether it may run as soon as it is there, by all that is known here."""
        return self.run_at is None and not self.delay_seconds


class Bound(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The most tasks of a name that may wait; without a name, of all."""

    name: str | None
    most: int


class BoundedInsert(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Rows to insert, all or none, if there is room for them and for `more` to follow."""

    tasks: Sequence[NewTask]
    bounds: tuple[Bound, ...]
    more: int = 0

    @property
    def rows(self) -> int:
        """How much room it needs."""
        return len(self.tasks) + self.more


class Dependent(msgspec.Struct, frozen=True, kw_only=True):
    """A row to insert that waits until the tasks of `after` have ended."""

    task: NewTask
    after: tuple[UUID, ...] = ()
    runs_if_failed: bool = False


class Edge(msgspec.Struct, frozen=True, kw_only=True):
    """`task` waits for `on`, whose status is None when it is gone."""

    on: TaskId
    task: TaskId
    runs_if_failed: bool
    not_before: datetime | None
    status: str | None

    @property
    def cancels(self) -> bool:
        """Whether the task is not to run, since the other was not completed."""
        return self.status != TaskStatus.COMPLETED and not self.runs_if_failed


class Released(msgspec.Struct, frozen=True, kw_only=True):
    """What has become of tasks that waited; `held` when some are left, which others hold."""

    due: tuple[TaskId, ...] = ()
    cancelled: tuple[TaskId, ...] = ()
    dropped: int = 0
    held: bool = False


class Claim(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A request for due tasks of `names`: at most one for each of `pids`."""

    node_id: UUID
    names: tuple[str, ...]
    pids: tuple[int, ...]
    created_before: datetime | None = None


class NameLimit(msgspec.Struct, frozen=True, kw_only=True):
    """The most tasks of a name that may run on all nodes, and how many may start in how long."""

    name: str
    most_running: int | None = None
    rate: Rate | None = None


class LimitedClaim(msgspec.Struct, frozen=True, kw_only=True):
    """A claim that looks name by name, within limits where there are any.

    `keyed` are names that may have tasks with a concurrency key.
    """

    claim: Claim
    limits: tuple[NameLimit, ...] = ()
    keyed: frozenset[str] = frozenset()

    @property
    def has_limits(self) -> bool:
        """Whether more than the free slots decides what may start."""
        return bool(self.limits or self.keyed)


class News(StrEnum):
    """What one node tells the others."""

    ROWS = "rows"
    """There is something to claim, or a node that wants to be told of it."""
    LOOK = "look"
    """A claim is not enough: what becomes due or may run has changed."""
    CANCEL = "cancel"
    """Somebody wants what runs to be cancelled."""


class InUse(msgspec.Struct, frozen=True, kw_only=True):
    """The names for which claims are other than usual.

    Those with tasks that wait with a concurrency key, those that are paused, and those of which
    so many wait that a claim for other names had better not pass over them.
    """

    keyed: frozenset[str] = frozenset()
    paused: frozenset[str] = frozenset()
    crowded: frozenset[str] = frozenset()


class Attempt(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Identifies one attempt: the fence of every write after the claim."""

    id: TaskId
    number: int
    node_id: UUID


class ClaimedTask(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A task that the claim has made running, with what its attempt needs."""

    attempt: Attempt
    name: str
    input: str | None
    max_attempts: int
    timeout_seconds: float | None
    tags: str | None
    checkpoint: str | None
    failures: str | None
    nominal_time: datetime | None = None
    is_limited: bool = False
    """Whether its end may let another task start, maybe on another node."""


class Claimed(msgspec.Struct, frozen=True, kw_only=True):
    """What a claim has brought; the rest is of those that go name by name.

    `seconds_to_room`: until a rate that is used up lets a task start again. `is_contended`:
    another transaction was about to change some of the rows. `waits`: something that is due is
    left, and not because of a rate; only told when the claim is bounded by creation.
    """

    tasks: list[ClaimedTask]
    seconds_to_room: float | None = None
    is_contended: bool = False
    waits: bool = False


class LostTask(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A running task whose node is gone; `attempt` is fenced with the node that adopted it."""

    attempt: Attempt
    name: str
    interruptions: int
    is_cancel_requested: bool


class Cost(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What an attempt used, as far as known, and the tail of what it wrote."""

    cpu_seconds: float | None = None
    peak_memory_bytes: int | None = None
    log: str | None = None


class Finish(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """running -> completed, failed or cancelled. `progress` None keeps the row's own.

    `children` are inserted in the same transaction. `is_awaited`: somebody wants the row.
    """

    attempt: Attempt
    status: TaskStatus
    progress: int | None = None
    output: str | None = None
    exception: str | None = None
    cost: Cost = Cost()
    children: tuple[Dependent, ...] = ()
    is_awaited: bool = False


Written = bool | Callable[[], "Task"]
"""Whether it was; of the end that is awaited, where that costs nothing, a copy of the task."""


class Requeue(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """running -> pending, due after `delay_seconds`.

    An attempt that is not `counted` never started: its number is given to the next one.
    `extra_attempts` makes up for an attempt that the task shall not pay for.
    """

    attempt: Attempt
    delay_seconds: float = 0.0
    counted: bool = True
    extra_attempts: int = 0
    exception: str | None = None
    failures: str | None = None
    cost: Cost = Cost()


class Report(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """running -> running: progress and checkpoint; None keeps the row's own."""

    attempt: Attempt
    progress: int | None = None
    checkpoint: str | None = None


class Ending(msgspec.Struct, frozen=True, gc=False):
    """What of a task's row tells its result, if it has one; `output` is JSON."""

    name: str
    status: str
    output: str | None


class NodeRecord(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A started Lilota, as other nodes see it.

    `machine` names the kernel boot and PID namespace, `pid_started` the process's own start
    time: together they tell for certain whether the process still lives.
    """

    id: UUID
    machine: str
    host: str
    pid: int
    pid_started: int
    lease_seconds: float
    slots: int
    version: str
    names: tuple[str, ...] = ()
    """The tasks that it runs."""


class LiveNode(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A registered node; `silent_seconds` since its last heartbeat, by the database clock.

    It may be taken from when these are more than its own `lease_seconds`.
    """

    id: UUID
    machine: str
    pid: int
    pid_started: int
    silent_seconds: float
    lease_seconds: float


class Renewal(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The answer to a heartbeat. Not `is_known`: others have taken over from the node.

    `has_lost`: tasks are running of nodes that are no more.
    """

    is_known: bool
    nodes: tuple[LiveNode, ...]
    has_lost: bool


def as_claimed(task: NewTask) -> ClaimedTask:
    """What the claim of a task would have brought that was inserted as running."""
    assert task.node_id is not None
    return ClaimedTask(
        attempt=Attempt(id=task.id, number=1, node_id=task.node_id),
        name=task.name,
        input=task.input,
        max_attempts=task.max_attempts,
        timeout_seconds=task.timeout_seconds,
        tags=task.tags,
        checkpoint=None,
        failures=None,
        nominal_time=task.nominal_time,
    )
