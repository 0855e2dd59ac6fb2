"""Faults planted into the library, in one process, to see that the checker finds them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec.structs import replace
from sqlalchemy import text

SKEW_SECONDS = 300
FAULTS: dict[str, Callable[[], None]] = {}


def apply(name: str) -> None:
    """Break the library, in this process, before its Lilota is started."""
    FAULTS[name]()


def _fault(function: Callable[[], None]) -> Callable[[], None]:
    FAULTS[function.__name__] = function
    return function


@_fault
def fence_dropped() -> None:
    """A finish is written whoever owns the attempt by now (SQLite)."""
    from lilota_async.storage import sqlite_sql

    finish = str(sqlite_sql.FINISH.text)
    assert sqlite_sql._FENCE in finish
    sqlite_sql.FINISH = text(finish.replace(sqlite_sql._FENCE, "task.id = new.id"))


@_fault
def claim_without_skip_locked() -> None:
    """Two nodes that claim at the same time pick the same rows (PostgreSQL)."""
    from lilota_async.storage import postgresql_sql

    claim = str(postgresql_sql.CLAIM.text)
    assert "FOR UPDATE SKIP LOCKED" in claim
    slow = claim.replace("FOR UPDATE SKIP LOCKED", "").replace(
        "FROM picked WHERE",
        "FROM picked WHERE pg_sleep(0.01) IS NOT NULL AND",
    )
    postgresql_sql.CLAIM = text(slow)


@_fault
def finish_before_run() -> None:
    """The end is written first, and the task run then."""
    from lilota_async.engine.running import RunningAttempts
    from lilota_async.models.values import TaskStatus
    from lilota_async.storage.transitions import Finish

    begin = RunningAttempts.begin

    def patched(self: Any, claimed: Any, slot: Any) -> None:
        end = Finish(attempt=claimed.attempt, status=TaskStatus.COMPLETED, progress=100, output="0")
        self._writer.end(end, lambda *_: None)
        begin(self, claimed, slot)

    RunningAttempts.begin = patched  # type: ignore[method-assign]


@_fault
def host_clock() -> None:
    """The node's own clock counts, which is five minutes behind the database's."""
    from lilota_async.storage.sqlite import SqliteStore

    original = SqliteStore.__init__

    def patched(self: Any) -> None:
        original(self)
        for name in ("heartbeat", "register_node"):
            statement = str(self._lease_statements[name].text)
            assert "'now')" in statement
            skewed = statement.replace("'now')", f"'now', '-{SKEW_SECONDS} seconds')")
            self._lease_statements[name] = text(skewed)

    SqliteStore.__init__ = patched  # type: ignore[method-assign]


@_fault
def lease_not_renewed() -> None:
    """The heartbeat says that it is written, and is not."""
    from lilota_async.storage.store import Store

    async def patched(self: Any, c: Any, node_id: Any) -> bool:
        return True

    Store.heartbeat = patched  # type: ignore[method-assign]


@_fault
def requeue_without_counting() -> None:
    """An attempt that has run is taken back from the count when it is retried."""
    _replace_conclusions(
        lambda end: replace(end, counted=False) if hasattr(end, "counted") else end
    )


@_fault
def crash_taken_as_success() -> None:
    """A process that has died counts as a result."""
    from lilota_async.engine import attempt
    from lilota_async.engine.lifecycle import conclude
    from lilota_async.execution.ends import Crash
    from lilota_async.execution.protocol import Outcome

    def patched(end: Any, **keywords: Any) -> Any:
        if isinstance(end.ended, Crash):
            end = replace(end, ended=Outcome(0, output=msgspec.Raw(b"null")))
        return conclude(end, **keywords)

    attempt.conclude = patched  # type: ignore[attr-defined]


@_fault
def finish_error_swallowed() -> None:
    """Every third end of an attempt fails to be written, and nobody says so."""
    from lilota_async.storage.writer import Writer

    end, turns = Writer.end, itertools.count(1)

    def patched(self: Any, value: Any, tell: Any, *about: Any) -> None:
        if next(turns) % 3 == 0:
            tell(*about, True, None)
        else:
            end(self, value, tell, *about)

    Writer.end = patched  # type: ignore[method-assign, assignment]


@_fault
def stop_drops_work() -> None:
    """stop() ends what runs and writes nothing about it."""
    from lilota_async.engine.dispatcher import Dispatcher
    from lilota_async.engine.lifecycle import Intent

    async def patched(self: Any, timeout: float | None) -> None:
        self.running.stop(Intent.LEASE_LOST)
        await self.running.wait(None)

    Dispatcher.finish_running = patched  # type: ignore[method-assign]


@_fault
def retry_with_a_new_id() -> None:
    """A write that is tried again gets another id, so that there are two rows."""
    from lilota_async.models.values import TaskId
    from lilota_async.storage.writer import Writer

    insert, turns = Writer.insert, itertools.count(1)

    def patched(self: Any, tasks: Any, on_written: Any = None) -> asyncio.Future[set[Any]]:
        if next(turns) % 5 == 0:
            again = [replace(task, id=TaskId(), node_id=None, pid=None) for task in tasks]
            insert(self, again)
        return insert(self, tasks, on_written)

    Writer.insert = patched  # type: ignore[method-assign]


@_fault
def acknowledged_before_commit() -> None:
    """schedule() returns although its row is not written."""
    from lilota_async.storage.writer import Writer

    insert, turns = Writer.insert, itertools.count(1)

    def patched(self: Any, tasks: Any, on_written: Any = None) -> asyncio.Future[set[Any]]:
        return insert(self, tasks if next(turns) % 5 else [], on_written)

    Writer.insert = patched  # type: ignore[method-assign]


@_fault
def run_without_claim() -> None:
    """Tasks are run that the claim has read, and not written."""
    from lilota_async.models.values import TaskId
    from lilota_async.storage.claimed import claimed
    from lilota_async.storage.rows import RowStore

    async def patched(self: Any, c: Any, claim: Any) -> Any:
        values = {"names": claim.names, "created_before": None, "limit": len(claim.pids)}
        rows = (await c.execute(self._pick, values)).all()
        await c.execute(  # so that they are not read again
            text("UPDATE lilota_task SET run_at = datetime('now', '+1 hour') WHERE id = :id"),
            [{"id": TaskId(row.id).hex} for row in rows] or [{"id": ""}],
        )
        return [claimed(row, claim, 1) for row, _ in zip(rows, claim.pids, strict=False)]

    RowStore.claim = patched  # type: ignore[method-assign]


@_fault
def interruption_policy_ignored() -> None:
    """What must not be repeated is requeued when its node has died."""
    from lilota_async.engine import recovery
    from lilota_async.storage.transitions import Requeue

    def patched(lost: Any, settings: Any) -> Requeue:
        return Requeue(attempt=lost.attempt, extra_attempts=1)

    recovery.after_interruption = patched  # type: ignore[attr-defined]


@_fault
def attempts_without_end() -> None:
    """A failed attempt is always followed by another."""
    from lilota_async.engine import lifecycle

    lifecycle._is_retried = lambda end, failure: end.claimed.attempt.number < 9


@_fault
def final_is_not_final() -> None:
    """The end of a task is written a second time, as something else."""
    from lilota_async.models.values import TaskStatus
    from lilota_async.storage.rows import RowStore

    finish = RowStore.finish

    async def patched(self: Any, c: Any, finishes: Any) -> Any:
        applied = await finish(self, c, finishes)
        await c.execute(
            text("UPDATE lilota_task SET status = :status WHERE id = :id"),
            [{"id": f.attempt.id.hex, "status": TaskStatus.CANCELLED.value} for f in finishes],
        )
        return applied

    RowStore.finish = patched  # type: ignore[method-assign]


def _replace_conclusions(change: Callable[[Any], Any]) -> None:
    from lilota_async.engine import attempt
    from lilota_async.engine.lifecycle import conclude

    attempt.conclude = lambda end, **keywords: change(conclude(end, **keywords))  # type: ignore
