"""The command line: looking at a database of tasks without an application.

argparse, since one command with four options needs no more, and nothing is to be installed for it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lilota_async.errors import LilotaError

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from lilota_async.core import Lilota

PORT = 8090
LAST_PORT = 65_535
OWN_HOSTS = ["127.0.0.1", "localhost"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code of the process."""
    given = _parser().parse_args(arguments)
    if not given.db_url:
        print("Give --db-url, or set LILOTA_DB_URL", file=sys.stderr)
        return 2
    try:
        return _serve(given)
    except ImportError as error:
        message = f"{error}; run: pip install 'lilota-async[cli]'"
    except LilotaError as error:
        message = str(error)
    print(message, file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lilota_async", description="Background tasks for asyncio applications"
    )
    commands = parser.add_subparsers(required=True)
    dashboard = commands.add_parser(
        "dashboard",
        help="show the tasks of a database in a browser",
        description="Serves the dashboard to this machine only, with everything allowed.",
    )
    dashboard.add_argument(
        "--db-url",
        default=os.environ.get("LILOTA_DB_URL"),
        help="any SQLAlchemy URL; by default LILOTA_DB_URL, which other users cannot see",
    )
    dashboard.add_argument("--port", type=_port, default=PORT, help=f"by default {PORT}")
    dashboard.add_argument(
        "--hide-payloads",
        action="store_true",
        help="show no inputs and outputs: what redact= names is not known here",
    )
    return parser


def _port(text: str) -> int:
    """The number of a port, as argparse asks for it."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= LAST_PORT):
        raise argparse.ArgumentTypeError(
            f"a port is a whole number from 0 to {LAST_PORT}, not {text!r:.50}"
        )
    return int(text)


def _serve(given: argparse.Namespace) -> int:
    import uvicorn

    from lilota_async.core import Lilota

    # It runs nothing, and leaves the tables as they are.
    lilota = Lilota(given.db_url, number_of_processes=0, migrate=False)
    asyncio.run(lilota.get_all_tasks(limit=1))  # what is wrong with the database is told now
    app = _dashboard_app(lilota, show_payloads=not given.hide_payloads)
    print(f"The dashboard is at http://127.0.0.1:{given.port}/", flush=True)
    uvicorn.run(app, host="127.0.0.1", port=given.port)
    return 0


def _dashboard_app(lilota: Lilota, *, show_payloads: bool) -> Starlette:
    """The dashboard as an application, for the same machine only."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.routing import Mount

    from lilota_async.integrations.authorization import allow_all
    from lilota_async.integrations.dashboard import dashboard

    pages = dashboard(lilota, authorize=allow_all, show_unregistered=show_payloads)
    return Starlette(
        routes=[Mount("/", pages)],
        lifespan=lilota.lifespan,
        # A foreign site whose name leads to this machine is not let in.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=OWN_HOSTS)],
    )
