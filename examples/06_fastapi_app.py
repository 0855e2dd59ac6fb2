"""A FastAPI application that makes reports in the background.

Run it with `python examples/06_fastapi_app.py` (PORT is 8000 unless the environment says
otherwise), or with `uvicorn --app-dir examples 06_fastapi_app:app`. It needs fastapi and
uvicorn besides lilota-async. Then:

    curl -X POST -H 'content-type: application/json' \\
        -d '{"title": "Sales", "pages": 20}' http://127.0.0.1:8000/reports
    curl http://127.0.0.1:8000/reports/<the id>
"""

from __future__ import annotations

import os
import time
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

from lilota_async import Lilota, TaskId, TaskProgress, TaskStatus

lilota = Lilota(db_url=os.environ.get("LILOTA_DB_URL"))

# Starts lilota with the application, and stops it: what runs may go on for `stop_timeout`
# seconds, and what is not finished then is run again at the next start.
app = FastAPI(lifespan=lilota.lifespan)


class ReportInput(BaseModel):
    title: str
    pages: int = Field(default=10, ge=1, le=10_000)


class ReportOutput(BaseModel):
    text: str


class Scheduled(BaseModel):
    id: TaskId[ReportOutput]


class ReportStatus(BaseModel):
    status: TaskStatus
    progress: int
    output: ReportOutput | None
    error: str | None


# An application of some size keeps its tasks in a module that does not import the web
# framework: task processes import the module of the task, with all that it imports.
@lilota.register("report")
def make_report(data: ReportInput, progress: TaskProgress) -> ReportOutput:
    for page in range(data.pages):
        time.sleep(0.05)  # stands for work; it keeps a process busy and not the event loop
        progress.set(100 * (page + 1) / data.pages)
    return ReportOutput(text=f"{data.title}, {data.pages} pages")


@app.post("/reports", status_code=202)
async def create_report(data: ReportInput) -> Scheduled:
    return Scheduled(id=await lilota.schedule(make_report, data))


@app.get("/reports/{task_id}")
async def read_report(task_id: TaskId) -> ReportStatus:
    task = await lilota.get_task_by_id(task_id)
    if task is None:
        raise HTTPException(404, "There is no such report")
    # The message of an exception may tell more than a client should know; its kind does not.
    failure: dict[str, Any] = task.exception or {}
    return ReportStatus(
        status=task.status,
        progress=task.progress_percentage,
        output=task.output,
        error=failure.get("kind"),
    )


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
