"""PostgreSQL: every batch is one constant statement over arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import text

from lilota_async.models.values import TaskId
from lilota_async.storage.claimed import CLAIMED_COLUMNS, claimed
from lilota_async.storage.dialect import Dialect
from lilota_async.storage.edited import MOST_ATTEMPTS
from lilota_async.storage.leases import live_nodes
from lilota_async.storage.store import (
    Store,
    in_order_of_keys,
    is_plain,
)
from lilota_async.storage.transitions import (
    Attempt,
    Claim,
    ClaimedTask,
    Finish,
    NewTask,
    Renewal,
    Report,
    Requeue,
)

if TYPE_CHECKING:
    from sqlalchemy import TextClause
    from sqlalchemy.ext.asyncio import AsyncConnection

CHANNEL = "lilota"
LOOK = " look"
"""After the origin of a notification: more than a claim is needed to see what is new."""
_BACKLOG_KEY = 0x6C696C6F7462  # the key of the migrations is one less
_NOW = "statement_timestamp()"
# Of no row: read once for each statement, where NOT IN would be asked for each row.
_PAUSED = "ARRAY(SELECT name FROM lilota_limit WHERE paused_at IS NOT NULL)"
_NOT_PAUSED = f"name <> ALL({_PAUSED}) AND '' <> ALL({_PAUSED})"
# By primary key, one row each. Owner and status are written so that no index fits them: through
# the one of running rows, each row of the batch would be looked for among all that run.
_FENCE = """task.id = new.id AND task.attempts = new.attempt
    AND task.locked_by IS NOT DISTINCT FROM new.node_id AND task.status || '' = 'running'"""
_APPLIED = "RETURNING new.id, new.attempt, new.node_id"


def _arrays(**columns: str) -> str:
    """`unnest` of one array for each column, named `new`."""
    arrays = ", ".join(f"CAST(:{name} AS {kind}[])" for name, kind in columns.items())
    return f"unnest({arrays}) AS new ({', '.join(columns)})"


# With other nodes about, one notification for each batch tells them, in the same statement.
_INSERT = text(f"""
WITH inserted AS (
INSERT INTO lilota_task (id, name, status, priority, created_at, run_at, progress_percentage,
    input, attempts, max_attempts, interruptions, timeout_seconds, tags, unique_key,
    unique_until, concurrency_key, locked_by, pid, start_date_time,
    nominal_time)
SELECT id, name, CASE WHEN node_id IS NULL THEN 'pending' ELSE 'running' END, priority, {_NOW},
    COALESCE(run_at, {_NOW} + make_interval(secs => delay)), 0, input,
    CASE WHEN node_id IS NULL THEN 0 ELSE 1 END, max_attempts, 0, timeout, tags, unique_key,
    {_NOW} + make_interval(secs => unique_seconds), concurrency_key, node_id, pid,
    CASE WHEN node_id IS NOT NULL THEN {_NOW} END, nominal_time
FROM {
    _arrays(
        id="uuid",
        name="text",
        priority="integer",
        delay="float8",
        run_at="timestamptz",
        input="text",
        max_attempts="integer",
        timeout="float8",
        tags="text",
        unique_key="text",
        unique_seconds="float8",
        concurrency_key="text",
        node_id="uuid",
        pid="bigint",
        nominal_time="timestamptz",
    )
}
WHERE node_id IS NULL OR ({_NOT_PAUSED})
ON CONFLICT DO NOTHING
RETURNING id, unique_key)
SELECT ARRAY(SELECT id FROM inserted WHERE unique_key IS NOT NULL) AS keyed,
    (SELECT COUNT(*) FROM inserted) AS written, (
    SELECT pg_notify('{CHANNEL}', CAST(:origin AS text))
    WHERE CAST(:announced AS boolean) AND EXISTS (SELECT 1 FROM inserted))""")

# The rows are picked first, in their order; the place in it gives each row its pid.
_CLAIM = text(f"""
WITH picked AS MATERIALIZED (
    SELECT due.id AS due_id, row_number() OVER () AS place FROM (
        SELECT id FROM lilota_task
        WHERE status = 'pending' AND NOT is_keyed
            AND run_at <= {_NOW} AND name = ANY(CAST(:names AS text[])) AND {_NOT_PAUSED}
            AND created_at <= COALESCE(CAST(:created_before AS timestamptz), 'infinity')
            AND attempts <= {MOST_ATTEMPTS}
        ORDER BY priority DESC, run_at, id
        LIMIT cardinality(CAST(:pids AS bigint[]))
        FOR UPDATE SKIP LOCKED
    ) AS due
)
UPDATE lilota_task AS task SET
    status = 'running', attempts = task.attempts + 1, locked_by = CAST(:node AS uuid),
    pid = (CAST(:pids AS bigint[]))[picked.place],
    start_date_time = {_NOW}, end_date_time = NULL, progress_percentage = 0,
    cancel_requested_at = NULL
FROM picked WHERE task.id = picked.due_id
RETURNING {CLAIMED_COLUMNS}, pid, place""")

_FINISH = text(f"""
UPDATE lilota_task AS task SET
    status = new.status, end_date_time = {_NOW}, output = new.output,
    exception = new.exception, failures = COALESCE(new.failures, task.failures),
    progress_percentage = COALESCE(new.progress, task.progress_percentage),
    cpu_seconds = new.cpu, peak_memory_bytes = new.memory, log = new.log
FROM {
    _arrays(
        id="uuid",
        attempt="integer",
        node_id="uuid",
        status="text",
        progress="integer",
        output="text",
        exception="text",
        failures="text",
        cpu="float8",
        memory="bigint",
        log="text",
    )
}
WHERE {_FENCE}""")

_FINISHED = text(f"""
SELECT new.id, new.attempt, new.node_id FROM lilota_task AS task
JOIN {_arrays(id="uuid", attempt="integer", node_id="uuid", status="text")}
ON task.id = new.id AND task.attempts = new.attempt
    AND task.locked_by IS NOT DISTINCT FROM new.node_id AND task.status = new.status""")

_REQUEUE = text(f"""
UPDATE lilota_task AS task SET
    status = CASE WHEN task.cancel_requested_at IS NULL THEN 'pending' ELSE 'cancelled' END,
    end_date_time = CASE WHEN task.cancel_requested_at IS NOT NULL THEN {_NOW} END,
    run_at = {_NOW} + make_interval(secs => new.delay), locked_by = NULL, pid = NULL,
    attempts = task.attempts - new.uncounted, max_attempts = task.max_attempts
        + CASE WHEN task.max_attempts <= {MOST_ATTEMPTS} THEN new.extra ELSE 0 END,
    exception = COALESCE(new.exception, task.exception),
    failures = COALESCE(new.failures, task.failures),
    cpu_seconds = COALESCE(new.cpu, task.cpu_seconds),
    peak_memory_bytes = COALESCE(new.memory, task.peak_memory_bytes),
    log = COALESCE(new.log, task.log)
FROM {
    _arrays(
        id="uuid",
        attempt="integer",
        node_id="uuid",
        delay="float8",
        uncounted="integer",
        extra="integer",
        exception="text",
        failures="text",
        cpu="float8",
        memory="bigint",
        log="text",
    )
}
WHERE {_FENCE}
{_APPLIED}""")

_REPORT = text(f"""
UPDATE lilota_task AS task SET
    progress_percentage = COALESCE(new.progress, task.progress_percentage),
    checkpoint = COALESCE(new.checkpoint, task.checkpoint)
FROM {_arrays(id="uuid", attempt="integer", node_id="uuid", progress="integer", checkpoint="text")}
WHERE {_FENCE}
{_APPLIED}""")


# A table of tasks has hardly a pending row at one time and a hundred thousand at another, and
# its statistics are of a third. The plans must not depend on them: every statement goes by an
# index, in its order, and is planned once. (Forbidden plans count as so dear that the JIT
# would compile for them.)
_SETTINGS = (
    "enable_seqscan = off",
    "enable_bitmapscan = off",
    "enable_sort = off",
    "enable_hashjoin = off",
    "enable_mergejoin = off",
    "jit = off",
    "plan_cache_mode = force_generic_plan",
)
_ANNOUNCE = text(f"SELECT pg_notify('{CHANNEL}', CAST(:origin AS text))")


class PostgresqlDialect(Dialect):
    """PostgreSQL's own uuid and timestamptz."""

    now = _NOW
    has_arrays = True
    is_not_paused = _NOT_PAUSED
    lock_backlog = f"SELECT pg_try_advisory_xact_lock({_BACKLOG_KEY})"
    seconds_since_seen = f"CAST(EXTRACT(EPOCH FROM {_NOW} - last_seen_at) AS float8)"

    def seconds_between(self, earlier: str, later: str) -> str:
        return f"CAST(EXTRACT(EPOCH FROM {later} - {earlier}) AS float8)"

    def later(self, seconds: str) -> str:
        return f"{_NOW} + make_interval(secs => CAST({seconds} AS float8))"

    def moment(self, name: str) -> str:
        return f"CAST(:{name} AS timestamptz)"

    def key(self, value: UUID) -> Any:
        return value


# One statement for an idle node, since there are many of them.
_RENEW = text(f"""
WITH beat AS (
    UPDATE lilota_node SET last_seen_at = {_NOW} WHERE id = CAST(:id AS uuid) RETURNING id)
SELECT id, machine, pid, pid_started, {PostgresqlDialect.seconds_since_seen} AS silent_seconds,
    EXISTS (SELECT 1 FROM beat) AS is_known, EXISTS (
        SELECT 1 FROM lilota_task WHERE status = 'running' AND name = ANY(CAST(:names AS text[]))
        AND NOT EXISTS (SELECT 1 FROM lilota_node AS owner WHERE owner.id = lilota_task.locked_by)
    ) AS has_lost
FROM lilota_node ORDER BY id""")


class PostgresqlStore(Store):
    """Works through asyncpg and through psycopg alike."""

    one_statement_batches = True

    async def prepare(self, c: AsyncConnection) -> None:
        for setting in _SETTINGS:
            await c.exec_driver_sql(f"SET {setting}")

    async def announce(self, c: AsyncConnection) -> None:
        await c.execute(_ANNOUNCE, {"origin": self.origin})

    async def announce_look(self, c: AsyncConnection) -> None:
        if self.has_listeners:
            await c.execute(_ANNOUNCE, {"origin": self.origin + LOOK})

    def __init__(self) -> None:
        super().__init__(PostgresqlDialect())

    async def insert(self, c: AsyncConnection, tasks: Sequence[NewTask]) -> set[TaskId[Any]]:
        # Most batches have no keys at all: then there is nothing to read of each task.
        is_keyed = any(task.unique_key is not None for task in tasks)
        tasks = in_order_of_keys(tasks) if is_keyed else tasks
        none = [None] * len(tasks)
        result = await c.execute(
            _INSERT,
            _short(
                id=[task.id for task in tasks],
                name=[task.name for task in tasks],
                priority=[task.priority for task in tasks],
                delay=[float(task.delay_seconds) for task in tasks],
                run_at=[task.run_at for task in tasks],
                input=[task.input for task in tasks],
                max_attempts=[task.max_attempts for task in tasks],
                timeout=[_float(task.timeout_seconds) for task in tasks],
                tags=[task.tags for task in tasks],
                unique_key=[task.unique_key for task in tasks] if is_keyed else none,
                unique_seconds=[_float(t.unique_seconds) for t in tasks] if is_keyed else none,
                concurrency_key=[task.concurrency_key for task in tasks],
                node_id=[task.node_id for task in tasks],
                pid=[task.pid for task in tasks],
                nominal_time=[task.nominal_time for task in tasks],
            )
            | {
                "announced": self.has_listeners,
                "origin": self._origin_of(tasks),
            },
        )
        row = result.one()
        paused = await self._not_begun(c, tasks) if row.written < len(tasks) else set()
        if not is_keyed:
            return paused
        keyed = {task.id for task in tasks if task.unique_key is not None}
        return paused | (keyed - set(row.keyed))

    def _origin_of(self, tasks: Sequence[NewTask]) -> str:
        """What those who hear of the rows are told."""
        if self.has_listeners and not all(map(is_plain, tasks)):
            return self.origin + LOOK
        return self.origin

    async def renew(self, c: AsyncConnection, node_id: UUID, names: Sequence[str]) -> Renewal:
        rows = (await c.execute(_RENEW, {"id": node_id, "names": list(names)})).all()
        if not rows:
            return Renewal(is_known=False, nodes=(), has_lost=True)
        return Renewal(
            is_known=rows[0].is_known, nodes=tuple(live_nodes(rows)), has_lost=rows[0].has_lost
        )

    async def claim(self, c: AsyncConnection, claim: Claim) -> list[ClaimedTask]:
        parameters = {
            "names": list(claim.names),
            "pids": list(claim.pids),
            "node": claim.node_id,
            "created_before": claim.created_before,
        }
        rows = (await c.execute(_CLAIM, parameters)).all()
        return [
            claimed(row, claim, row.attempts, row.pid)
            for row in sorted(rows, key=lambda row: row.place)
        ]

    async def finish(self, c: AsyncConnection, finishes: Sequence[Finish]) -> list[bool]:
        attempts = [finish.attempt for finish in finishes]
        fence = {
            **_fence(attempts),
            "status": [str(finish.status) for finish in finishes],
        }
        progress = [finish.progress for finish in finishes]
        output = [finish.output for finish in finishes]
        parameters = _short(**fence, **_outcome(finishes), progress=progress, output=output)
        updated = await c.execute(_FINISH, parameters)
        if updated.rowcount == len(attempts):
            return [True] * len(attempts)
        applied = await _attempts(c, _FINISHED, fence)
        return [attempt in applied for attempt in attempts]

    async def requeue(self, c: AsyncConnection, requeues: Sequence[Requeue]) -> list[bool]:
        attempts = [requeue.attempt for requeue in requeues]
        parameters = {
            **_fence(attempts),
            **_outcome(requeues),
            "delay": [float(requeue.delay_seconds) for requeue in requeues],
            "uncounted": [0 if requeue.counted else 1 for requeue in requeues],
            "extra": [requeue.extra_attempts for requeue in requeues],
        }
        applied = await _attempts(c, _REQUEUE, parameters)
        return [attempt in applied for attempt in attempts]

    async def report(self, c: AsyncConnection, reports: Sequence[Report]) -> list[bool]:
        # Of two rows for one task the database would take any: the later goes on the earlier.
        merged: dict[Attempt, tuple[int | None, str | None]] = {}
        for report in reports:
            progress, checkpoint = merged.get(report.attempt, (None, None))
            merged[report.attempt] = (
                progress if report.progress is None else report.progress,
                checkpoint if report.checkpoint is None else report.checkpoint,
            )
        parameters = {
            **_fence(list(merged)),
            "progress": [progress for progress, _ in merged.values()],
            "checkpoint": [checkpoint for _, checkpoint in merged.values()],
        }
        applied = await _attempts(c, _REPORT, parameters)
        return [report.attempt in applied for report in reports]


def _short(**columns: list[Any]) -> dict[str, Any]:
    """The columns, empty where they hold nothing: `unnest` pads them, and the driver saves work."""
    return {
        name: [] if values.count(None) == len(values) else values
        for name, values in columns.items()
    }


async def _attempts(
    c: AsyncConnection, statement: TextClause, parameters: dict[str, Any]
) -> set[Attempt]:
    """The attempts that the statement returns."""
    rows = (await c.execute(statement, parameters)).all()
    return {
        Attempt(id=TaskId(row.id), number=row.attempt, node_id=TaskId(row.node_id)) for row in rows
    }


def _fence(attempts: Sequence[Attempt]) -> dict[str, Any]:
    return {
        "id": [attempt.id for attempt in attempts],
        "attempt": [attempt.number for attempt in attempts],
        "node_id": [attempt.node_id for attempt in attempts],
    }


def _outcome(outcomes: Sequence[Finish] | Sequence[Requeue]) -> dict[str, Any]:
    return {
        "exception": [outcome.exception for outcome in outcomes],
        "failures": [outcome.failures for outcome in outcomes],
        "cpu": [_float(outcome.cost.cpu_seconds) for outcome in outcomes],
        "memory": [outcome.cost.peak_memory_bytes for outcome in outcomes],
        "log": [outcome.cost.log for outcome in outcomes],
    }


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)
