"""Where the SQL of the databases differs."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

# Of no row: the database looks once for each statement.
PAUSED = "(SELECT name FROM lilota_limit WHERE paused_at IS NOT NULL)"


class Dialect:
    """What SQL expressions and values look like on one database."""

    now: str
    has_arrays = False
    seconds_since_seen: str
    for_update: str = "FOR UPDATE"
    for_adoption: str = "FOR UPDATE SKIP LOCKED"
    keep_schedule: str = "ON CONFLICT (name, rhythm) DO NOTHING"
    upsert_node: str = """ON CONFLICT (id) DO UPDATE SET
        last_seen_at = excluded.last_seen_at, names = excluded.names"""
    lock_backlog: str | None = None
    """True for the one transaction that may count what waits and add to it, until its end."""
    # The table, with a hint where the database needs one to go by the index.
    pending_table: str = "lilota_task"
    pending_name_table: str = "lilota_task"
    running_table: str = "lilota_task"
    ended_table: str = "lilota_task"
    unique_table: str = "lilota_task"
    pending_key_table: str = "lilota_task"
    is_pending: str = "status = 'pending'"
    """Of a row that is found by its id, and not by an index of what is pending."""
    is_pending_keyed: str = "status = 'pending' AND concurrency_key IS NOT NULL"
    on_known_limit: str = "ON CONFLICT DO NOTHING"
    is_not_paused: str = f"name NOT IN {PAUSED} AND '' NOT IN {PAUSED}"
    holds_key: str = """unique_key = :key
        AND (status IN ('pending', 'running') OR unique_until IS NOT NULL)"""
    inserts_lock_gaps = False
    """Whether an insert that waits for a key keeps others from inserting beside it."""

    def seconds_between(self, earlier: str, later: str) -> str:
        """The expression for the seconds from one time to another."""
        raise NotImplementedError

    def later(self, seconds: str) -> str:
        """The expression for so many seconds from now."""
        raise NotImplementedError

    def key(self, value: UUID) -> Any:
        """An id as a bound value: 32 hexadecimal digits, where there is no uuid type."""
        return value.hex

    def moment(self, name: str) -> str:
        """The expression for a time that is bound under this name."""
        return f":{name}"

    def time(self, value: datetime | None) -> Any:
        """A time as a bound value."""
        return value
