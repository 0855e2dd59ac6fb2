"""PostgreSQL: every batch is one constant statement over arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from lilota_async.models.values import TaskId
from lilota_async.storage import postgresql_sql as sql
from lilota_async.storage.claimed import claimed
from lilota_async.storage.dialect import Dialect
from lilota_async.storage.direct import Direct
from lilota_async.storage.leases import live_nodes
from lilota_async.storage.operation import Kind
from lilota_async.storage.store import (
    Store,
    in_order_of_keys,
    is_plain,
)
from lilota_async.storage.task_row import Copies, copies_of
from lilota_async.storage.transitions import (
    Attempt,
    Claim,
    ClaimedTask,
    Finish,
    LimitedClaim,
    News,
    NewTask,
    Renewal,
    Report,
    Requeue,
    Written,
)

if TYPE_CHECKING:
    from sqlalchemy import TextClause
    from sqlalchemy.ext.asyncio import AsyncConnection

# Where CLAIM returns them.
_ATTEMPTS, _PLACE = 2, 10


class PostgresqlDialect(Dialect):
    """PostgreSQL's own uuid and timestamptz."""

    now = sql.NOW
    has_arrays = True
    is_not_paused = sql.NOT_PAUSED
    is_pending = "status || '' = 'pending'"
    lock_backlog = f"SELECT pg_try_advisory_xact_lock({sql.BACKLOG_KEY})"
    seconds_since_seen = sql.SECONDS_SINCE_SEEN

    def seconds_between(self, earlier: str, later: str) -> str:
        return f"CAST(EXTRACT(EPOCH FROM {later} - {earlier}) AS float8)"

    def later(self, seconds: str) -> str:
        return f"{sql.NOW} + make_interval(secs => CAST({seconds} AS float8))"

    def moment(self, name: str) -> str:
        return f"CAST(:{name} AS timestamptz)"

    def key(self, value: UUID) -> Any:
        return value


class PostgresqlStore(Store):
    """Works through asyncpg and through psycopg alike."""

    turns = (
        frozenset({Kind.ADMIT}),
        frozenset({Kind.INSERT}),
        frozenset({Kind.DEPENDENTS}),
        # Reports go with the ends of attempts, which they must not come after.
        frozenset({Kind.REPORT, Kind.FINISH, Kind.REQUEUE}),
        frozenset({Kind.EXECUTE}),
        frozenset({Kind.LOOK}),
        frozenset({Kind.CLAIM}),
    )
    writes_side_by_side = True
    has_statement_for_pairs = True

    def is_atomic(self, kind: Kind, values: Sequence[Any]) -> bool:
        if kind is Kind.FINISH:
            return not any(finish.children for finish in values)
        if kind in (Kind.LOOK, Kind.CLAIM):
            return len(values) == 1 and not isinstance(values[0], LimitedClaim)
        return kind not in (Kind.ADMIT, Kind.DEPENDENTS, Kind.EXECUTE)

    def is_closed(self, c: AsyncConnection) -> bool:
        return self._direct.is_closed(c)

    async def prepare(self, c: AsyncConnection) -> None:
        for setting in sql.SETTINGS:
            await c.exec_driver_sql(f"SET {setting}")

    async def announce(self, c: AsyncConnection, news: News = News.ROWS) -> None:
        await c.execute(sql.ANNOUNCE, {"told": self._message(news)})

    def _message(self, news: News) -> str:
        return f"{self.origin} {news}"

    def __init__(self) -> None:
        super().__init__(PostgresqlDialect())
        self._direct = Direct()

    async def insert(self, c: AsyncConnection, tasks: Sequence[NewTask]) -> set[TaskId[Any]]:
        # Nobody else can do anything about a row that runs already.
        is_news = self.has_listeners and any(task.node_id is None for task in tasks)
        if len(tasks) == 1 and not is_news:
            return await self._insert_one(c, tasks[0])
        # Most batches have no keys at all.
        is_keyed = any(task.unique_key is not None for task in tasks)
        tasks = in_order_of_keys(tasks) if is_keyed else tasks
        columns = _arrays(_NEW, tasks)
        told = {"announced": is_news, "told": self._message(self._news_of(tasks))}
        ((inserted_keyed, written, _),) = await self._direct.rows(c, sql.INSERT, columns | told)
        paused = await self._not_begun(c, tasks) if written < len(tasks) else set()
        if not is_keyed:
            return paused
        keyed = {task.id for task in tasks if task.unique_key is not None}
        return paused | (keyed - set(inserted_keyed))

    async def _insert_one(self, c: AsyncConnection, task: NewTask) -> set[TaskId[Any]]:
        if await self._direct.rows(c, sql.INSERT_ONE, _row(_NEW, task)):
            return set()
        return {task.id} if task.unique_key is not None else await self._not_begun(c, [task])

    def _news_of(self, tasks: Sequence[NewTask]) -> News:
        """What those who hear of the rows are told."""
        return News.LOOK if self.has_listeners and not all(map(is_plain, tasks)) else News.ROWS

    async def renew(self, c: AsyncConnection, node_id: UUID, names: Sequence[str]) -> Renewal:
        rows = (await c.execute(sql.RENEW, {"id": node_id, "names": list(names)})).all()
        if not rows:
            return Renewal(is_known=False, nodes=(), has_lost=True)
        return Renewal(
            is_known=rows[0].is_known, nodes=tuple(live_nodes(rows)), has_lost=rows[0].has_lost
        )

    async def claim(self, c: AsyncConnection, claim: Claim) -> list[ClaimedTask]:
        rows = await self._direct.rows(c, sql.CLAIM, _claimed_by(claim))
        return _begun(claim, rows)

    async def finish(self, c: AsyncConnection, finishes: Sequence[Finish]) -> Sequence[Written]:
        is_one = len(finishes) == 1
        if not any(finish.is_awaited for finish in finishes):
            columns = _row(_ENDED, finishes[0]) if is_one else _arrays(_ENDED, finishes)
            statement = sql.FINISH_ONE if is_one else sql.FINISH
            count = await self._direct.count(c, statement, columns)
            return await self._written(c, finishes, count, {})
        columns = _row(_AWAITED, finishes[0]) if is_one else _arrays(_AWAITED, finishes)
        statement = sql.FINISH_ONE_AWAITED if is_one else sql.FINISH_AWAITED
        rows = await self._direct.rows(c, statement, columns)
        count = rows[0][sql.COUNT] if rows else 0  # where one took none
        return await self._written(c, finishes, count, copies_of(rows, c.dialect))

    async def finish_and_claim(
        self, c: AsyncConnection, finish: Finish, claim: Claim
    ) -> tuple[Written, list[ClaimedTask]]:
        values = _row(_AWAITED, finish) | _claimed_by(claim)
        rows = await self._direct.rows(c, sql.FINISH_ONE_AND_CLAIM, values)
        begun = [sql.as_claimed(row) for row in rows if row[sql.PLACE] is not None]
        copies = copies_of([row for row in rows if row[sql.PLACE] is None], c.dialect)
        (written,) = await self._written(c, [finish], rows[0][sql.COUNT], copies)
        return written, _begun(claim, begun)

    async def _written(
        self, c: AsyncConnection, finishes: Sequence[Finish], count: int, copies: Copies
    ) -> Sequence[Written]:
        """What was written, after so many rows took their ends: some may have them from before."""
        if count == len(finishes):
            return [copies.get(finish.attempt.id, True) for finish in finishes]
        applied = await self._attempts(c, sql.FINISHED, _arrays(_ENDS, finishes))
        attempts = [finish.attempt for finish in finishes]
        return [attempt in applied and copies.get(attempt.id, True) for attempt in attempts]

    async def requeue(self, c: AsyncConnection, requeues: Sequence[Requeue]) -> list[bool]:
        told = {"announced": self.has_listeners, "told": self._message(News.LOOK)}
        applied = await self._attempts(c, sql.REQUEUE, _arrays(_REQUEUED, requeues) | told)
        return [requeue.attempt in applied for requeue in requeues]

    async def report(self, c: AsyncConnection, reports: Sequence[Report]) -> list[bool]:
        # Of two rows for one task the database would take any: the later goes on the earlier.
        merged: dict[Attempt, Report] = {}
        for report in reports:
            earlier = merged.get(report.attempt, report)
            merged[report.attempt] = Report(
                attempt=report.attempt,
                progress=earlier.progress if report.progress is None else report.progress,
                checkpoint=earlier.checkpoint if report.checkpoint is None else report.checkpoint,
            )
        parameters = _arrays(_REPORTED, list(merged.values()))
        applied = await self._attempts(c, sql.REPORT, parameters)
        return [report.attempt in applied for report in reports]

    async def _attempts(
        self, c: AsyncConnection, statement: TextClause, parameters: dict[str, Any]
    ) -> set[Attempt]:
        """The attempts that the statement returns."""
        return {
            Attempt(id=TaskId(task_id), number=number, node_id=TaskId(node_id))
            for task_id, number, node_id, *_ in await self._direct.rows(c, statement, parameters)
        }


class Column(NamedTuple):
    """Where the value of a statement's parameter comes from, and what it has to be."""

    get: Callable[[Any], Any]
    convert: Callable[[Any], Any] | None = None


Source = str | tuple[str, Callable[[Any], Any]]


def _from(names: Iterable[str], **sources: Source) -> Columns:
    """The columns of these names, from attributes of that name, or from another source."""
    columns = {}
    for name in names:
        source = sources.get(name, name)
        path, convert = (source, None) if isinstance(source, str) else source
        columns[name] = Column(attrgetter(path), convert)
    return columns


Columns = Mapping[str, Column]
_NEW = _from(
    sql.NEW,
    delay=("delay_seconds", float),
    timeout=("timeout_seconds", float),
    unique_seconds=("unique_seconds", float),
)
_FENCE: dict[str, Source] = {
    "id": "attempt.id",
    "attempt": "attempt.number",
    "owner": "attempt.node_id",
}
_COST: dict[str, Source] = {
    "cpu": ("cost.cpu_seconds", float),
    "memory": "cost.peak_memory_bytes",
    "log": "cost.log",
}
_AWAITED = _from(sql.AWAITED, status=("status", str), **_FENCE, **_COST)
_ENDED = {name: _AWAITED[name] for name in sql.ENDED}
_ENDS = {name: _AWAITED[name] for name in sql.ENDS}
_REQUEUED = _from(
    sql.REQUEUED,
    delay=("delay_seconds", float),
    uncounted=("counted", lambda counted: 0 if counted else 1),
    extra="extra_attempts",
    **_FENCE,
    **_COST,
)
_REPORTED = _from(sql.REPORTED, **_FENCE)


def _row(columns: Columns, item: Any) -> dict[str, Any]:
    """The values of one row."""
    return {
        name: get(item) if convert is None else _converted(convert, get(item))
        for name, (get, convert) in columns.items()
    }


def _arrays(columns: Columns, items: Sequence[Any]) -> dict[str, Any]:
    """The columns as arrays, as short as can be: the driver takes long for each value."""
    arrays: dict[str, Any] = {}
    for name, (get, convert) in columns.items():
        values = list(map(get, items))
        if arrays:  # the first one tells how many rows there are
            values = _shortened(values)
        if convert is not None:
            values = [_converted(convert, value) for value in values]
        arrays[name] = values
    return arrays


def _shortened(values: list[Any]) -> list[Any]:
    first = values[0]
    if values.count(first) < len(values):
        return values
    return [] if first is None else [first]


def _converted(convert: Callable[[Any], Any], value: Any) -> Any:
    return None if value is None else convert(value)


def _claimed_by(claim: Claim) -> dict[str, Any]:
    return {
        "names": list(claim.names),
        "pids": list(claim.pids),
        "node": claim.node_id,
        "created_before": claim.created_before,
    }


def _begun(claim: Claim, rows: Iterable[Any]) -> list[ClaimedTask]:
    """The tasks of rows as CLAIM returns them, in the order of their places."""
    return [claimed(row, claim, row[_ATTEMPTS]) for row in sorted(rows, key=itemgetter(_PLACE))]
