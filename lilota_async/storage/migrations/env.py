"""Run by Alembic with the connection of `storage.migrate`, inside its transaction."""

from __future__ import annotations

from alembic import context

from lilota_async.models.tables import Base
from lilota_async.storage.migrate import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
)
with context.begin_transaction():
    context.run_migrations()
