"""Column types that store and return the same values on every database."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import DateTime, Dialect, String, Text, Uuid
from sqlalchemy.types import TypeDecorator, TypeEngine

from lilota_async.models.values import TaskId, TaskStatus


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC datetime with microseconds; naive values are refused."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name in ("mysql", "mariadb"):
            from sqlalchemy.dialects import mysql  # a mebibyte that only its users pay for

            return dialect.type_descriptor(mysql.DATETIME(fsp=6))
        return dialect.type_descriptor(DateTime(timezone=dialect.name == "postgresql"))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("naive datetime: give it a timezone, such as datetime.UTC")
        utc = value.astimezone(UTC)
        return utc if dialect.name == "postgresql" else utc.replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class LongText(TypeDecorator[str]):
    """Text with no limit that a payload would reach."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name in ("mysql", "mariadb"):
            from sqlalchemy.dialects import mysql

            return dialect.type_descriptor(mysql.LONGTEXT())
        return dialect.type_descriptor(Text())


class Json(TypeDecorator[Any]):
    """Any JSON value, kept as the text it was encoded to.

    Not the databases' own JSON types: SQLite's alters numbers and PostgreSQL's jsonb the
    order of keys. Text that is not JSON, as after an edit by hand, comes back as it is.
    """

    impl = LongText
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else msgspec.json.encode(value).decode()

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        try:
            return msgspec.json.decode(value)
        except (msgspec.DecodeError, RecursionError):
            return value


class Status(TypeDecorator[TaskStatus]):
    """A TaskStatus; a status that this version does not know comes back as its text."""

    impl = String(16)
    cache_ok = True

    def process_bind_param(self, value: TaskStatus | str | None, dialect: Dialect) -> str | None:
        return None if value is None else str(TaskStatus(value))

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        try:
            return None if value is None else TaskStatus(value)
        except ValueError:
            return value


class TaskIdType(TypeDecorator[TaskId[Any]]):
    """A TaskId: `uuid` on PostgreSQL, 32 hexadecimal digits elsewhere."""

    impl = Uuid
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(Uuid(native_uuid=dialect.name == "postgresql"))

    def process_result_value(self, value: Any, dialect: Dialect) -> TaskId[Any] | None:
        return None if value is None else TaskId(value)
