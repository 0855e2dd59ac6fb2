"""Tasks made of their rows where the ORM would take longer than the statement."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import make_transient_to_detached
from sqlalchemy.types import TypeDecorator

from lilota_async.models.tables import Task

if TYPE_CHECKING:
    from sqlalchemy import Dialect
    from sqlalchemy.types import TypeEngine

_COLUMNS = tuple(Task.__table__.columns)
_KEYS = tuple(column.key for column in _COLUMNS)
COLUMNS = tuple(column.name for column in _COLUMNS)


def task_of(row: Any, dialect: Dialect) -> Task:
    """The task of a row with all COLUMNS as the driver of PostgreSQL gives it."""
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
