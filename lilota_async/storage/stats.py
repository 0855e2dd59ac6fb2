"""What `stats()` reads: pending and running rows by their own indexes, and of the finished ones

the latest of each name. On no database does it go through finished rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
from sqlalchemy import text

from lilota_async.models.stats import NameStats, NodeStats, Stats
from lilota_async.models.types import TaskIdType
from lilota_async.storage.database import Database
from lilota_async.storage.edited import limit_seconds
from lilota_async.storage.reading import by_index, names_of_tasks
from lilota_async.storage.stores import create_store

if TYPE_CHECKING:
    from sqlalchemy import TextClause
    from sqlalchemy.ext.asyncio import AsyncConnection

    from lilota_async.storage.dialect import Dialect

LATEST_ROWS = 500
MOST_FAILED = 10_000
WINDOW_SECONDS = 300.0


async def read_stats(database: Database, registered: Iterable[str]) -> Stats:
    """How it stands with all tasks; `registered` are names to tell about in any case."""
    return await database.undisturbed(_read(database, set(registered)))


async def read_throughput(database: Database, names: Sequence[str]) -> float:
    """How many tasks of these names have lately finished per second."""

    async def read() -> float:
        async with by_index(database) as c:
            reader = _Reader(c, create_store(database).dialect)
            return sum([(await reader.ended(name)).throughput for name in names])

    return await database.undisturbed(read())


async def _read(database: Database, names: set[str]) -> Stats:
    async with by_index(database) as c:
        reader = _Reader(c, create_store(database).dialect)
        nodes = await reader.nodes()
        live = [node for node in nodes if node.is_live]
        claimable = {name for node in live for name in node.names}
        waiting = await reader.waiting()
        running = await reader.running()
        paused = await reader.paused()
        names |= {*claimable, *waiting, *running, *await names_of_tasks(c)}
        named = {}
        for name in sorted(names):
            slots = sum(node.slots for node in live if name in node.names)
            named[name] = _name_stats(
                name,
                waiting.get(name, _NOTHING_WAITS),
                running.get(name, 0),
                await reader.ended(name),
                slots,
                paused=not paused.isdisjoint({name, ""}),
            )
    unclaimable = sorted(set(waiting) - claimable)
    return Stats(names=named, nodes=tuple(nodes), unclaimable=tuple(unclaimable))


class _Waiting(msgspec.Struct, frozen=True):
    pending: int
    due: int
    oldest_seconds: float | None


class _Ended(msgspec.Struct, frozen=True):
    failed: int
    finished: int
    throughput: float
    durations: list[float]


_NOTHING_WAITS = _Waiting(0, 0, None)


class _Reader:
    """The statements, on one connection."""

    def __init__(self, c: AsyncConnection, dialect: Dialect) -> None:
        self._c = c
        self._dialect = dialect
        self._latest = self._latest_statement()

    async def nodes(self) -> list[NodeStats]:
        seen = self._dialect.seconds_since_seen
        statement = text(f"""
            SELECT id, host, pid, slots, names, version, lease_seconds, {seen} AS silent_seconds
            FROM lilota_node ORDER BY id""").columns(id=TaskIdType)
        return [_node_stats(row) for row in await self._all(statement)]

    async def waiting(self) -> dict[str, _Waiting]:
        now = self._dialect.now
        statement = text(f"""
            SELECT name, COUNT(*) AS pending,
                {self._dialect.seconds_between("MIN(run_at)", now)} AS waited,
                SUM(CASE WHEN run_at <= {now} THEN 1 ELSE 0 END) AS due
            FROM {self._dialect.pending_name_table} WHERE status = 'pending' GROUP BY name
            """)
        found = {}
        for row in await self._all(statement):
            waited = float(row.waited) if row.due and row.waited is not None else None
            found[row.name] = _Waiting(int(row.pending), int(row.due), waited)
        return found

    async def paused(self) -> set[str]:
        """The names that are paused; the empty one stands for all."""
        statement = text("SELECT name FROM lilota_limit WHERE paused_at IS NOT NULL")
        return {row.name for row in await self._all(statement)}

    async def running(self) -> dict[str, int]:
        statement = text(f"""
            SELECT name, COUNT(*) AS running FROM {self._dialect.running_table}
            WHERE status = 'running' GROUP BY name""")
        return {row.name: row.running for row in await self._all(statement)}

    async def ended(self, name: str) -> _Ended:
        """What the latest finished tasks of this name tell."""
        completed = await self._ended_as(name, "completed")
        failed = await self._ended_as(name, "failed")
        count = len(failed)
        if count == LATEST_ROWS:
            statement = text(f"""
                SELECT COUNT(*) AS failed FROM (SELECT 1 FROM {self._dialect.ended_table}
                    WHERE name = :name AND status = 'failed' AND end_date_time IS NOT NULL
                    LIMIT :limit) AS counted""")
            count = (await self._all(statement, name=name, limit=MOST_FAILED))[0].failed
        paces = [_pace(completed), _pace(failed)]
        return _Ended(
            failed=count,
            finished=sum(finished for finished, _ in paces),
            throughput=sum(rate for _, rate in paces),
            durations=sorted(max(0.0, float(row.took)) for row in completed),
        )

    async def _ended_as(self, name: str, status: str) -> list[Any]:
        """The latest that ended so; without those whose times somebody has edited."""
        rows = await self._all(self._latest, name=name, status=status, limit=LATEST_ROWS)
        return [row for row in rows if row.ended_ago is not None and row.took is not None]

    def _latest_statement(self) -> TextClause:
        """Numbers, since making datetimes of them would take several times as long."""
        started = "COALESCE(start_date_time, end_date_time)"
        ago = self._dialect.seconds_between("end_date_time", self._dialect.now)
        took = self._dialect.seconds_between(started, "end_date_time")
        return text(f"""
            SELECT {ago} AS ended_ago, {took} AS took FROM {self._dialect.ended_table}
            WHERE name = :name AND status = :status AND end_date_time IS NOT NULL
            ORDER BY end_date_time DESC LIMIT :limit""")

    async def _all(self, statement: Any, **parameters: Any) -> Sequence[Any]:
        rows: Sequence[Any] = (await self._c.execute(statement, parameters)).all()
        return rows


def _pace(rows: Sequence[Any]) -> tuple[int, float]:
    """How many have ended in the window, and how many per second since the first began."""
    recent = [row for row in rows if row.ended_ago <= WINDOW_SECONDS]
    if not recent:
        return 0, 0.0
    seconds = float(max(row.ended_ago + row.took for row in recent))
    return len(recent), len(recent) / min(max(seconds, 0.001), WINDOW_SECONDS)


def _name_stats(
    name: str, waiting: _Waiting, running: int, ended: _Ended, slots: int, *, paused: bool
) -> NameStats:
    half = _percentile(ended.durations, 50)
    return NameStats(
        name=name,
        pending=waiting.pending,
        due=waiting.due,
        running=running,
        failed=ended.failed,
        oldest_pending_seconds=waiting.oldest_seconds,
        finished=ended.finished,
        throughput=ended.throughput,
        p50_seconds=half,
        p95_seconds=_percentile(ended.durations, 95),
        wait_seconds=None if paused else _wait(waiting.due, ended, half, slots),
        paused=paused,
    )


def _wait(due: int, ended: _Ended, half: float | None, slots: int) -> float | None:
    if not due:
        return 0.0
    if ended.throughput:
        return due / ended.throughput
    return due * half / slots if half is not None and slots else None


def _percentile(ordered: Sequence[float], percent: int) -> float | None:
    """The smallest value that so many of a hundred do not exceed."""
    if not ordered:
        return None
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def _node_stats(row: Any) -> NodeStats:
    silent, lease = row.silent_seconds, limit_seconds(row.lease_seconds)
    return NodeStats(
        id=UUID(int=row.id.int),
        host=row.host,
        pid=row.pid,
        slots=row.slots,
        names=_names(row.names),
        version=row.version,
        seconds_since_seen=max(0.0, float(silent or 0.0)),
        is_live=silent is not None and lease is not None and silent <= lease,
    )


def _names(written: str | None) -> tuple[str, ...]:
    try:
        return msgspec.json.decode(written or "[]", type=tuple[str, ...])
    except (msgspec.DecodeError, msgspec.ValidationError):  # edited by hand
        return ()
