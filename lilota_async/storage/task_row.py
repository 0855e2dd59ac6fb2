"""Tasks made of their rows where the ORM would take longer than the statement."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy.orm import make_transient_to_detached
from sqlalchemy.types import TypeDecorator

from lilota_async.models.tables import Task

if TYPE_CHECKING:
    from sqlalchemy import Dialect
    from sqlalchemy.types import TypeEngine

_COLUMNS = tuple(Task.__table__.columns)
_KEYS = tuple(column.key for column in _COLUMNS)
COLUMNS = tuple(column.name for column in _COLUMNS)
_ID = COLUMNS.index("id")
Copies = Mapping[UUID | None, Callable[[], Task]]
"""What makes tasks of rows, anew for each who asks, by their ids."""


def copies_of(rows: Iterable[Any], dialect: Dialect) -> Copies:
    """Of rows that begin with all COLUMNS, as the driver of PostgreSQL gives them."""
    return {row[_ID]: partial(_task_of, row[: len(COLUMNS)], dialect) for row in rows}


def _task_of(row: Any, dialect: Dialect) -> Task:
    return task_with(
        decode(value, dialect) if decode else value
        for decode, value in zip(_DECODERS, row, strict=True)
    )


def task_with(values: Iterable[Any]) -> Task:
    """The task with these values of all COLUMNS, detached, as the ORM would give it."""
    task = Task()
    # Where attributes are kept; set one by one, thirty of them take as long as the statement.
    vars(task).update(zip(_KEYS, values, strict=True))
    make_transient_to_detached(task)
    return task


def _decoder(kind: TypeEngine[Any]) -> Callable[[Any, Dialect], Any] | None:
    """What a type of ours makes of the driver's value, which is that of PostgreSQL's own type."""
    if type(kind).__dict__.get("process_result_value") is None:
        return None
    assert isinstance(kind, TypeDecorator)
    return kind.process_result_value


_DECODERS = [_decoder(column.type) for column in _COLUMNS]
