"""What the tables say, and what they have said: read by plain SQL, recorded by triggers."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from sqlalchemy import make_url

_COLUMNS = ("status", "attempts", "max_attempts", "interruptions", "locked_by")
_HISTORY = """
CREATE TABLE faults_history (seq {serial} PRIMARY KEY, wall {real}, kind TEXT, id TEXT, name TEXT,
    old_status TEXT, old_attempts INTEGER, old_max_attempts INTEGER, old_interruptions INTEGER,
    old_locked_by TEXT, new_status TEXT, new_attempts INTEGER, new_max_attempts INTEGER,
    new_interruptions INTEGER, new_locked_by TEXT)"""
_NODES = """
CREATE TABLE faults_nodes (seq {serial} PRIMARY KEY, wall {real}, kind TEXT, id TEXT, pid BIGINT)"""
_SQLITE_WALL = "(julianday('now') - 2440587.5) * 86400.0"
_POSTGRESQL_TRIGGERS = """
CREATE FUNCTION faults_note_task() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO faults_history (wall, kind, id, name,
        old_status, old_attempts, old_max_attempts, old_interruptions, old_locked_by,
        new_status, new_attempts, new_max_attempts, new_interruptions, new_locked_by)
    SELECT EXTRACT(EPOCH FROM clock_timestamp()), lower(TG_OP),
        replace(COALESCE(NEW.id, OLD.id)::text, '-', ''), COALESCE(NEW.name, OLD.name),
        OLD.status, OLD.attempts, OLD.max_attempts, OLD.interruptions,
        replace(OLD.locked_by::text, '-', ''),
        NEW.status, NEW.attempts, NEW.max_attempts, NEW.interruptions,
        replace(NEW.locked_by::text, '-', '');
    RETURN NULL;
END $$;
CREATE TRIGGER faults_note_task AFTER INSERT OR UPDATE OR DELETE ON lilota_task
    FOR EACH ROW EXECUTE FUNCTION faults_note_task();
CREATE FUNCTION faults_note_node() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO faults_nodes (wall, kind, id, pid)
    SELECT EXTRACT(EPOCH FROM clock_timestamp()), lower(TG_OP),
        replace(COALESCE(NEW.id, OLD.id)::text, '-', ''), COALESCE(NEW.pid, OLD.pid);
    RETURN NULL;
END $$;
CREATE TRIGGER faults_note_node AFTER INSERT OR UPDATE OR DELETE ON lilota_node
    FOR EACH ROW EXECUTE FUNCTION faults_note_node();
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The columns of a task's row that tell where it is."""

    status: str
    attempts: int
    max_attempts: int
    interruptions: int
    locked_by: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One insert (`old` is None), update or delete (`new` is None) of a task's row."""

    wall: float
    id: str
    name: str
    old: State | None
    new: State | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeChange:
    """A node that registered (`kind` is `insert`), renewed (`update`) or was removed (`delete`)."""

    wall: float
    kind: str
    id: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A task as it is in the end."""

    id: str
    name: str
    status: str
    attempts: int
    max_attempts: int
    interruptions: int
    token: str
    output: Any
    exception: Any


class Tables:
    """The tables of one database, without the help of the library."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        self.is_sqlite = self._url.get_backend_name() == "sqlite"

    def is_writable(self, *, within: float) -> bool:
        """Whether nobody holds the lock that SQLite has one of, for so many seconds."""
        if not self.is_sqlite:
            return True
        with closing(sqlite3.connect(str(self._url.database), timeout=within)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
        return True

    @contextmanager
    def connect(self) -> Iterator[Any]:
        """An autocommit connection of the plain driver."""
        if self.is_sqlite:
            connection: Any = sqlite3.connect(
                str(self._url.database), isolation_level=None, timeout=30
            )
        else:
            query = {key: str(value) for key, value in self._url.query.items()}
            connection = psycopg.connect(
                host=self._url.host or query.get("host", ""),
                port=self._url.port or 5432,
                user=self._url.username,
                password=self._url.password or None,
                dbname=self._url.database,
                autocommit=True,
            )
        try:
            yield connection
        finally:
            connection.close()

    def fetch(self, statement: str) -> list[Any]:
        """The rows of one statement."""
        with self.connect() as connection:
            cursor = connection.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []

    def install(self) -> None:
        """Record from now on what becomes of each row; the tables must be there."""
        if self.is_sqlite:
            types = {"serial": "INTEGER", "real": "REAL"}
            statements = [*_sqlite_task_triggers(), *_sqlite_node_triggers()]
        else:
            types = {"serial": "BIGSERIAL", "real": "DOUBLE PRECISION"}
            statements = [_POSTGRESQL_TRIGGERS]
        with self.connect() as connection:
            for statement in (_HISTORY.format(**types), _NODES.format(**types), *statements):
                connection.execute(statement)

    def history(self) -> list[Change]:
        """Every change of a task's row, in order."""
        found = self.fetch(
            "SELECT wall, id, name, old_status, old_attempts, old_max_attempts,"
            " old_interruptions, old_locked_by, new_status, new_attempts, new_max_attempts,"
            " new_interruptions, new_locked_by FROM faults_history ORDER BY seq"
        )
        return [
            Change(wall=row[0], id=row[1], name=row[2], old=_state(row[3:8]), new=_state(row[8:13]))
            for row in found
        ]

    def node_history(self) -> list[NodeChange]:
        """Every node that came, renewed its lease or went, in order."""
        found = self.fetch("SELECT wall, kind, id, pid FROM faults_nodes ORDER BY seq")
        return [NodeChange(wall=row[0], kind=row[1], id=row[2], pid=row[3]) for row in found]

    def rows(self) -> list[Row]:
        """Every task as it is now."""
        found = self.fetch(
            "SELECT id, name, status, attempts, max_attempts, interruptions, input, output,"
            " exception FROM lilota_task"
        )
        return [
            Row(
                id=str(row[0]).replace("-", ""),
                name=row[1],
                status=row[2],
                attempts=row[3],
                max_attempts=row[4],
                interruptions=row[5],
                token=json.loads(row[6])["token"],
                output=None if row[7] is None else json.loads(row[7]),
                exception=None if row[8] is None else json.loads(row[8]),
            )
            for row in found
        ]

    def unfinished(self) -> int:
        """How many tasks are not final."""
        found = self.fetch(
            "SELECT count(*) FROM lilota_task WHERE status NOT IN"
            " ('completed', 'failed', 'cancelled')"
        )
        return int(found[0][0])


def _state(values: Any) -> State | None:
    return None if values[0] is None else State(**dict(zip(_COLUMNS, values, strict=True)))


def _sqlite_task_triggers() -> Iterator[str]:
    for kind in ("INSERT", "UPDATE", "DELETE"):
        old = [f"OLD.{column}" if kind != "INSERT" else "NULL" for column in _COLUMNS]
        new = [f"NEW.{column}" if kind != "DELETE" else "NULL" for column in _COLUMNS]
        row = "OLD" if kind == "DELETE" else "NEW"
        yield (
            f"CREATE TRIGGER faults_task_{kind} AFTER {kind} ON lilota_task BEGIN"
            " INSERT INTO faults_history (wall, kind, id, name,"
            " old_status, old_attempts, old_max_attempts, old_interruptions, old_locked_by,"
            " new_status, new_attempts, new_max_attempts, new_interruptions, new_locked_by)"
            f" VALUES ({_SQLITE_WALL}, '{kind.lower()}', {row}.id, {row}.name,"
            f" {', '.join([*old, *new])}); END"
        )


def _sqlite_node_triggers() -> Iterator[str]:
    for kind, row in (("INSERT", "NEW"), ("UPDATE", "NEW"), ("DELETE", "OLD")):
        yield (
            f"CREATE TRIGGER faults_node_{kind} AFTER {kind} ON lilota_node BEGIN"
            " INSERT INTO faults_nodes (wall, kind, id, pid)"
            f" VALUES ({_SQLITE_WALL}, '{kind.lower()}', {row}.id, {row}.pid); END"
        )
