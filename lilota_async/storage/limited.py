"""The claim of a node where limits are in use: of concurrency, of rates, of keys.

It goes step by step in one transaction, and under the lock of one row, so that no two nodes give
out the last place. What it reads grows with what runs and with the places to fill, and not with
what waits: of each name the first rows, found by the index of names. What may start is decided
in `admission`. Nodes without limits use the one statement of `Store.claim()`, and the lock is none
of theirs. Where much waits that a node does not run, over which that statement would pass, it
claims name by name like this, but without the lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
from sqlalchemy import bindparam, text

from lilota_async.models.rates import Starts
from lilota_async.storage.admission import Candidate, choose, rooms, seconds_to_room, used_up
from lilota_async.storage.claimed import CLAIMED_COLUMNS, claimed
from lilota_async.storage.edited import MOST_ATTEMPTS, is_sound
from lilota_async.storage.lookahead import crowd, known, pending_names
from lilota_async.storage.transitions import Claimed, ClaimedTask, InUse, LimitedClaim, News

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from lilota_async.storage.store import Store

ALL = ""
"""The name of the row that is locked, and that pauses every task."""
MORE_KEYED = 20
SPARE = 20  # or as many as there are places, since others without the lock take the first as well
FEW_NAMES = 20  # are looked for without asking which of them have anything pending
MOST_RECURSIONS = 1000  # where MariaDB ends a recursion without a word
CROWD = 5000  # rows that are passed over about as fast as a claim goes name by name
MOST_LANES = 100  # of one statement; SQLite takes 500 at most
Moments: TypeAlias = Mapping[str, Any]
"""The times that the statements compare with, bound by their names."""
_STARTS = msgspec.json.Decoder(list[tuple[int, int]])


class Limits:
    """The statements about limits, of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        dialect = store.dialect
        self._lock = text(f"""
            SELECT name, starts FROM lilota_limit
            WHERE name IN :names ORDER BY name {dialect.for_update}
            """).bindparams(bindparam("names", expanding=True))
        self._create = text(
            f"INSERT INTO lilota_limit (name) VALUES (:name) {dialect.on_known_limit}"
        )
        self._pending_names = pending_names(dialect)
        self._first_of = cache(lambda lanes: text(self.first_statement(lanes)))
        self._running = text(f"""
            SELECT name, concurrency_key, COUNT(*) AS running FROM {dialect.running_table}
            WHERE status = 'running' GROUP BY name, concurrency_key""")
        self._locked = text(f"""
            SELECT {CLAIMED_COLUMNS}, concurrency_key FROM lilota_task
            WHERE id IN :ids AND {dialect.is_pending} AND run_at <= {dialect.moment("now")}
            {dialect.for_adoption}
            """).bindparams(bindparam("ids", expanding=True))
        self._start = text("""
            UPDATE lilota_task SET status = 'running', attempts = attempts + 1, pid = :pid,
                locked_by = :node, start_date_time = :now, end_date_time = NULL,
                progress_percentage = 0, cancel_requested_at = NULL
            WHERE id = :id""")
        self._note = text("UPDATE lilota_limit SET starts = :starts WHERE name = :name")
        self._pause = text(f"""
            UPDATE lilota_limit SET paused_at = COALESCE(paused_at, {dialect.now})
            WHERE name = :name""")
        self._resume = text("UPDATE lilota_limit SET paused_at = NULL WHERE name = :name")
        self._in_use = text(f"""
            WITH RECURSIVE keyed (name) AS (
                SELECT (SELECT name FROM {dialect.pending_key_table}
                    WHERE {dialect.is_pending_keyed} ORDER BY name LIMIT 1)
                UNION ALL
                SELECT (SELECT name FROM {dialect.pending_key_table}
                    WHERE {dialect.is_pending_keyed} AND name > keyed.name ORDER BY name LIMIT 1)
                FROM keyed WHERE keyed.name IS NOT NULL
            ), {known(dialect)}
            SELECT 'keyed' AS kind, name FROM keyed WHERE name IS NOT NULL
            UNION ALL
            SELECT 'paused', name FROM lilota_limit WHERE paused_at IS NOT NULL
            UNION ALL
            SELECT 'crowded', name FROM known WHERE name IS NOT NULL AND {crowd(dialect, CROWD)}""")

    async def in_use(self, c: AsyncConnection) -> InUse:
        """The names for which claims are other than usual."""
        names: dict[str, set[str]] = {}
        for kind, name in (await c.execute(self._in_use)).all():
            names.setdefault(kind, set()).add(name)
        return InUse(**{kind: frozenset(some) for kind, some in names.items()})

    async def pause(self, c: AsyncConnection, name: str) -> None:
        """Let no more tasks of the name start; of any name, where it is ALL."""
        await c.execute(self._create, {"name": name})
        await c.execute(self._pause, {"name": name})
        await self._store.tell(c, News.LOOK)

    async def resume(self, c: AsyncConnection, name: str) -> None:
        """Let tasks of the name start again."""
        await c.execute(self._resume, {"name": name})
        await self._store.tell(c, News.LOOK)

    async def claim(self, c: AsyncConnection, limited: LimitedClaim) -> Claimed:
        """pending -> running, for what no limit holds back. Belongs into a transaction."""
        starts: dict[str, Starts] = {}
        running: dict[str, int] = {}
        busy: set[str] = set()
        if limited.has_limits:
            starts = await self._lock_limits(c, limited)
            running, busy = await self._what_runs(c)
        now = await self._store.clock(c)  # after the end of all that does not run any more
        time = self._store.dialect.time
        moments = {"now": time(now), "created_before": time(limited.claim.created_before)}
        room = rooms(limited.limits, running, starts, now.timestamp())
        chosen = await self._choose(c, limited, moments, room, busy)
        claimed = await self._begin(c, limited, chosen, now)
        starts = await self._note_starts(c, limited, starts, claimed, now)
        return Claimed(
            tasks=claimed,
            seconds_to_room=seconds_to_room(limited.limits, starts, now.timestamp()),
            is_contended=len(claimed) < min(len(chosen), len(limited.claim.pids)),
            waits=bool(moments["created_before"])
            and await self._waits(c, limited, moments, used_up(limited.limits, starts, now)),
        )

    async def _waits(
        self, c: AsyncConnection, limited: LimitedClaim, moments: Moments, but: set[str]
    ) -> bool:
        names = await self._with_pending(c, limited.claim.names)
        lanes = [(name, False, 1) for name in names if name not in but]
        lanes += [(name, True, 1) for name in limited.keyed - but]
        return bool(await self._first(c, moments, lanes))

    async def _lock_limits(self, c: AsyncConnection, limited: LimitedClaim) -> dict[str, Starts]:
        names = [ALL, *(limit.name for limit in limited.limits if limit.rate is not None)]
        rows = (await c.execute(self._lock, {"names": names})).all()
        if len(rows) < len(names):  # the first time
            await c.execute(self._create, [{"name": name} for name in sorted(names)])
            rows = (await c.execute(self._lock, {"names": names})).all()
        return {row.name: _decode(row.starts) for row in rows}

    async def _what_runs(self, c: AsyncConnection) -> tuple[dict[str, int], set[str]]:
        running: dict[str, int] = {}
        busy = set()
        for row in (await c.execute(self._running)).all():
            running[row.name] = running.get(row.name, 0) + row.running
            if row.concurrency_key is not None:
                busy.add(row.concurrency_key)
        return running, busy

    async def _choose(
        self,
        c: AsyncConnection,
        limited: LimitedClaim,
        moments: Moments,
        room: Mapping[str, int],
        busy: set[str],
    ) -> list[Candidate]:
        """Of each name the first; and if keys that are busy fill those, the first of each key."""
        places = len(limited.claim.pids)
        if not limited.has_limits and self._store.dialect.for_adoption:
            places += max(places, SPARE)
        pending = await self._with_pending(c, limited.claim.names)
        names = [name for name in pending if room.get(name, 1) > 0]
        keyed = [name for name in names if name in limited.keyed]
        many = places + MORE_KEYED
        found = await self._first(
            c,
            moments,
            [(name, False, min(places, room.get(name, places))) for name in names]
            + [(name, True, many) for name in keyed],
        )
        chosen = choose(found, room, busy, places)
        if len(chosen) < places:
            for name in keyed:
                if sum(each.name == name and each.key is not None for each in found) == many:
                    # Beyond those that are busy or chosen already, one for each place.
                    most = len(busy) + 2 * places
                    found += await self._first_of_keys(c, moments, name, most)
            known = {each.id: each for each in found}
            chosen = choose(list(known.values()), room, busy, places)
        return chosen

    async def _first(
        self, c: AsyncConnection, moments: Moments, lanes: Sequence[tuple[str, bool, int]]
    ) -> list[Candidate]:
        """The first due rows of each name, with or without a key, that is not paused."""
        found: list[Candidate] = []
        for start in range(0, len(lanes), MOST_LANES):
            some = lanes[start : start + MOST_LANES]
            parameters = dict(moments)
            for number, (name, is_keyed, limit) in enumerate(some):
                parameters |= {
                    f"name_{number}": name,
                    f"keyed_{number}": is_keyed,
                    f"limit_{number}": limit,
                }
            rows = await c.execute(self._first_of(len(some)), parameters)
            found += _candidates(rows.all())
        return found

    async def _with_pending(self, c: AsyncConnection, names: Sequence[str]) -> Sequence[str]:
        """The names, but for those of many of which nothing is pending."""
        if len(names) <= FEW_NAMES:
            return names
        pending = set((await c.execute(self._pending_names)).scalars())
        if len(pending) >= MOST_RECURSIONS:
            return names
        return [name for name in names if name in pending]

    def first_statement(self, lanes: int) -> str:
        """Constant for so many lanes; a row of each is found by the index, in its order."""
        dialect = self._store.dialect
        return " UNION ALL ".join(
            f"""SELECT * FROM (
                SELECT id, name, concurrency_key, priority, run_at
                FROM {dialect.pending_name_table}
                WHERE status = 'pending' AND name = :name_{number} AND is_keyed = :keyed_{number}
                    AND run_at <= {dialect.moment("now")} AND attempts <= {MOST_ATTEMPTS}
                    AND created_at <= COALESCE({dialect.moment("created_before")}, created_at)
                    AND {dialect.is_not_paused}
                ORDER BY priority DESC, run_at, id LIMIT :limit_{number}) AS lane_{number}"""
            for number in range(lanes)
        )

    async def _first_of_keys(
        self, c: AsyncConnection, moments: Moments, name: str, many: int
    ) -> list[Candidate]:
        """The first due row of each of so many keys, found from one key to the next."""
        dialect = self._store.dialect
        keyed = (
            f"FROM {dialect.pending_key_table} WHERE {dialect.is_pending_keyed} AND name = :name"
        )
        due = f"""run_at <= {dialect.moment("now")} AND attempts <= {MOST_ATTEMPTS}
            AND created_at <= COALESCE({dialect.moment("created_before")}, created_at)
            AND {dialect.is_not_paused}"""
        parameters = {**moments, "name": name, "many": many}
        found = await c.execute(
            text(f"""
            WITH RECURSIVE keys_known (known) AS (
                SELECT (SELECT concurrency_key {keyed} AND {due} ORDER BY concurrency_key LIMIT 1)
                UNION ALL
                SELECT (SELECT concurrency_key {keyed} AND {due}
                    AND concurrency_key > keys_known.known ORDER BY concurrency_key LIMIT 1)
                FROM keys_known WHERE keys_known.known IS NOT NULL
            )
            SELECT (SELECT id {keyed} AND {due} AND concurrency_key = keys_known.known
                ORDER BY priority DESC, run_at, id LIMIT 1) AS id
            FROM keys_known WHERE keys_known.known IS NOT NULL LIMIT :many"""),
            parameters,
        )
        ids = [row.id for row in found.all() if row.id is not None]
        return await self._by_ids(c, ids)

    async def _by_ids(self, c: AsyncConnection, ids: Sequence[Any]) -> list[Candidate]:
        if not ids:
            return []
        statement = text("""
            SELECT id, name, concurrency_key, priority, run_at FROM lilota_task
            WHERE id IN :ids""").bindparams(bindparam("ids", expanding=True))
        return _candidates((await c.execute(statement, {"ids": list(ids)})).all())

    async def _begin(
        self, c: AsyncConnection, limited: LimitedClaim, chosen: Sequence[Candidate], now: datetime
    ) -> list[ClaimedTask]:
        claim = limited.claim
        found = await self._lock_rows(c, chosen, len(claim.pids), now)
        sound = [row for row in found if is_sound(row.id, row.attempts)]
        if len(sound) < len(found):
            await self._store.refuse(c, [row.id for row in found if row not in sound])
        if not sound:
            return []
        started = {
            "node": self._store.dialect.key(claim.node_id),
            "now": self._store.dialect.time(now),
        }
        pairs = list(zip(sound, claim.pids, strict=False))
        await c.execute(self._start, [{"id": row.id, "pid": pid, **started} for row, pid in pairs])
        names = {limit.name for limit in limited.limits}
        return [
            msgspec.structs.replace(
                claimed(row, claim, row.attempts + 1),
                is_limited=row.name in names or row.concurrency_key is not None,
            )
            for row, _ in pairs
        ]

    async def _lock_rows(
        self, c: AsyncConnection, chosen: Sequence[Candidate], places: int, now: datetime
    ) -> list[Any]:
        """So many of the rows as are still due and nobody else holds, in their order."""
        found: list[Any] = []
        rest = [each.id for each in chosen]
        while rest and len(found) < places:
            ids, rest = rest[: places - len(found)], rest[places - len(found) :]
            wanted = {"ids": ids, "now": self._store.dialect.time(now)}
            rows = {row.id: row for row in (await c.execute(self._locked, wanted)).all()}
            found += [rows[key] for key in ids if key in rows]
        return found

    async def _note_starts(
        self,
        c: AsyncConnection,
        limited: LimitedClaim,
        starts: Mapping[str, Starts],
        claimed: Iterable[ClaimedTask],
        now: datetime,
    ) -> dict[str, Starts]:
        """Write how many of the names with a rate have started; returns what counts then."""
        noted = dict(starts)
        started = [task.name for task in claimed]
        for limit in limited.limits:
            more = started.count(limit.name)
            if limit.rate is not None and more:
                noted[limit.name] = limit.rate.with_starts(
                    starts.get(limit.name, ()), now.timestamp(), more
                )
                encoded = msgspec.json.encode(noted[limit.name]).decode()
                await c.execute(self._note, {"name": limit.name, "starts": encoded})
        return noted


def _candidates(rows: Iterable[Any]) -> list[Candidate]:
    return [
        Candidate(
            id=row.id,
            name=row.name,
            key=row.concurrency_key,
            priority=row.priority,
            run_at=row.run_at,
        )
        for row in rows
    ]


def _decode(starts: str | None) -> Starts:
    try:
        return _STARTS.decode(starts or "[]")
    except (msgspec.DecodeError, msgspec.ValidationError):  # edited by hand
        return []
