"""A Starlette application with a lifespan of its own, of which lilota is a part.

Run it with `python examples/07_starlette_app.py` (PORT is 8000 unless the environment says
otherwise), or with `uvicorn --app-dir examples 07_starlette_app:app`. It needs starlette and
uvicorn besides lilota-async. Then:

    curl -X POST 'http://127.0.0.1:8000/primes?below=1000000'
    curl http://127.0.0.1:8000/primes/<the id>
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lilota_async import InvalidInput, Lilota, TaskId

lilota = Lilota(db_url=os.environ.get("LILOTA_DB_URL"))
MOST = 200_000_000  # a byte of memory for each


@lilota.register("count_primes", timeout=60)
def count_primes(below: int) -> int:
    """Keeps one processor busy: in the event loop it would keep every request waiting."""
    sieve = bytearray([1]) * max(below, 2)
    sieve[:2] = b"\0\0"
    for number in range(2, int(below**0.5) + 1):
        if sieve[number]:
            sieve[number * number :: number] = bytes(len(sieve[number * number :: number]))
    return sum(sieve)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
    # What the tasks or handlers need besides is opened before and closed after.
    async with lilota.lifespan(app) as state:
        yield {**state, "started_at": datetime.now(UTC)}


async def schedule(request: Request) -> Response:
    lilota: Lilota = request.state.lilota
    try:
        below = min(int(request.query_params.get("below", "1000")), MOST)
        task_id = await lilota.schedule("count_primes", below)
    except (ValueError, InvalidInput) as error:
        return JSONResponse({"error": str(error)}, status_code=422)
    return JSONResponse({"id": str(task_id)}, status_code=202)


async def read(request: Request) -> Response:
    lilota: Lilota = request.state.lilota
    task = await lilota.get_task_by_id(TaskId(request.path_params["task_id"]))
    if task is None:
        return JSONResponse({"error": "There is no such task"}, status_code=404)
    return JSONResponse({"status": task.status, "primes": task.output})


async def cancel(request: Request) -> Response:
    """True: the task is cancelled, and its process gone."""
    lilota: Lilota = request.state.lilota
    task_id = TaskId[int](request.path_params["task_id"])
    return JSONResponse({"cancelled": await lilota.cancel(task_id)})


app = Starlette(
    lifespan=lifespan,
    routes=[
        Route("/primes", schedule, methods=["POST"]),
        Route("/primes/{task_id:uuid}", read),
        Route("/primes/{task_id:uuid}", cancel, methods=["DELETE"]),
    ],
)


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
