"""The mapped classes: applications may select them in sessions of their own."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, Boolean, Computed, Float, Integer, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from lilota_async.models.types import Json, LongText, Status, TaskIdType, UtcDateTime
from lilota_async.models.values import NAME_LENGTH, TaskId, TaskStatus


def _now() -> datetime:
    return datetime.now(UTC)


class Base(DeclarativeBase):
    """The registry of lilota's own tables."""


class Task(Base):
    """One task: what was asked for, where it is, and what came of it.

    The indexes are in the migrations, since each database has its own kind of them.

    Example:
        >>> async with AsyncSession(engine) as session:
        ...     failed = await session.scalars(select(Task).where(Task.status == "failed"))
    """

    __tablename__ = "lilota_task"

    id: Mapped[TaskId[Any]] = mapped_column(TaskIdType, primary_key=True, default=TaskId)
    name: Mapped[str] = mapped_column(String(NAME_LENGTH))
    status: Mapped[TaskStatus] = mapped_column(Status, default=TaskStatus.PENDING)
    priority: Mapped[int] = mapped_column(Integer, default=0)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=_now)
    run_at: Mapped[datetime] = mapped_column(UtcDateTime, default=_now)
    nominal_time: Mapped[datetime | None] = mapped_column(UtcDateTime)
    start_date_time: Mapped[datetime | None] = mapped_column(UtcDateTime)
    end_date_time: Mapped[datetime | None] = mapped_column(UtcDateTime)
    pid: Mapped[int | None] = mapped_column(BigInteger)
    progress_percentage: Mapped[int] = mapped_column(Integer, default=0)
    input: Mapped[Any] = mapped_column(Json, nullable=True)
    output: Mapped[Any] = mapped_column(Json, nullable=True)
    exception: Mapped[Any | None] = mapped_column(Json)
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    max_attempts: Mapped[int] = mapped_column(Integer, default=1)
    interruptions: Mapped[int] = mapped_column(Integer, default=0)
    timeout_seconds: Mapped[float | None] = mapped_column(Float(53))
    locked_by: Mapped[UUID | None] = mapped_column(TaskIdType)
    cancel_requested_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    tags: Mapped[list[str] | None] = mapped_column(Json)
    unique_key: Mapped[str | None] = mapped_column(String(NAME_LENGTH))
    unique_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    concurrency_key: Mapped[str | None] = mapped_column(String(NAME_LENGTH))
    is_keyed: Mapped[bool] = mapped_column(
        Boolean, Computed("concurrency_key IS NOT NULL", persisted=True)
    )
    checkpoint: Mapped[Any | None] = mapped_column(Json)
    failures: Mapped[list[Any] | None] = mapped_column(Json)
    log: Mapped[str | None] = mapped_column(LongText)
    cpu_seconds: Mapped[float | None] = mapped_column(Float(53))
    peak_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)

    def __repr__(self) -> str:
        return (
            f"<Task {self.name!r} id={self.id} status={self.status} "
            f"progress={self.progress_percentage}%>"
        )


class Node(Base):
    """One started Lilota: it owns the running tasks whose `locked_by` is its id."""

    __tablename__ = "lilota_node"

    id: Mapped[UUID] = mapped_column(TaskIdType, primary_key=True)
    machine: Mapped[str] = mapped_column(String(100))
    host: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int] = mapped_column(BigInteger)
    pid_started: Mapped[int] = mapped_column(BigInteger)
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    last_seen_at: Mapped[datetime] = mapped_column(UtcDateTime)
    lease_seconds: Mapped[float] = mapped_column(Float(53))
    slots: Mapped[int] = mapped_column(Integer)
    version: Mapped[str] = mapped_column(String(50))
    names: Mapped[list[str] | None] = mapped_column(Json)


class Limit(Base):
    """What holds tasks back: those of the name, or all of them where the name is empty.

    `starts` has when tasks of a name with a rate were started. Whoever gives places out that
    are limited holds a lock on the row.
    """

    __tablename__ = "lilota_limit"

    name: Mapped[str] = mapped_column(String(NAME_LENGTH), primary_key=True)
    paused_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    starts: Mapped[Any | None] = mapped_column(Json)


class Schedule(Base):
    """Up to when the ticks of a periodic task have been taken care of, for each of its rhythms."""

    __tablename__ = "lilota_schedule"

    name: Mapped[str] = mapped_column(String(NAME_LENGTH), primary_key=True)
    rhythm: Mapped[str] = mapped_column(String(255), primary_key=True)
    handled_until: Mapped[datetime] = mapped_column(UtcDateTime)


class Dependency(Base):
    """`task_id` waits for the end of `on_id`; gone once that is taken note of."""

    __tablename__ = "lilota_dependency"
    __table_args__ = (UniqueConstraint("task_id", "on_id", name="ux_lilota_dependency_task"),)

    on_id: Mapped[UUID] = mapped_column(TaskIdType, primary_key=True)
    task_id: Mapped[UUID] = mapped_column(TaskIdType, primary_key=True)
    runs_if_failed: Mapped[bool] = mapped_column(Boolean)
    not_before: Mapped[datetime | None] = mapped_column(UtcDateTime)
