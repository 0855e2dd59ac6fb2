"""The tables of tasks and what belongs to them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from lilota_async.models.types import Json, LongText, Status, TaskIdType, UtcDateTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# A task's key is taken while the task is not final, and after that while it has an end.
_HOLDS_KEY = "status IN ('pending', 'running') OR unique_until IS NOT NULL"


def upgrade() -> None:
    """Create the tables; where DDL is not transactional, go on where an attempt broke off."""
    _create_task_table()
    _create_node_table()
    _create_limit_table()
    _create_schedule_table()
    _create_dependency_table()
    if op.get_bind().dialect.name in ("mysql", "mariadb"):
        _create_mariadb_indexes()
    else:
        _create_partial_indexes()


def downgrade() -> None:
    """Drop everything."""
    op.drop_table("lilota_dependency")
    op.drop_table("lilota_schedule")
    op.drop_table("lilota_limit")
    op.drop_table("lilota_node")
    op.drop_table("lilota_task")


def _table_options() -> dict[str, str]:
    """Text that compares byte by byte, trailing spaces included."""
    dialect = op.get_bind().dialect
    is_mariadb = getattr(dialect, "is_mariadb", False)
    collation = "utf8mb4_nopad_bin" if is_mariadb else "utf8mb4_0900_bin"
    return {"mysql_charset": "utf8mb4", "mysql_collate": collation}


def _create_task_table() -> None:
    op.create_table(
        "lilota_task",
        sa.Column("id", TaskIdType(), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("status", Status(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("run_at", UtcDateTime(), nullable=False),
        sa.Column("nominal_time", UtcDateTime(), nullable=True),
        sa.Column("start_date_time", UtcDateTime(), nullable=True),
        sa.Column("end_date_time", UtcDateTime(), nullable=True),
        sa.Column("pid", sa.BigInteger(), nullable=True),
        sa.Column("progress_percentage", sa.Integer(), nullable=False),
        sa.Column("input", Json(), nullable=True),
        sa.Column("output", Json(), nullable=True),
        sa.Column("exception", Json(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("interruptions", sa.Integer(), nullable=False),
        sa.Column("timeout_seconds", sa.Float(53), nullable=True),
        sa.Column("locked_by", TaskIdType(), nullable=True),
        sa.Column("cancel_requested_at", UtcDateTime(), nullable=True),
        sa.Column("tags", Json(), nullable=True),
        sa.Column("unique_key", sa.String(200), nullable=True),
        sa.Column("unique_until", UtcDateTime(), nullable=True),
        sa.Column("concurrency_key", sa.String(200), nullable=True),
        sa.Column(
            "is_keyed",
            sa.Boolean(),
            sa.Computed("concurrency_key IS NOT NULL", persisted=True),
        ),
        sa.Column("checkpoint", Json(), nullable=True),
        sa.Column("failures", Json(), nullable=True),
        sa.Column("log", LongText, nullable=True),
        sa.Column("cpu_seconds", sa.Float(53), nullable=True),
        sa.Column("peak_memory_bytes", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        if_not_exists=True,
        **_table_options(),
    )


def _create_node_table() -> None:
    op.create_table(
        "lilota_node",
        sa.Column("id", TaskIdType(), nullable=False),
        sa.Column("machine", sa.String(100), nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("pid", sa.BigInteger(), nullable=False),
        sa.Column("pid_started", sa.BigInteger(), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=False),
        sa.Column("last_seen_at", UtcDateTime(), nullable=False),
        sa.Column("lease_seconds", sa.Float(53), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("version", sa.String(50), nullable=False),
        sa.Column("names", Json(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        if_not_exists=True,
        **_table_options(),
    )


def _create_limit_table() -> None:
    op.create_table(
        "lilota_limit",
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("paused_at", UtcDateTime(), nullable=True),
        sa.Column("starts", Json(), nullable=True),
        sa.PrimaryKeyConstraint("name"),
        if_not_exists=True,
        **_table_options(),
    )


def _create_schedule_table() -> None:
    op.create_table(
        "lilota_schedule",
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("rhythm", sa.String(255), nullable=False),
        sa.Column("handled_until", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("name", "rhythm"),
        if_not_exists=True,
        **_table_options(),
    )


def _create_dependency_table() -> None:
    op.create_table(
        "lilota_dependency",
        sa.Column("on_id", TaskIdType(), nullable=False),
        sa.Column("task_id", TaskIdType(), nullable=False),
        sa.Column("runs_if_failed", sa.Boolean(), nullable=False),
        sa.Column("not_before", UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("on_id", "task_id"),
        sa.UniqueConstraint("task_id", "on_id", name="ux_lilota_dependency_task"),
        if_not_exists=True,
        **_table_options(),
    )


def _create_partial_indexes() -> None:
    """Partial, so that finished rows, most of a table, weigh on neither claim nor takeover."""
    due: list[str | sa.TextClause] = [sa.text("priority DESC"), "run_at", "id"]
    _create_index("ix_lilota_task_pending", ["is_keyed", *due], "status = 'pending'")
    _create_index("ix_lilota_task_pending_name", ["name", "is_keyed", *due], "status = 'pending'")
    _create_index(
        "ix_lilota_task_pending_key",
        ["name", "concurrency_key", *due],
        "status = 'pending' AND concurrency_key IS NOT NULL",
    )
    _create_index(
        "ix_lilota_task_running_key",
        ["concurrency_key"],
        "status = 'running' AND concurrency_key IS NOT NULL",
        unique=True,
    )
    _create_index(
        "ix_lilota_task_unique",
        ["name", "unique_key"],
        f"unique_key IS NOT NULL AND ({_HOLDS_KEY})",
        unique=True,
    )
    op.create_index(
        "ix_lilota_limit_paused",
        "lilota_limit",
        ["name"],
        postgresql_where=sa.text("paused_at IS NOT NULL"),
        sqlite_where=sa.text("paused_at IS NOT NULL"),
    )
    _create_index("ix_lilota_task_running", ["locked_by"], "status = 'running'")
    _create_index("ix_lilota_task_unsuccessful", ["id"], "status IN ('failed', 'cancelled')")
    _create_index("ix_lilota_task_name", ["name", "id"])
    # For stats() and retention: 1 us and 80 bytes of WAL, of the 22 us and 1,540 bytes that all
    # of a task's life takes PostgreSQL.
    _create_index(
        "ix_lilota_task_ended", ["name", "status", "end_date_time"], "end_date_time IS NOT NULL"
    )


def _create_index(
    name: str,
    columns: list[str | sa.TextClause],
    where: str | None = None,
    *,
    unique: bool = False,
) -> None:
    condition = None if where is None else sa.text(where)
    op.create_index(
        name,
        "lilota_task",
        columns,
        unique=unique,
        postgresql_where=condition,
        sqlite_where=condition,
    )


def _create_mariadb_indexes() -> None:
    # MySQL has no IF NOT EXISTS for an index or a column, so what is there is looked up.
    inspector = sa.inspect(op.get_bind())
    present = {index["name"] for index in inspector.get_indexes("lilota_task")}
    if "held_key" not in {column["name"] for column in inspector.get_columns("lilota_task")}:
        # Instead of a partial index: a key is unique where the column is not NULL.
        held = sa.Computed(f"CASE WHEN {_HOLDS_KEY} THEN unique_key END", persisted=False)
        op.add_column("lilota_task", sa.Column("held_key", sa.String(200), held))
    due: list[str | sa.TextClause] = [sa.text("priority DESC"), "run_at", "id"]
    indexes: dict[str, list[str | sa.TextClause]] = {
        "ix_lilota_task_pending": ["status", "is_keyed", *due],
        "ix_lilota_task_pending_name": ["status", "name", "is_keyed", *due],
        "ix_lilota_task_pending_key": ["status", "is_keyed", "name", "concurrency_key", *due],
        "ix_lilota_task_running": ["status", "locked_by"],
        "ix_lilota_task_name": ["name", "id"],
        "ix_lilota_task_ended": ["name", "status", "end_date_time"],
        "ix_lilota_task_unique": ["held_key", "name"],
    }
    for name, columns in indexes.items():
        if name not in present:
            op.create_index(name, "lilota_task", columns, unique=name == "ix_lilota_task_unique")
