"""The schema: brought up once, checked, and left alone when it is newer."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Float, inspect
from sqlalchemy.dialects.mysql import DOUBLE

import lilota_async.storage.migrate as module
from lilota_async.errors import SchemaMissing, SchemaTooNew, StoreUnavailable
from lilota_async.models import Base
from lilota_async.storage.database import Database
from lilota_async.storage.migrate import REVISIONS, VERSION_TABLE, check, migrate
from tests.databases import make_tables
from tests.storage.support import raw

pytestmark = pytest.mark.anyio


async def test_check_without_tables(empty_database_url: str) -> None:
    """It says that there are none, and makes none."""
    database = Database(empty_database_url)
    for _ in range(2):
        with pytest.raises(SchemaMissing, match="no tables"):
            await check(database)


async def test_migrate_twice(empty_database_url: str) -> None:
    """The second time nothing is left to do."""
    database = Database(empty_database_url)
    await make_tables(database)
    await check(database)
    await migrate(database)
    assert await raw(database, f"SELECT version_num FROM {VERSION_TABLE}") == [(REVISIONS[-1],)]


async def test_migrate_at_the_same_time(empty_database_url: str) -> None:
    """Applications that start together all come up."""
    databases = [Database(empty_database_url) for _ in range(4)]
    for database in databases:
        await database.open()
    await asyncio.gather(*(migrate(database) for database in databases))
    for database in databases:
        await check(database)
        await database.close()


async def test_the_tables_are_those_of_the_models(database: Database) -> None:
    """Migrations and mapped classes cannot drift apart."""

    def differences(connection: Connection) -> list[Any]:
        context = MigrationContext.configure(
            connection, opts={"compare_type": differs, "include_name": is_ours}
        )
        found = compare_metadata(context, Base.metadata)
        return [difference for difference in found if difference[0] != "remove_index"]

    def differs(
        _context: Any, _inspected: Any, _mapped: Any, inspected_type: Any, mapped_type: Any
    ) -> bool | None:
        # MariaDB calls it DOUBLE; None leaves all others to Alembic.
        both_floats = isinstance(inspected_type, DOUBLE) and isinstance(mapped_type, Float)
        return False if both_floats else None

    def is_ours(name: str | None, kind: str, _parents: Any) -> bool:
        if kind == "column":
            return name != "held_key"  # MariaDB's stand-in for a partial index
        return kind != "table" or name in Base.metadata.tables

    async with database.connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_the_indexes(database: Database) -> None:
    """Claiming, taking over, and listing failures and names have an index each."""

    def names(connection: Connection) -> set[str | None]:
        return {index["name"] for index in inspect(connection).get_indexes("lilota_task")}

    async with database.connect() as connection:
        found = await connection.run_sync(names)
    kinds = ["pending", "pending_name", "pending_key", "running", "name", "ended", "unique"]
    if database.dialect != "mariadb":
        kinds += ["running_key", "unsuccessful"]
    expected = {f"ix_lilota_task_{kind}" for kind in kinds}
    assert found == expected


async def test_a_newer_schema_is_refused(database: Database) -> None:
    """Neither check() nor migrate() touches what a newer version has made."""
    await raw(database, f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    for action in (check, migrate):
        with pytest.raises(SchemaTooNew, match="9999"):
            await action(database)
    assert await raw(database, f"SELECT version_num FROM {VERSION_TABLE}") == [("9999",)]


async def test_an_older_schema_is_missing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """check() names the revision that it found and the one that it needs."""
    monkeypatch.setattr(module, "REVISIONS", (*REVISIONS, "0002"))
    monkeypatch.setattr(module, "_HEAD", "0002")
    with pytest.raises(SchemaMissing, match=rf"'{REVISIONS[-1]}'.*'0002'"):
        await check(database)


async def test_an_interrupted_migration_is_finished(database: Database) -> None:
    """Where the server commits each table by itself, the next start goes on from there."""
    if database.dialect != "mariadb":
        pytest.skip("DDL is transactional")
    await raw(database, f"DELETE FROM {VERSION_TABLE}")
    await raw(database, "DROP INDEX ix_lilota_task_name ON lilota_task")
    await raw(database, "DROP TABLE lilota_node")
    await migrate(database)
    await check(database)
    await test_the_indexes(database)


async def test_an_unreachable_database() -> None:
    """The error is one of lilota, and has no password in it."""
    database = Database("postgresql://user:s3cret@127.0.0.1:1/none")
    for action in (check, migrate):
        with pytest.raises(StoreUnavailable) as caught:
            await action(database)
        assert "s3cret" not in str(caught.value)


def test_revisions_are_those_of_alembic() -> None:
    """The constant that spares the import of Alembic tells the truth."""
    config = Config()
    config.set_main_option("script_location", str(Path(module.__file__).with_name("migrations")))
    script = ScriptDirectory.from_config(config)
    found = [revision.revision for revision in script.walk_revisions()]
    assert tuple(reversed(found)) == REVISIONS
    assert script.get_current_head() == REVISIONS[-1]


async def test_logging_is_left_alone(empty_database_url: str) -> None:
    """Alembic configures nothing."""
    root = logging.getLogger()
    before = (root.level, list(root.handlers), logging.getLogger("alembic").level)
    await make_tables(Database(empty_database_url))
    assert (root.level, list(root.handlers), logging.getLogger("alembic").level) == before


async def test_a_current_schema_needs_little(tmp_path: Path) -> None:
    """Starting on tables that are there loads neither Alembic nor another database's dialect."""
    url = f"sqlite:///{tmp_path / 'lilota.db'}"
    await make_tables(Database(url))
    script = (
        "import asyncio, sys\n"
        "from lilota_async import Lilota\n"
        "async def main():\n"
        f"    async with Lilota({url!r}, number_of_processes=0) as lilota:\n"
        "        await lilota.get_all_tasks()\n"
        "asyncio.run(main())\n"
        "dialects = 'sqlalchemy.dialects.'\n"
        "names = ('alembic', 'mako', dialects + 'mysql', dialects + 'postgresql', 'asyncpg')\n"
        "print([name for name in names if name in sys.modules])\n"
    )
    result = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", script],
        cwd=Path(module.__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert (result.stdout.strip(), result.stderr) == ("[]", "")
