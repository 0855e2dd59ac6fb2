"""A task's row as the driver of PostgreSQL gives it, where the ORM would take longer than that."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import make_transient_to_detached
from sqlalchemy.types import TypeDecorator

from lilota_async.models.tables import Task

if TYPE_CHECKING:
    from sqlalchemy import Dialect
    from sqlalchemy.types import TypeEngine

_COLUMNS = tuple(Task.__table__.columns)
COLUMNS = tuple(column.name for column in _COLUMNS)


def task_of(row: Any, dialect: Dialect) -> Task:
    """The task as the ORM would give it, detached; the row has all COLUMNS."""
    task = Task()
    # Where attributes are kept; set one by one, thirty of them take as long as the statement.
    vars(task).update(
        (name, decode(value, dialect) if decode else value)
        for (name, decode), value in zip(_DECODERS, row, strict=True)
    )
    make_transient_to_detached(task)
    return task


def _decoder(kind: TypeEngine[Any]) -> Callable[[Any, Dialect], Any] | None:
    """What a type of ours makes of the driver's value, which is that of PostgreSQL's own type."""
    if type(kind).__dict__.get("process_result_value") is None:
        return None
    assert isinstance(kind, TypeDecorator)
    return kind.process_result_value


_DECODERS = [(column.key, _decoder(column.type)) for column in _COLUMNS]
