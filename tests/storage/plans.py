"""The statements that some work sends, and how the database would run them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection

from lilota_async.storage.database import Database
from lilota_async.storage.direct import Direct


class Recorded:
    """Statements as they went to the driver, with their parameters."""

    def __init__(self) -> None:
        self.statements: list[tuple[str, Any]] = []

    async def plans(self, c: AsyncConnection) -> list[str]:
        """The plan of each recorded statement that reads or writes rows, on this connection."""
        explain = "EXPLAIN QUERY PLAN" if c.dialect.name == "sqlite" else "EXPLAIN"
        plans = []
        for statement, parameters in list(self.statements):
            if statement.lstrip().upper().startswith(("SELECT", "WITH", "DELETE", "UPDATE")):
                rows = (await c.exec_driver_sql(f"{explain} {statement}", parameters)).all()
                plans.append("\n".join(str(tuple(row)) for row in rows))
        return plans


@contextmanager
def recording(database: Database) -> Iterator[Recorded]:
    """Record what goes to the open database within the block."""
    assert database._pooled is not None
    engines = [database._pooled.sync_engine]
    if database._blocking is not None:
        engines.append(database._blocking)
    recorded = Recorded()

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        recorded.statements.append((statement, parameters or ()))

    in_its_form = Direct._in_its_form

    def noted(direct: Direct, c: AsyncConnection, *asked: Any) -> tuple[str, list[Any]]:
        sql, arguments = in_its_form(direct, c, *asked)
        if c.engine.sync_engine.pool in [engine.pool for engine in engines]:
            recorded.statements.append((sql, tuple(arguments)))
        return sql, arguments

    for engine in engines:
        event.listen(engine, "before_cursor_execute", note)
    Direct._in_its_form = noted  # type: ignore[method-assign, assignment]
    try:
        yield recorded
    finally:
        Direct._in_its_form = in_its_form  # type: ignore[method-assign]
        for engine in engines:
            event.remove(engine, "before_cursor_execute", note)


def reads_whole_table(plan: str) -> bool:
    """Whether the plan goes through all tasks, on PostgreSQL or SQLite."""
    return "Seq Scan on lilota_task" in plan or any(
        "SCAN lilota_task" in line and "INDEX" not in line for line in plan.splitlines()
    )
