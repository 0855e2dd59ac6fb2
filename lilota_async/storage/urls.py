"""From the URL that the application gives to one that an async driver understands."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from lilota_async.errors import ConfigurationError
from lilota_async.storage.keepalive import LIBPQ

DialectName = Literal["sqlite", "postgresql", "mariadb"]

_DIALECTS: dict[str, DialectName] = {
    "sqlite": "sqlite",
    "postgresql": "postgresql",
    "postgres": "postgresql",
    "mysql": "mariadb",
    "mariadb": "mariadb",
}
_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+asyncpg",
    "mariadb": "mysql+asyncmy",
}
_PSYCOPG = ("postgresql+psycopg", "postgresql+psycopg_async")
_SYNCHRONOUS = ("OFF", "NORMAL", "FULL", "EXTRA")
_CONNECT_SECONDS = 10
_CACHED_STATEMENTS = "statement_cache_size"
_OLDEST_SQLITE = (3, 33)  # UPDATE ... FROM
_UNREADABLE = (
    "The database URL cannot be read; give one such as 'sqlite:///lilota.db' or "
    "'postgresql://user:password@host/database' (special characters in the password "
    "must be percent-encoded)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where the database is and how to connect to it."""

    url: URL
    dialect: DialectName
    connect_args: dict[str, Any]
    synchronous: str = "FULL"

    @property
    def file(self) -> Path | None:
        """The file of an SQLite database."""
        if self.dialect != "sqlite":
            return None
        return Path((self.url.database or "").removeprefix("file:"))


def parse_target(url: str | URL) -> Target:
    """Map `url` to an async driver, or raise ConfigurationError."""
    try:
        parsed = make_url(url)
        parsed.render_as_string(hide_password=False).encode()  # has no lone surrogates
    except (ArgumentError, ValueError):
        # The original error is left out: it may quote the URL with its password.
        raise ConfigurationError(_UNREADABLE) from None
    if "@" in (parsed.host or ""):  # a part of the password
        raise ConfigurationError(_UNREADABLE)
    if "\0" in (parsed.database or ""):
        raise ConfigurationError(_UNREADABLE)
    dialect = dialect_of(parsed)
    if parsed.drivername not in _PSYCOPG:
        parsed = parsed.set(drivername=_DRIVERS[dialect])
    if dialect == "sqlite":
        return _sqlite_target(parsed)
    if dialect == "mariadb":
        return _mariadb_target(parsed)
    return _postgresql_target(parsed)


def passwords_of(url: URL) -> list[str]:
    """What must not be told: drivers take passwords from the query as well."""
    values = (url.query[name] for name in _secret_names(url))
    found = [each for value in values for each in ([value] if isinstance(value, str) else value)]
    return [each for each in (*found, str(url.password or "")) if each]


def without_passwords(url: URL) -> str:
    """The URL as it may be told."""
    told = url.update_query_dict(dict.fromkeys(_secret_names(url), "..."))
    return told.render_as_string(hide_password=True)


def _secret_names(url: URL) -> list[str]:
    return [name for name in url.query if "pass" in name.lower()]


def dialect_of(url: URL) -> DialectName:
    """The dialect of `url`; ConfigurationError for a database that is not supported."""
    dialect = _DIALECTS.get(url.get_backend_name())
    if dialect is None:
        raise ConfigurationError(
            f"The database {url.get_backend_name()!r} is not supported; "
            "use SQLite, PostgreSQL or MariaDB (MySQL)"
        )
    if dialect == "sqlite" and _is_in_memory(url):
        raise ConfigurationError(
            "An in-memory SQLite database belongs to one connection, and lilota needs several; "
            "use a file, such as 'sqlite:///lilota.db'"
        )
    if dialect == "sqlite" and sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        raise ConfigurationError(
            f"Python's SQLite is of version {sqlite3.sqlite_version}, and lilota needs 3.33 or "
            "later; use a newer Python, or another database"
        )
    return dialect


def _is_in_memory(url: URL) -> bool:
    name = url.database or ""
    return name in ("", ":memory:") or ":memory:" in name or url.query.get("mode") == "memory"


def _sqlite_target(url: URL) -> Target:
    """`?synchronous=NORMAL` trades the last commits before a power cut for speed."""
    value = url.query.get("synchronous", "FULL")
    synchronous = value.upper() if isinstance(value, str) else ""
    if synchronous not in _SYNCHRONOUS:
        raise ConfigurationError(
            f"synchronous={value!r} in the database URL is not one of {', '.join(_SYNCHRONOUS)}"
        )
    if "timeout" in url.query:
        _number("timeout", url.query["timeout"], float, "number of seconds")
    url = url.difference_update_query(["synchronous"])
    connect_args = {} if "timeout" in url.query else {"timeout": float(_CONNECT_SECONDS)}
    return Target(url=url, dialect="sqlite", connect_args=connect_args, synchronous=synchronous)


def _mariadb_target(url: URL) -> Target:
    if not url.database and "read_default_file" not in url.query:
        raise ConfigurationError(
            "The database URL names a server, and no database on it; add the name, as in "
            "'mysql://user:password@host/database'"
        )
    if "connect_timeout" in url.query:
        _number("connect_timeout", url.query["connect_timeout"], int, "whole number")
    if "charset" not in url.query:
        url = url.update_query_dict({"charset": "utf8mb4"})
    connect_args = {} if "connect_timeout" in url.query else {"connect_timeout": _CONNECT_SECONDS}
    return Target(url=url, dialect="mariadb", connect_args=connect_args)


def _postgresql_target(url: URL) -> Target:
    if url.drivername in _PSYCOPG:
        options = {"connect_timeout": _CONNECT_SECONDS, **LIBPQ}
        unsaid = {name: value for name, value in options.items() if name not in url.query}
        return Target(url=url, dialect="postgresql", connect_args=unsaid)
    # The names of libpq, in which a URL of psycopg2 is written.
    timeout = url.query.get("connect_timeout") or url.query.get("timeout") or _CONNECT_SECONDS
    ssl = url.query.get("ssl") or url.query.get("sslmode")
    cached = url.query.get(_CACHED_STATEMENTS)
    url = url.difference_update_query(["connect_timeout", "timeout", "sslmode", _CACHED_STATEMENTS])
    if ssl:
        url = url.update_query_dict({"ssl": ssl})
    seconds = _number("connect_timeout", timeout, float, "number of seconds")
    connect_args = {"timeout": seconds}
    if cached is not None:  # 0 behind a pooler; asyncpg takes no text
        connect_args[_CACHED_STATEMENTS] = _number(_CACHED_STATEMENTS, cached, int, "whole number")
    return Target(url=url, dialect="postgresql", connect_args=connect_args)


def _number(name: str, value: Any, kind: Callable[[str], float], what: str) -> float:
    try:
        number = kind(str(value))
    except ValueError:
        number = -1
    if not number >= 0:  # which NaN is not either
        raise ConfigurationError(f"{name}={value!r} in the database URL is not a {what} from 0 on")
    return number
