"""The Alembic environment and the revisions of lilota's tables."""
