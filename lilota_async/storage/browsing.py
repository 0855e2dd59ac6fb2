"""Lists of tasks for people: the newest first, by what they look for, page by page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import Select, Text, select, type_coerce
from sqlalchemy.orm import load_only

from lilota_async.models.tables import Task
from lilota_async.models.values import TaskId, TaskStatus
from lilota_async.storage.database import Database
from lilota_async.storage.queries import listing, read

SCANNED_ROWS = 5000
"""How many rows a page looks through for what no index knows; the next page goes on there."""

_LISTED = (
    Task.id,
    Task.name,
    Task.status,
    Task.priority,
    Task.created_at,
    Task.run_at,
    Task.start_date_time,
    Task.end_date_time,
    Task.progress_percentage,
    Task.exception,
    Task.attempts,
    Task.max_attempts,
    Task.cancel_requested_at,
    Task.tags,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What is looked for; `error` is a part of the text of a failure."""

    status: TaskStatus | None = None
    name: str | None = None
    tag: str | None = None
    error: str | None = None

    @property
    def needs_scan(self) -> bool:
        return self.tag is not None or self.error is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Tasks without their payloads; what follows is `before` the id `next`, None at the end."""

    tasks: list[Task]
    next: TaskId[Any] | None


async def browse(
    database: Database, filters: Filters, *, before: UUID | None = None, limit: int
) -> Page:
    """The newest tasks that fit."""
    rows = await read(database, _page(database.dialect, filters, before).limit(limit + 1))
    tasks = [row[0] for row in rows]
    if len(tasks) > limit:
        return Page(tasks=tasks[:limit], next=tasks[limit - 1].id)
    if not filters.needs_scan:
        return Page(tasks=tasks, next=None)
    last = _scanned(database.dialect, filters, before).limit(None)
    end = await read(database, last.limit(1).offset(SCANNED_ROWS - 1))
    return Page(tasks=tasks, next=end[0][0] if end else None)


def _page(dialect: str, filters: Filters, before: UUID | None) -> Select[Any]:
    columns = load_only(*_LISTED, raiseload=True)
    if not filters.needs_scan:
        return _indexed(dialect, filters, before).options(columns)
    scanned = _scanned(dialect, filters, before).subquery()
    statement = select(Task).join(scanned, scanned.c.id == Task.id).order_by(Task.id.desc())
    if filters.tag is not None:
        tag = msgspec.json.encode(filters.tag).decode()
        statement = statement.where(type_coerce(Task.tags, Text).contains(tag, autoescape=True))
    if filters.error is not None:
        said = msgspec.json.encode(filters.error).decode()[1:-1]
        text = type_coerce(Task.exception, Text)
        statement = statement.where(text.icontains(said, autoescape=True))
    return statement.options(columns)


def _scanned(dialect: str, filters: Filters, before: UUID | None) -> Select[Any]:
    statement = _indexed(dialect, filters, before).with_only_columns(Task.id)
    return statement.limit(SCANNED_ROWS)


def _indexed(dialect: str, filters: Filters, before: UUID | None) -> Select[Any]:
    status = filters.status
    if status is None and filters.error is not None:
        status = TaskStatus.FAILED
    statement = listing(dialect, status, before, newest_first=True)
    return statement if filters.name is None else statement.where(Task.name == filters.name)
