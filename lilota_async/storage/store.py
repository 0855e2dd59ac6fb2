"""The transitions of a task's row: one method each, documented "from -> to".

Every time is the database's own. A statement is constant: values are bound, never written
into it. Whoever calls brings the connection, and with it the transaction.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID

import msgspec
from sqlalchemy import bindparam, text

from lilota_async.errors import TaskIsRunning
from lilota_async.models.types import TaskIdType, UtcDateTime
from lilota_async.models.values import TaskId, TaskStatus
from lilota_async.storage.dependencies import DependencyRows
from lilota_async.storage.dialect import Dialect
from lilota_async.storage.leases import LeaseStore, as_uuid
from lilota_async.storage.limited import Limits
from lilota_async.storage.lookahead import next_due
from lilota_async.storage.operation import ALL_KINDS, Kind
from lilota_async.storage.transitions import (
    FAILURES_KEPT,
    Attempt,
    Claim,
    ClaimedTask,
    Finish,
    News,
    NewTask,
    Report,
    Requeue,
    Written,
)
from lilota_async.storage.uniqueness import UniqueKeys

if TYPE_CHECKING:
    from sqlalchemy import TextClause
    from sqlalchemy.ext.asyncio import AsyncConnection


class Store(LeaseStore):
    """The transitions that need no batches, and the names of those that do."""

    turns: ClassVar[tuple[frozenset[Kind], ...]] = (ALL_KINDS,)
    """The kinds that the writer gives it together; those of one turn are one transaction."""
    writes_side_by_side = False
    """Whether several connections write at a time, and hold each other up for no other reason."""
    has_statement_for_pairs = False
    """Whether `finish_and_claim()` is one statement, atomic without a transaction around it."""

    origin = ""
    """What the notifications of this node carry: it does not listen to itself."""
    has_listeners = False
    """Whether other nodes are told what there is to do; kept up to date by the recovery."""

    def __init__(self, dialect: Dialect) -> None:
        super().__init__(dialect)
        self.dependencies = DependencyRows(self)
        self._statements = _statements(dialect)
        self._next_due = next_due(dialect)
        self.unique_keys = UniqueKeys(self)
        self.limits = Limits(self)
        self._ids = (
            text("SELECT id FROM lilota_task WHERE id IN :ids")
            .bindparams(bindparam("ids", expanding=True, type_=TaskIdType))
            .columns(id=TaskIdType)
        )
        self._clock = text(f"SELECT {dialect.now} AS now").columns(now=UtcDateTime)

    def is_atomic(self, kind: Kind, values: Sequence[Any]) -> bool:
        """Whether a batch of one kind is one statement, atomic without a transaction around it."""
        return False

    def is_closed(self, c: AsyncConnection) -> bool:
        """Whether the driver has heard by itself that the connection is closed."""
        return False

    async def prepare(self, c: AsyncConnection) -> None:
        """Make the settings of the writer's own connection."""

    @abstractmethod
    async def insert(self, c: AsyncConnection, tasks: Sequence[NewTask]) -> set[TaskId[Any]]:
        """nothing -> pending, or running where the task has a node already.

        An id that has a row is left as it is. Returns the tasks that were not inserted because
        another has their unique key (on PostgreSQL, if they have a key, because of their id too),
        or because they were to run at once and are paused.
        """

    async def _not_begun(self, c: AsyncConnection, tasks: Sequence[NewTask]) -> set[TaskId[Any]]:
        """Those that were to run at once and have no row."""
        running = {task.id for task in tasks if task.node_id is not None}
        if not running:
            return running
        return running - set((await c.execute(self._ids, {"ids": list(running)})).scalars())

    @abstractmethod
    async def claim(self, c: AsyncConnection, claim: Claim) -> list[ClaimedTask]:
        """pending -> running, for due tasks: by priority, then how long due, then id."""

    async def refuse(self, c: AsyncConnection, keys: Sequence[Any]) -> None:
        """pending -> failed, for rows that no attempt can be made of."""

    @abstractmethod
    async def finish(self, c: AsyncConnection, finishes: Sequence[Finish]) -> Sequence[Written]:
        """running -> completed, failed or cancelled; False for those fenced off.

        True also when the same attempt has ended with the same status before, as in a retry
        after the answer of a COMMIT was lost.
        """

    async def finish_and_claim(
        self, c: AsyncConnection, finish: Finish, claim: Claim
    ) -> tuple[Written, list[ClaimedTask]]:
        """Both, as one ends and the next begins."""
        (written,) = await self.finish(c, [finish])
        return written, await self.claim(c, claim)

    @abstractmethod
    async def requeue(self, c: AsyncConnection, requeues: Sequence[Requeue]) -> list[bool]:
        """running -> pending; False for those fenced off, or requeued before."""

    @abstractmethod
    async def report(self, c: AsyncConnection, reports: Sequence[Report]) -> list[bool]:
        """running -> running with progress and checkpoint; False for those fenced off."""

    async def request_cancel(self, c: AsyncConnection, task_id: UUID) -> TaskStatus | None:
        """pending -> cancelled; running -> running with a request. The status before it.

        None when there is no such row. Belongs into a transaction.
        """
        parameters = {"id": self._key(task_id)}
        status = (await c.execute(self._statements["locked_status"], parameters)).scalar()
        await c.execute(self._statements["request_cancel"], parameters)
        if status == TaskStatus.RUNNING:
            await self.tell(c, News.CANCEL)
        return _status(status)

    async def cancel_requests(self, c: AsyncConnection, node_id: UUID) -> list[Attempt]:
        """The running attempts of the node that somebody wants cancelled."""
        rows = await c.execute(self._statements["cancel_requests"], {"node": self._key(node_id)})
        return [
            Attempt(id=TaskId(row.id), number=row.attempts, node_id=node_id) for row in rows.all()
        ]

    async def retry(self, c: AsyncConnection, task_id: UUID, extra_attempts: int) -> bool:
        """completed, failed or cancelled -> pending, due now; the exception joins failures.

        Raises UniqueKeyTaken.
        """
        parameters = {"id": self._key(task_id)}
        row = (await c.execute(self._statements["failures"], parameters)).first()
        if row is None:
            return False
        if row.unique_key is not None:
            await self.unique_keys.free(c, task_id, row.name, row.unique_key)
        failures = _appended(row.failures, row.exception, row.attempts)
        result = await c.execute(
            self._statements["retry"], {**parameters, "extra": extra_attempts, "failures": failures}
        )
        await self.tell(c, News.LOOK)
        return bool(result.rowcount == 1)

    async def delete(self, c: AsyncConnection, task_id: UUID) -> bool:
        """Anything but running -> nothing; False when there is no row, or TaskIsRunning."""
        parameters = {"id": self._key(task_id)}
        result = await c.execute(self._statements["delete"], parameters)
        if result.rowcount == 1:
            await c.execute(self._statements["delete_edges"], parameters)
            return True
        status = (await c.execute(self._statements["status"], parameters)).scalar()
        if status == TaskStatus.RUNNING:
            raise TaskIsRunning(task_id)
        return False

    async def seconds_to_next(
        self, c: AsyncConnection, names: Sequence[str]
    ) -> tuple[float | None, bool]:
        """When the next task of these names becomes due, and whether a claim may not have seen one.

        The first in seconds, None without one; the other one has become due just before.
        """
        if not names:
            return None, False
        row = (await c.execute(self._next_due, {"names": list(names)})).one()
        seconds = None if row.due is None else float((row.due - row.now).total_seconds())
        return seconds, row.just_due is not None

    async def announce(self, c: AsyncConnection, news: News = News.ROWS) -> None:
        """Tell whoever listens, where the database can."""

    async def tell(self, c: AsyncConnection, news: News) -> None:
        """Tell the other nodes, if there are any, where the database can."""
        if self.has_listeners:
            await self.announce(c, news)

    async def clock(self, c: AsyncConnection) -> datetime:
        """The time of the database."""
        row = (await c.execute(self._clock)).one()
        time: datetime = row.now
        return time

    async def release_unknown(
        self, c: AsyncConnection, node_id: UUID, known: Sequence[UUID]
    ) -> int:
        """running -> pending for rows of the node that are not `known`, the attempt uncounted.

        For a claim whose answer was lost; `known` must include what any claim under way may
        still bring.
        """
        parameters = {"node": self._key(node_id)}
        rows = await c.execute(self._statements["running_of"], parameters)
        wanted = {UUID(int=task_id.int) for task_id in known}
        lost = [row.id for row in rows.all() if as_uuid(row.id) not in wanted]
        released = 0
        for task_id in lost:
            result = await c.execute(self._statements["release"], {**parameters, "id": task_id})
            released += result.rowcount
        return released


def _statements(dialect: Dialect) -> dict[str, TextClause]:
    now, for_update = dialect.now, dialect.for_update
    final = "status IN ('completed', 'failed', 'cancelled')"
    requeued = "status = 'pending', locked_by = NULL, pid = NULL"
    statements = {
        "status": "SELECT status FROM lilota_task WHERE id = :id",
        "locked_status": f"SELECT status FROM lilota_task WHERE id = :id {for_update}",
        # `status` is set last: MariaDB evaluates from left to right with the new values.
        "request_cancel": f"""
            UPDATE lilota_task SET
                cancel_requested_at = COALESCE(cancel_requested_at, {now}),
                end_date_time = CASE status WHEN 'pending' THEN {now} END,
                status = CASE status WHEN 'pending' THEN 'cancelled' ELSE status END
            WHERE id = :id AND status IN ('pending', 'running')""",
        "cancel_requests": """
            SELECT id, attempts FROM lilota_task WHERE status = 'running'
            AND locked_by = :node AND cancel_requested_at IS NOT NULL""",
        "failures": f"""
            SELECT failures, exception, attempts, name, unique_key FROM lilota_task
            WHERE id = :id AND {final} {for_update}""",
        "retry": f"""
            UPDATE lilota_task SET {requeued}, run_at = {now}, max_attempts = attempts + :extra,
                end_date_time = NULL, output = NULL, cancel_requested_at = NULL,
                progress_percentage = 0, failures = :failures, exception = NULL
            WHERE id = :id AND {final}""",
        "delete": "DELETE FROM lilota_task WHERE id = :id AND status <> 'running'",
        "delete_edges": "DELETE FROM lilota_dependency WHERE task_id = :id",
        "running_of": """
            SELECT id FROM lilota_task WHERE status = 'running' AND locked_by = :node""",
        "release": f"""
            UPDATE lilota_task SET {requeued}, attempts = attempts - 1
            WHERE id = :id AND status = 'running' AND locked_by = :node""",
    }
    return {name: text(statement) for name, statement in statements.items()}


def _status(value: str | None) -> TaskStatus | None:
    try:
        return None if value is None else TaskStatus(value)
    except ValueError:  # edited by hand, or by a newer version
        return None


def _appended(failures: str | None, exception: str | None, attempt: int) -> str | None:
    """The list of failures with one more: numbered, and without its traceback, like the others."""
    if exception is None:
        return failures
    try:
        last = msgspec.json.decode(exception, type=dict[str, msgspec.Raw])
        earlier = msgspec.json.decode(failures or "[]", type=list[msgspec.Raw])
    except msgspec.DecodeError:  # edited by hand: keep what is there
        return failures
    last.pop("traceback", None)
    numbered: dict[str, Any] = {"attempt": attempt, **last}
    return msgspec.json.encode([*earlier, numbered][-FAILURES_KEPT:]).decode()


def in_order_of_keys(tasks: Sequence[NewTask]) -> Sequence[NewTask]:
    """The same order of locks in every batch, so that two of them do not wait for each other."""
    return sorted(tasks, key=lambda task: (task.name, task.unique_key or ""))


def is_plain(task: NewTask) -> bool:
    """Whether a claim is all that it takes to run the task."""
    return task.is_due and task.concurrency_key is None
