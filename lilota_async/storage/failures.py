"""What a database error means: gone for now, in conflict with somebody, or no table yet."""

from __future__ import annotations

import re

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from lilota_async.errors import StoreUnavailable

# Shutting down, starting up, out of connections, memory or disk, or a standby for the moment.
_POSTGRESQL_AWAY = ("08", "53", "57P", "25006")
# The same for MariaDB, with the errors of its client (2xxx).
_MARIADB_AWAY = {1021, 1040, 1053, 1290, 1927, 2002, 2003, 2006, 2013, 2014, 2045, 2055, 4031}
# SQLITE_BUSY, _LOCKED, _IOERR, _FULL and _CANTOPEN.
_SQLITE_AWAY = {5, 6, 10, 13, 14}
_CLOSED = (
    "connection is closed",
    "connection was closed",
    "no active connection",
    "server closed the connection",  # libpq, without an SQLSTATE
)

# Serialisation, deadlock, a lock, a statement that an administrator has cancelled; and a unique
# key that somebody else was quicker to take.
_POSTGRESQL_CONFLICTS = {"40001", "40P01", "55P03", "57014", "23505"}
_MARIADB_CONFLICTS = {1020, 1205, 1213, 1062}
_SQLITE_CONSTRAINT_UNIQUE = 2067

_POSTGRESQL_NO_TABLE = "42P01"
_MARIADB_NO_TABLE = 1146
# PostgreSQL's details tell the row, and asyncpg the value that it could not send.
_QUOTED_VALUES = re.compile(r"\nDETAIL:.*|(invalid input for query argument \$\d+): .*", re.DOTALL)
_MARIADB_TOO_LARGE = 1153  # its SQLSTATE is that of a lost connection, which it is as well


def is_disconnect(error: BaseException) -> bool:
    """Whether the database is out of reach for now, so that the same call may work later."""
    if isinstance(error, (OSError, PoolTimeout, StoreUnavailable)):
        return True
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    state, number, text = _details(error)
    if number == _MARIADB_TOO_LARGE:
        return False
    return (
        state.startswith(_POSTGRESQL_AWAY)
        or number in _MARIADB_AWAY
        or (_sqlite_code(error) & 0xFF) in _SQLITE_AWAY
        or any(closed in text for closed in _CLOSED)
    )


def is_too_large(error: BaseException) -> bool:
    """Whether the statement has more bytes than the server accepts."""
    return _details(error)[1] == _MARIADB_TOO_LARGE


def is_conflict(error: BaseException) -> bool:
    """Whether another transaction was in the way, so that the same one may work at once."""
    state, number, _ = _details(error)
    return (
        state in _POSTGRESQL_CONFLICTS
        or number in _MARIADB_CONFLICTS
        or _sqlite_code(error) == _SQLITE_CONSTRAINT_UNIQUE
    )


def is_missing_table(error: BaseException) -> bool:
    """Whether the statement named a table that does not exist."""
    state, number, text = _details(error)
    return state == _POSTGRESQL_NO_TABLE or number == _MARIADB_NO_TABLE or "no such table" in text


def _details(error: BaseException) -> tuple[str, int, str]:
    """The SQLSTATE of PostgreSQL, the number of MariaDB and the text of a driver's error."""
    original = _original(error)
    state = getattr(original, "sqlstate", None) or ""
    first = original.args[0] if original.args else None
    number = first if isinstance(first, int) else 0
    return state, number, str(original).lower()


def _sqlite_code(error: BaseException) -> int:
    return getattr(_original(error), "sqlite_errorcode", None) or 0


def _original(error: BaseException) -> BaseException:
    if isinstance(error, DBAPIError) and error.orig is not None:
        return error.orig
    return error


def describe(error: BaseException) -> str:
    """The driver's error in one line, without the statement and its parameters."""
    original = _original(error)
    text = " ".join(_QUOTED_VALUES.sub(r"\1", str(original)).split())
    return f"{type(original).__name__}: {text}" if text else type(original).__name__
