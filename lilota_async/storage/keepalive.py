"""Noticing that the other end of a connection is gone, though nobody has said so.

As after a machine has lost its power, or a firewall has forgotten the connection: without this,
the kernel would wait for a quarter of an hour, or for ever. Statements that wait for a lock are
not disturbed, since the server's kernel answers meanwhile.
"""

from __future__ import annotations

import socket
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine

# An idle connection is asked for a sign of life, and given up when it does not answer to that.
IDLE_SECONDS = 10
BETWEEN_SECONDS = 5
PROBES = 3
UNANSWERED_SECONDS = IDLE_SECONDS + PROBES * BETWEEN_SECONDS

LIBPQ = {
    "keepalives_idle": IDLE_SECONDS,
    "keepalives_interval": BETWEEN_SECONDS,
    "keepalives_count": PROBES,
    "tcp_user_timeout": 1000 * UNANSWERED_SECONDS,
}
"""The same, as psycopg is told."""
# Each system knows some of them.
_OPTIONS = {
    "TCP_KEEPIDLE": IDLE_SECONDS,
    "TCP_KEEPALIVE": IDLE_SECONDS,  # of macOS
    "TCP_KEEPINTVL": BETWEEN_SECONDS,
    "TCP_KEEPCNT": PROBES,
    "TCP_USER_TIMEOUT": 1000 * UNANSWERED_SECONDS,
}


def keep_alive(engine: Engine) -> None:
    """Watch over the connections that the engine will make through asyncpg."""

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        # Private, and without another way to its socket.
        transport = getattr(connection.driver_connection, "_transport", None)
        found = None if transport is None else transport.get_extra_info("socket")
        if found is not None and found.family in (socket.AF_INET, socket.AF_INET6):
            _watch(found)


def _watch(connected: Any) -> None:
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _OPTIONS.items():
        option = getattr(socket, name, None)
        if option is not None:
            connected.setsockopt(socket.IPPROTO_TCP, option, value)
