"""A service that makes reports: upload a table, watch the report being made, download its chart.

Run it with `python examples/10_report_service/app.py` and open http://127.0.0.1:8000 (PORT is 8000
unless the environment says otherwise). It needs what `pip install -e '.[example]'` installs. Its
tasks are in lilota.db, or in the database of LILOTA_DB_URL, such as postgresql://localhost/app.

With several processes, give them one SESSION_SECRET, by which they know each other's visitors:

    SESSION_SECRET=... uvicorn --app-dir examples/10_report_service --workers 2 app:app
"""

from __future__ import annotations

import os
import random
import secrets
from pathlib import Path
from typing import Annotated

import uvicorn
from fastapi import FastAPI, File, HTTPException, Request, UploadFile
from fastapi.responses import FileResponse, RedirectResponse
from report_tasks import Report, ReportInput, lilota, make_report
from starlette.middleware.sessions import SessionMiddleware
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from lilota_async import Task, TaskFailed, TaskId
from lilota_async.integrations.dashboard import dashboard
from lilota_async.integrations.fastapi import router

STATIC = Path(__file__).parent / "static"
LARGEST_UPLOAD = 2 * 1024 * 1024
REGIONS = ("North", "East", "South", "West")


def visitor(request: Request) -> str:
    """Who asks: here anybody, known again by a signed cookie; elsewhere who has signed in."""
    name: str = request.session.setdefault("visitor", secrets.token_hex(8))
    return name


def is_own(request: Request, _action: str, task: Task | None) -> bool:
    """Everybody sees and changes what is theirs, in the router and in the dashboard."""
    return task is None or f"visitor:{visitor(request)}" in (task.tags or ())


app = FastAPI(title="Reports", lifespan=lilota.lifespan)
app.add_middleware(
    SessionMiddleware,
    secret_key=os.environ.get("SESSION_SECRET") or secrets.token_hex(),
    same_site="strict",
)
# How reports are looked at, followed and cancelled is the router's; how they are made is ours.
app.include_router(router(lilota, authorize=is_own), prefix="/tasks")
app.mount("/lilota", dashboard(lilota, authorize=is_own))
app.mount("/static", StaticFiles(directory=STATIC))


@app.get("/", include_in_schema=False)
async def page(request: Request) -> FileResponse:
    visitor(request)
    return FileResponse(STATIC / "page.html")


@app.post("/reports", status_code=202)
async def create(
    request: Request, file: Annotated[UploadFile | None, File()] = None
) -> dict[str, TaskId]:
    """Make a report of the file, or of a sample when there is none."""
    if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        raise HTTPException(403, "Another site has made this request")
    if file is None or not file.filename:
        data = ReportInput(title="Sample sales", table=sample())
    else:
        content = await file.read(LARGEST_UPLOAD + 1)
        if len(content) > LARGEST_UPLOAD:
            raise HTTPException(413, "A table may have 2 MiB")
        text = content.decode("utf-8-sig", errors="replace").replace("\0", "")
        data = ReportInput(title=file.filename[:80], table=text)
    task_id = await lilota.schedule(make_report, data, tags=[f"visitor:{visitor(request)}"])
    return {"id": task_id}


@app.get("/reports/{task_id}.png")
async def download(request: Request, task_id: TaskId) -> Response:
    """The chart of a report that is completed."""
    task = await lilota.get_task_by_id(task_id)
    if task is None or not is_own(request, "result", task):
        raise HTTPException(404, "There is no such report")
    if not task.status.is_final:
        return RedirectResponse(f"/tasks/{task_id}", 303)
    try:
        report: Report = await lilota.result(task_id)
    except TaskFailed:
        raise HTTPException(409, "The report was not made") from None
    name = f'attachment; filename="report-{task_id}.png"'
    return Response(report.png, media_type="image/png", headers={"content-disposition": name})


def sample() -> str:
    """A year of sales that nobody made."""
    rows = [
        f"2025-{month:02},{random.choice(REGIONS)},{random.gammavariate(3, 120):.2f}"
        for month in range(1, 13)
        for _ in range(200)
    ]
    return "\n".join(["month,region,amount", *rows])


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
