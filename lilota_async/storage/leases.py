"""The rows of nodes, and how running tasks get from one that is gone to another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
from sqlalchemy import bindparam, text

from lilota_async.models.values import TaskId
from lilota_async.storage.dialect import Dialect
from lilota_async.storage.edited import MOST_ATTEMPTS, is_key, is_sound, limit_seconds
from lilota_async.storage.transitions import Attempt, LiveNode, LostTask, News, NodeRecord, Renewal

if TYPE_CHECKING:
    from sqlalchemy import TextClause
    from sqlalchemy.ext.asyncio import AsyncConnection


class LeaseStore(ABC):
    """What the recovery does; its module says who may take what from whom, and when."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self._key = dialect.key
        self._lease_statements = _statements(dialect)
        self._lost = text(f"""
            SELECT id, name, attempts, interruptions, cancel_requested_at FROM lilota_task
            WHERE status = 'running' AND name IN :names AND interruptions <= {MOST_ATTEMPTS}
                AND (locked_by IN :owners OR (:unowned AND locked_by IS NULL))
                AND NOT EXISTS
                    (SELECT 1 FROM lilota_node WHERE lilota_node.id = lilota_task.locked_by)
            ORDER BY id LIMIT :limit {dialect.for_adoption}""").bindparams(
            bindparam("names", expanding=True), bindparam("owners", expanding=True)
        )
        self._lost_owners = text("""
            SELECT DISTINCT locked_by FROM lilota_task
            WHERE status = 'running' AND name IN :names AND NOT EXISTS
                (SELECT 1 FROM lilota_node WHERE lilota_node.id = lilota_task.locked_by)
            """).bindparams(bindparam("names", expanding=True))

    @abstractmethod
    async def announce(self, c: AsyncConnection, news: News = News.ROWS) -> None:
        """Tell whoever listens, where the database can."""

    async def register_node(self, c: AsyncConnection, node: NodeRecord) -> None:
        """Make the node known, seen now; the others hear that there is one to tell."""
        await c.execute(
            self._lease_statements["register_node"],
            {
                "id": self._key(node.id),
                "machine": node.machine,
                "host": node.host,
                "pid": node.pid,
                "pid_started": node.pid_started,
                "lease_seconds": node.lease_seconds,
                "slots": node.slots,
                "version": node.version,
                "names": msgspec.json.encode(node.names).decode(),
            },
        )
        await self.announce(c)

    async def heartbeat(self, c: AsyncConnection, node_id: UUID) -> bool:
        """Seen now; False when the row is gone, since others have taken over."""
        result = await c.execute(self._lease_statements["heartbeat"], {"id": self._key(node_id)})
        return bool(result.rowcount == 1)

    async def renew(self, c: AsyncConnection, node_id: UUID, names: Sequence[str]) -> Renewal:
        """A heartbeat, and all that has to be known of the other nodes until the next one."""
        is_known = await self.heartbeat(c, node_id)
        nodes = await self.nodes(c)
        owners = await c.execute(self._lost_owners, {"names": list(names)})
        return Renewal(is_known=is_known, nodes=tuple(nodes), has_lost=owners.first() is not None)

    async def remove_node(
        self, c: AsyncConnection, node_id: UUID, *, silent_for: float | None = None
    ) -> None:
        """Forget the node; its running tasks, if any, are for `adopt()`.

        With `silent_for` only if it has been silent for so many seconds: it may have come back.
        """
        name = "remove_node" if silent_for is None else "remove_silent_node"
        parameters = {} if silent_for is None else {"silent_for": silent_for}
        await c.execute(self._lease_statements[name], {"id": self._key(node_id), **parameters})

    async def nodes(self, c: AsyncConnection) -> list[LiveNode]:
        """Every node that is registered."""
        return live_nodes((await c.execute(self._lease_statements["nodes"])).all())

    async def adopt(
        self, c: AsyncConnection, node_id: UUID, names: Sequence[str], limit: int
    ) -> list[LostTask]:
        """running -> running: tasks of no registered node become this node's, interrupted.

        The new owner decides what becomes of them and writes that, fenced as ever. Several
        nodes at once share them. Belongs into a transaction.
        """
        # The owners first: rows that another node adopts and claims meanwhile have a new one
        # then, which this transaction may not see as registered yet.
        owners = (await c.execute(self._lost_owners, {"names": list(names)})).scalars().all()
        if not owners:
            return []
        parameters = {
            "names": list(names),
            "owners": [owner for owner in owners if owner is not None] or [None],
            "unowned": None in owners,
            "limit": limit,
        }
        found = await c.execute(self._lost, parameters)
        lost = [
            LostTask(
                attempt=Attempt(id=TaskId(row.id), number=row.attempts, node_id=node_id),
                name=row.name,
                interruptions=row.interruptions + 1,
                is_cancel_requested=row.cancel_requested_at is not None,
            )
            for row in found.all()
            if is_sound(row.id, row.attempts, row.interruptions)
        ]
        if lost:
            owner = self._key(node_id)
            keys = [{"id": self._key(task.attempt.id), "node": owner} for task in lost]
            await c.execute(self._lease_statements["adopt"], keys)
        return lost


def _statements(dialect: Dialect) -> dict[str, TextClause]:
    now = dialect.now
    statements = {
        "register_node": f"""
            INSERT INTO lilota_node (id, machine, host, pid, pid_started, started_at,
                last_seen_at, lease_seconds, slots, version, names)
            VALUES (:id, :machine, :host, :pid, :pid_started, {now},
                {now}, :lease_seconds, :slots, :version, :names)
            {dialect.upsert_node}""",
        "heartbeat": f"UPDATE lilota_node SET last_seen_at = {now} WHERE id = :id",
        "remove_node": "DELETE FROM lilota_node WHERE id = :id",
        "remove_silent_node": f"""
            DELETE FROM lilota_node
            WHERE id = :id AND {dialect.seconds_since_seen} >= :silent_for""",
        "nodes": f"""
            SELECT id, machine, pid, pid_started, lease_seconds,
                {dialect.seconds_since_seen} AS silent_seconds
            FROM lilota_node ORDER BY id""",
        "adopt": """
            UPDATE lilota_task SET locked_by = :node, interruptions = interruptions + 1
            WHERE id = :id AND status = 'running'""",
    }
    return {name: text(statement) for name, statement in statements.items()}


def live_nodes(rows: Iterable[Any]) -> list[LiveNode]:
    """The nodes of rows that nobody has spoilt."""
    return [
        LiveNode(
            id=as_uuid(row.id),
            machine=row.machine,
            pid=row.pid,
            pid_started=row.pid_started,
            silent_seconds=float(row.silent_seconds or 0.0),
            lease_seconds=limit_seconds(row.lease_seconds) or 0.0,
        )
        for row in rows
        if is_key(row.id) and isinstance(row.pid, int)
    ]


def as_uuid(value: str | UUID) -> UUID:
    """An id as a driver gives it."""
    return UUID(value) if isinstance(value, str) else UUID(int=value.int)
