"""PostgreSQL's statements: each is constant, planned once, and takes a batch of any size."""

from __future__ import annotations

from operator import itemgetter

from sqlalchemy import text

from lilota_async.storage.claimed import CLAIMED_COLUMNS
from lilota_async.storage.database import BY_INDEX
from lilota_async.storage.edited import MOST_ATTEMPTS
from lilota_async.storage.task_row import COLUMNS

CHANNEL = "lilota"
BACKLOG_KEY = 0x6C696C6F7462  # the key of the migrations is one less
NOW = "statement_timestamp()"
# Of no row: read once for each statement, where NOT IN would be asked for each row.
_PAUSED = "ARRAY(SELECT name FROM lilota_limit WHERE paused_at IS NOT NULL)"
NOT_PAUSED = f"name <> ALL({_PAUSED}) AND '' <> ALL({_PAUSED})"
# By primary key, one row each. With ANY each row of the batch is looked for in the index: for an
# equation, a plan that was made while the table was nearly empty would read all of the index, and
# look for each row of it in the batch. Owner and status are written so that no index fits them:
# through the one of running rows, each would be looked for among all that run.
_OWN = """task.id = ANY(ARRAY[new.id]) AND task.attempts = new.attempt
    AND task.locked_by IS NOT DISTINCT FROM new.owner"""
_FENCE = f"{_OWN} AND task.status || '' = 'running'"
_COLUMNS = ", ".join(COLUMNS)
_OWN_COLUMNS = ", ".join(f"task.{name}" for name in COLUMNS)
_APPLIED = "RETURNING new.id, new.attempt, new.owner"


def _arrays(**columns: str) -> str:
    """`unnest` of one array for each column, named `new`; the first one tells how many rows.

    Of the others, an array of one is the value of all rows, and an empty one NULL for all.
    """
    arrays = {name: f"CAST(:{name} AS {kind}[])" for name, kind in columns.items()}
    first, *others = columns
    values = ", ".join(
        f"CASE WHEN cardinality({arrays[name]}) = 1 THEN ({arrays[name]})[1] ELSE {name} END {name}"
        for name in others
    )
    unnested = f"unnest({', '.join(arrays.values())}) AS given ({', '.join(columns)})"
    return f"(SELECT {first}, {values} FROM {unnested}) AS new"


def _one_row(**columns: str) -> str:
    """The same of one value for each column: a tenth less work than with arrays of one."""
    values = ", ".join(f"CAST(:{name} AS {kind})" for name, kind in columns.items())
    return f"(VALUES ({values})) AS new ({', '.join(columns)})"


NEW = {
    "id": "uuid",
    "name": "text",
    "priority": "integer",
    "delay": "float8",
    "run_at": "timestamptz",
    "input": "text",
    "max_attempts": "integer",
    "timeout": "float8",
    "tags": "text",
    "unique_key": "text",
    "unique_seconds": "float8",
    "concurrency_key": "text",
    "node_id": "uuid",
    "pid": "bigint",
    "nominal_time": "timestamptz",
}


def _insert(new: str) -> str:
    return f"""
INSERT INTO lilota_task (id, name, status, priority, created_at, run_at, progress_percentage,
    input, attempts, max_attempts, interruptions, timeout_seconds, tags, unique_key,
    unique_until, concurrency_key, locked_by, pid, start_date_time,
    nominal_time)
SELECT id, name, CASE WHEN node_id IS NULL THEN 'pending' ELSE 'running' END, priority, {NOW},
    COALESCE(run_at, {NOW} + make_interval(secs => delay)), 0, input,
    CASE WHEN node_id IS NULL THEN 0 ELSE 1 END, max_attempts, 0, timeout, tags, unique_key,
    {NOW} + make_interval(secs => unique_seconds), concurrency_key, node_id, pid,
    CASE WHEN node_id IS NOT NULL THEN {NOW} END, nominal_time
FROM {new}
WHERE node_id IS NULL OR ({NOT_PAUSED})
ON CONFLICT DO NOTHING
RETURNING id, unique_key"""


# With other nodes about, one notification for each batch tells them, in the same statement.
INSERT = text(f"""
WITH inserted AS ({_insert(_arrays(**NEW))})
SELECT ARRAY(SELECT id FROM inserted WHERE unique_key IS NOT NULL) AS keyed,
    (SELECT COUNT(*) FROM inserted) AS written, (
    SELECT pg_notify('{CHANNEL}', CAST(:told AS text))
    WHERE CAST(:announced AS boolean) AND EXISTS (SELECT 1 FROM inserted))""")
INSERT_ONE = text(_insert(_one_row(**NEW)))

# The rows are picked first, in their order; the place in it gives each row its pid. Priority by
# priority, since those that are not due yet stand between those of two priorities.
_PICKED = f"""levels (priority) AS (
    SELECT (SELECT priority FROM lilota_task WHERE status = 'pending' AND NOT is_keyed
        ORDER BY priority DESC LIMIT 1)
    UNION ALL
    SELECT (SELECT priority FROM lilota_task WHERE status = 'pending' AND NOT is_keyed
        AND priority < levels.priority ORDER BY priority DESC LIMIT 1)
    FROM levels WHERE levels.priority IS NOT NULL
), picked AS MATERIALIZED (
    SELECT due.id AS due_id, row_number() OVER () AS place FROM (
        SELECT level.id FROM levels CROSS JOIN LATERAL (
            SELECT id FROM lilota_task
            WHERE status = 'pending' AND NOT is_keyed AND priority = levels.priority
                AND run_at <= {NOW} AND name = ANY(CAST(:names AS text[])) AND {NOT_PAUSED}
                AND created_at <= COALESCE(CAST(:created_before AS timestamptz), 'infinity')
                AND attempts <= {MOST_ATTEMPTS}
            ORDER BY run_at, id
            LIMIT cardinality(CAST(:pids AS bigint[]))
            FOR UPDATE SKIP LOCKED
        ) AS level
        LIMIT cardinality(CAST(:pids AS bigint[]))
    ) AS due
)"""
_START = f"""
UPDATE lilota_task AS task SET
    status = 'running', attempts = task.attempts + 1, locked_by = CAST(:node AS uuid),
    pid = (CAST(:pids AS bigint[]))[picked.place],
    start_date_time = {NOW}, end_date_time = NULL, progress_percentage = 0,
    cancel_requested_at = NULL
FROM picked WHERE task.id = ANY(ARRAY[picked.due_id])"""
CLAIM = text(f"WITH RECURSIVE {_PICKED} {_START} RETURNING {CLAIMED_COLUMNS}, place")

ENDED = {
    "id": "uuid",
    "attempt": "integer",
    "owner": "uuid",
    "status": "text",
    "progress": "integer",
    "output": "text",
    "exception": "text",
    "cpu": "float8",
    "memory": "bigint",
    "log": "text",
}
AWAITED = ENDED | {"is_awaited": "boolean"}


def _finish(new: str) -> str:
    return f"""
UPDATE lilota_task AS task SET
    status = new.status, end_date_time = {NOW}, output = new.output,
    exception = new.exception,
    progress_percentage = COALESCE(new.progress, task.progress_percentage),
    cpu_seconds = new.cpu, peak_memory_bytes = new.memory, log = new.log
FROM {new}
WHERE {_FENCE}"""


FINISH = text(_finish(_arrays(**ENDED)))
FINISH_ONE = text(_finish(_one_row(**ENDED)))


def _finish_awaited(new: str) -> str:
    """The same, which returns those that are awaited, each with the number of all."""
    return f"""
WITH ended AS ({_finish(new)} RETURNING {_OWN_COLUMNS}, is_awaited)
SELECT {_COLUMNS}, (SELECT COUNT(*) FROM ended) FROM ended WHERE is_awaited"""


FINISH_AWAITED = text(_finish_awaited(_arrays(**AWAITED)))
FINISH_ONE_AWAITED = text(_finish_awaited(_one_row(**AWAITED)))

# One that ends and the next that begins, in one commit.
FINISH_ONE_AND_CLAIM = text(f"""
WITH RECURSIVE {_PICKED},
claimed AS ({_START} RETURNING {_OWN_COLUMNS}, place),
ended AS ({_finish(_one_row(**AWAITED))} RETURNING {_OWN_COLUMNS}, is_awaited),
known AS (
    SELECT {_COLUMNS}, place FROM claimed
    UNION ALL SELECT {_COLUMNS}, NULL FROM ended WHERE is_awaited)
SELECT known.*, (SELECT COUNT(*) FROM ended) FROM (VALUES (1)) AS one LEFT JOIN known ON TRUE""")
# Where those three return what, and what makes a row of the last one such as CLAIM returns.
PLACE = len(COLUMNS)
COUNT = -1
as_claimed = itemgetter(*map(COLUMNS.index, CLAIMED_COLUMNS.split(", ")), PLACE)

ENDS = {"id": "uuid", "attempt": "integer", "owner": "uuid", "status": "text"}
FINISHED = text(f"""
SELECT new.id, new.attempt, new.owner FROM lilota_task AS task
JOIN {_arrays(**ENDS)}
ON {_OWN} AND task.status = new.status""")

REQUEUED = {
    "id": "uuid",
    "attempt": "integer",
    "owner": "uuid",
    "delay": "float8",
    "uncounted": "integer",
    "extra": "integer",
    "exception": "text",
    "failures": "text",
    "cpu": "float8",
    "memory": "bigint",
    "log": "text",
}
# Other nodes may have places for what this one puts back.
REQUEUE = text(f"""
WITH put_back AS (
UPDATE lilota_task AS task SET
    status = CASE WHEN task.cancel_requested_at IS NULL THEN 'pending' ELSE 'cancelled' END,
    end_date_time = CASE WHEN task.cancel_requested_at IS NOT NULL THEN {NOW} END,
    run_at = CASE WHEN new.uncounted = 1 THEN task.run_at
        ELSE {NOW} + make_interval(secs => new.delay) END, locked_by = NULL, pid = NULL,
    attempts = task.attempts - new.uncounted, max_attempts = task.max_attempts
        + CASE WHEN task.max_attempts <= {MOST_ATTEMPTS} THEN new.extra ELSE 0 END,
    exception = COALESCE(new.exception, task.exception),
    failures = COALESCE(new.failures, task.failures),
    cpu_seconds = COALESCE(new.cpu, task.cpu_seconds),
    peak_memory_bytes = COALESCE(new.memory, task.peak_memory_bytes),
    log = COALESCE(new.log, task.log)
FROM {_arrays(**REQUEUED)}
WHERE {_FENCE}
{_APPLIED})
SELECT id, attempt, owner, (
    SELECT pg_notify('{CHANNEL}', CAST(:told AS text)) WHERE CAST(:announced AS boolean))
FROM put_back""")

REPORTED = {
    "id": "uuid",
    "attempt": "integer",
    "owner": "uuid",
    "progress": "integer",
    "checkpoint": "text",
}
REPORT = text(f"""
UPDATE lilota_task AS task SET
    progress_percentage = COALESCE(new.progress, task.progress_percentage),
    checkpoint = COALESCE(new.checkpoint, task.checkpoint)
FROM {_arrays(**REPORTED)}
WHERE {_FENCE}
{_APPLIED}""")


# A table of tasks has hardly a pending row at one time and a hundred thousand at another, and
# its statistics are of a third. The plans must not depend on them: every statement goes by an
# index, in its order, and is planned once.
SETTINGS = (
    *BY_INDEX,
    "enable_bitmapscan = off",
    "enable_sort = off",
    "enable_hashjoin = off",
    "enable_mergejoin = off",
    "plan_cache_mode = force_generic_plan",
    # A write that waits for a lock is not to be given up for one that would wait as long.
    "statement_timeout = 0",
    "lock_timeout = 0",
)
ANNOUNCE = text(f"SELECT pg_notify('{CHANNEL}', CAST(:told AS text))")

# Without a time when somebody has edited it to be infinite, of which no difference can be taken.
SECONDS_SINCE_SEEN = (
    f"CASE WHEN isfinite(last_seen_at)"
    f" THEN CAST(EXTRACT(EPOCH FROM {NOW} - last_seen_at) AS float8) END"
)
# One statement for an idle node, since there are many of them.
RENEW = text(f"""
WITH beat AS (
    UPDATE lilota_node SET last_seen_at = {NOW} WHERE id = CAST(:id AS uuid) RETURNING id)
SELECT id, machine, pid, pid_started, lease_seconds, {SECONDS_SINCE_SEEN} AS silent_seconds,
    EXISTS (SELECT 1 FROM beat) AS is_known, EXISTS (
        SELECT 1 FROM lilota_task WHERE status = 'running' AND name = ANY(CAST(:names AS text[]))
        AND NOT EXISTS (SELECT 1 FROM lilota_node AS owner WHERE owner.id = lilota_task.locked_by)
    ) AS has_lost
FROM lilota_node ORDER BY id""")
