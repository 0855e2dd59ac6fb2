"""SQLite and MariaDB: what their batches have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import bindparam, text

from lilota_async.models.values import TaskId
from lilota_async.storage.claimed import CLAIMED_COLUMNS, claimed
from lilota_async.storage.dialect import Dialect
from lilota_async.storage.edited import MOST_ATTEMPTS, is_sound
from lilota_async.storage.store import Store
from lilota_async.storage.transitions import (
    Attempt,
    Claim,
    ClaimedTask,
    Finish,
    NewTask,
    Report,
    Requeue,
)

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_UNREADABLE = (
    '{"kind":"error","type":"UnreadableRow","message":"the row was edited: its id is not 32 '
    'lowercase hexadecimal digits, or its attempts are no number","traceback":""}'
)
ENDED = (
    "id",
    "attempt",
    "node",
    "status",
    "progress",
    "output",
    "exception",
    "cpu",
    "memory",
    "log",
)
_FENCE = "id = :id AND attempts = :attempt AND locked_by = :node AND status = 'running'"


class RowDialect(Dialect):
    """What the statements of a batch need besides."""

    for_claim: str


class RowStore(Store):
    """Ends and claims as one statement each, in the words of the database; the rest row by row."""

    def __init__(self, dialect: RowDialect) -> None:
        super().__init__(dialect)
        now = dialect.now
        self._pick = text(f"""
            SELECT {CLAIMED_COLUMNS} FROM {dialect.pending_table}
            WHERE status = 'pending' AND is_keyed = false AND run_at <= {now} AND name IN :names
                AND attempts <= {MOST_ATTEMPTS}
                AND created_at <= COALESCE(:created_before, created_at)
                AND {dialect.is_not_paused}
            ORDER BY priority DESC, run_at, id LIMIT :limit {dialect.for_claim}""").bindparams(
            bindparam("names", expanding=True)
        )
        self._refusal = text(f"""
            UPDATE lilota_task SET status = 'failed', end_date_time = {now},
                exception = :exception
            WHERE id = :id AND status = 'pending'""")
        self._finish = text(f"""
            UPDATE lilota_task SET status = :status, end_date_time = {now}, output = :output,
                exception = :exception,
                progress_percentage = COALESCE(:progress, progress_percentage),
                cpu_seconds = :cpu, peak_memory_bytes = :memory, log = :log
            WHERE {_FENCE}""")
        self._requeue = text(f"""
            UPDATE lilota_task SET
                status = CASE WHEN cancel_requested_at IS NULL THEN 'pending'
                    ELSE 'cancelled' END,
                end_date_time = CASE WHEN cancel_requested_at IS NOT NULL THEN {now} END,
                run_at = CASE WHEN :uncounted = 1 THEN run_at ELSE {dialect.later(":delay")} END,
                locked_by = NULL, pid = NULL,
                attempts = attempts - :uncounted,
                max_attempts = max_attempts
                    + CASE WHEN max_attempts <= {MOST_ATTEMPTS} THEN :extra ELSE 0 END,
                exception = COALESCE(:exception, exception),
                failures = COALESCE(:failures, failures),
                cpu_seconds = COALESCE(:cpu, cpu_seconds),
                peak_memory_bytes = COALESCE(:memory, peak_memory_bytes),
                log = COALESCE(:log, log)
            WHERE {_FENCE}""")
        self._report = text(f"""
            UPDATE lilota_task SET
                progress_percentage = COALESCE(:progress, progress_percentage),
                checkpoint = COALESCE(:checkpoint, checkpoint)
            WHERE {_FENCE}""")
        self._attempts = text("""
            SELECT id, attempts, locked_by, status FROM lilota_task WHERE id IN :ids
            """).bindparams(bindparam("ids", expanding=True))

    async def _refused(self, c: AsyncConnection, tasks: Sequence[NewTask]) -> set[TaskId[Any]]:
        """The tasks with a unique key that have no row."""
        keyed = {self._key(task.id): task.id for task in tasks if task.unique_key is not None}
        if not keyed:
            return set()
        rows = await c.execute(self._attempts, {"ids": list(keyed)})
        return set(keyed.values()) - {keyed[row.id] for row in rows.all()}

    async def claim(self, c: AsyncConnection, claim: Claim) -> list[ClaimedTask]:
        if not claim.names or not claim.pids:
            return []
        picked = await c.execute(
            self._pick,
            {
                "names": claim.names,
                "created_before": self.dialect.time(claim.created_before),
                "limit": len(claim.pids),
            },
        )
        rows = picked.all()
        sound = [row for row in rows if is_sound(row.id, row.attempts)]
        if len(sound) < len(rows):
            await self.refuse(c, [row.id for row in rows if row not in sound])
        chosen = list(zip(sound, claim.pids, strict=False))
        if not chosen:
            return []
        await self._start(c, claim.node_id, chosen)
        return [claimed(row, claim, row.attempts + 1) for row, _ in chosen]

    async def _start(
        self, c: AsyncConnection, node_id: UUID, chosen: Sequence[tuple[Any, int]]
    ) -> None:
        """pending -> running, in these processes."""
        raise NotImplementedError

    async def refuse(self, c: AsyncConnection, keys: Sequence[Any]) -> None:
        """pending -> failed, for rows that no attempt can be made of."""
        await c.execute(self._refusal, [{"id": key, "exception": _UNREADABLE} for key in keys])

    async def finish(self, c: AsyncConnection, finishes: Sequence[Finish]) -> list[bool]:
        is_repeated = len({finish.attempt.id for finish in finishes}) < len(finishes)
        end = self._end_each if is_repeated else self._end  # the first end of an attempt counts
        if await end(c, finishes) == len(finishes):
            return [True] * len(finishes)
        wanted = [(finish.attempt, finish.status.value) for finish in finishes]
        return await self._are_so(c, wanted)

    async def _end_each(self, c: AsyncConnection, finishes: Sequence[Finish]) -> int:
        """running -> final, for those that are not fenced off: how many."""
        rows = [dict(zip(ENDED, self._values_of_end(finish), strict=True)) for finish in finishes]
        return (await c.execute(self._finish, rows)).rowcount

    async def _end(self, c: AsyncConnection, finishes: Sequence[Finish]) -> int:
        """The same for attempts of different tasks."""
        raise NotImplementedError

    def _values_of_end(self, finish: Finish) -> tuple[Any, ...]:
        """The values of the columns `ENDED`."""
        return (
            self._key(finish.attempt.id),
            finish.attempt.number,
            self._key(finish.attempt.node_id),
            finish.status.value,
            finish.progress,
            finish.output,
            finish.exception,
            finish.cost.cpu_seconds,
            finish.cost.peak_memory_bytes,
            finish.cost.log,
        )

    async def requeue(self, c: AsyncConnection, requeues: Sequence[Requeue]) -> list[bool]:
        # One by one: afterwards the row does not tell whose attempt it was.
        applied = []
        for requeue in requeues:
            parameters = {
                **self._fence(requeue.attempt),
                **_outcome(requeue),
                "failures": requeue.failures,
                "delay": float(requeue.delay_seconds),
                "uncounted": 0 if requeue.counted else 1,
                "extra": requeue.extra_attempts,
            }
            applied.append((await c.execute(self._requeue, parameters)).rowcount == 1)
        return applied

    async def report(self, c: AsyncConnection, reports: Sequence[Report]) -> list[bool]:
        parameters = [
            {
                **self._fence(report.attempt),
                "progress": report.progress,
                "checkpoint": report.checkpoint,
            }
            for report in reports
        ]
        result = await c.execute(self._report, parameters)
        if result.rowcount == len(reports):
            return [True] * len(reports)
        return await self._are_so(c, [(report.attempt, "running") for report in reports])

    def _fence(self, attempt: Attempt) -> dict[str, Any]:
        return {
            "id": self._key(attempt.id),
            "attempt": attempt.number,
            "node": self._key(attempt.node_id),
        }

    async def _are_so(
        self, c: AsyncConnection, wanted: Sequence[tuple[Attempt, str]]
    ) -> list[bool]:
        """For each attempt whether its row is still its own, and has the status."""
        ids = list({self._key(attempt.id) for attempt, _ in wanted})
        rows = (await c.execute(self._attempts, {"ids": ids})).all()
        found = {(row.id, row.attempts, row.locked_by, row.status) for row in rows}
        return [
            (self._key(attempt.id), attempt.number, self._key(attempt.node_id), status) in found
            for attempt, status in wanted
        ]


def _outcome(outcome: Finish | Requeue) -> dict[str, Any]:
    return {
        "exception": outcome.exception,
        "cpu": outcome.cost.cpu_seconds,
        "memory": outcome.cost.peak_memory_bytes,
        "log": outcome.cost.log,
    }
