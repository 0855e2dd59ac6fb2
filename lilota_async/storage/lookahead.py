"""What waits: of which names, of which very much, and when the next of it becomes due."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import bindparam, text

from lilota_async.models.types import UtcDateTime

if TYPE_CHECKING:
    from sqlalchemy import TextClause, TextualSelect

    from lilota_async.storage.dialect import Dialect

LOOK_BACK_SECONDS = 1.0


def _pending(dialect: Dialect) -> str:
    return f"FROM {dialect.pending_name_table} WHERE status = 'pending'"


def known(dialect: Dialect) -> str:
    """The part of a recursive statement that has the names of what is pending."""
    pending = _pending(dialect)
    return f"""known (name) AS (
            SELECT (SELECT name {pending} ORDER BY name LIMIT 1)
            UNION ALL
            SELECT (SELECT name {pending} AND name > known.name ORDER BY name LIMIT 1)
            FROM known WHERE known.name IS NOT NULL
        )"""


def pending_names(dialect: Dialect) -> TextClause:
    """The names of what is pending, each found from the one before."""
    return text(f"WITH RECURSIVE {known(dialect)} SELECT name FROM known WHERE name IS NOT NULL")


def crowd(dialect: Dialect, most: int) -> str:
    """The condition that a claim passes over more than so many tasks of a `known` name.

    Not those with a key, and not those that are due later: of one priority they come last.
    """
    return f"""(SELECT run_at {_pending(dialect)} AND name = known.name AND is_keyed = false
        ORDER BY priority DESC, run_at, id LIMIT 1 OFFSET {most}) <= {dialect.now}"""


def next_due(dialect: Dialect) -> TextualSelect:
    """The next time at which a task of these names becomes due.

    The index has them by name, priority and time: of each name and priority that there is, each
    found from the one before, it reads one row.
    """
    pending = _pending(dialect)
    one_lane = "AND name = levels.name AND is_keyed = levels.is_keyed"
    return (
        text(f"""
        WITH RECURSIVE {known(dialect)}, levels (name, is_keyed, priority) AS (
            SELECT known.name, lanes.is_keyed, {2**31}
            FROM known CROSS JOIN (SELECT false AS is_keyed UNION ALL SELECT true) AS lanes
            WHERE known.name IN :names
            UNION ALL
            SELECT levels.name, levels.is_keyed, (
                SELECT priority {pending} {one_lane} AND priority < levels.priority
                ORDER BY priority DESC LIMIT 1)
            FROM levels WHERE levels.priority IS NOT NULL
        )
        SELECT {dialect.now} AS now, MIN((
            SELECT run_at {pending} {one_lane} AND priority = levels.priority
                AND run_at > {dialect.now}
            ORDER BY run_at LIMIT 1)) AS due, MAX((
            SELECT run_at {pending} {one_lane} AND priority = levels.priority
                AND run_at > {dialect.later(str(-LOOK_BACK_SECONDS))}
                AND run_at <= {dialect.now}
            ORDER BY run_at LIMIT 1)) AS just_due
        FROM levels WHERE levels.priority IS NOT NULL""")
        .bindparams(bindparam("names", expanding=True))
        .columns(due=UtcDateTime, just_due=UtcDateTime, now=UtcDateTime)
    )
