"""One peer, in its own environment, where besides the peer only psycopg is there for sure.

`python -m benchmarks.peers.run NAME measure URL SCALE` prints JSON; `... NAME work URL` is a
worker, which is ended by whoever started it.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from importlib import metadata
from typing import Any

from benchmarks.peers.common import Measurement, Peer

LIMIT_SECONDS = 240.0


async def measure(peer: Peer, scale: float) -> dict[str, Any]:
    """All figures of the peer, which must come within four minutes."""
    psycopg: Any = importlib.import_module("psycopg")
    async with (
        asyncio.timeout(LIMIT_SECONDS),
        await psycopg.AsyncConnection.connect(peer.url, autocommit=True) as connection,
    ):
        found = await Measurement(peer, connection, scale).run()
    return {"name": peer.package, "version": metadata.version(peer.package), **found}


def main() -> None:
    name, role, url, *rest = sys.argv[1:]
    peer: Peer = importlib.import_module(f"benchmarks.peers.{name}").PEER(url)
    if role == "work":
        asyncio.run(peer.work())
    else:
        print(json.dumps(asyncio.run(measure(peer, float(rest[0])))), flush=True)


if __name__ == "__main__":
    main()
