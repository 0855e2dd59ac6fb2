"""An application with the router and the dashboard, for browsers and fuzzers."""

from __future__ import annotations

import os

from fastapi import FastAPI

from lilota_async import Lilota
from lilota_async.integrations import allow_all
from lilota_async.integrations.dashboard import dashboard
from lilota_async.integrations.fastapi import router
from tests.web.tasks import add, bill, fail, wait_for_mark

lilota = Lilota(db_url=os.environ["LILOTA_DB_URL"], number_of_processes=1, grace=0.2)
for function in (add, fail, wait_for_mark):
    lilota.register(public=True)(function)
lilota.register(public=True, redact=["secret"])(bill)

app = FastAPI(lifespan=lilota.lifespan)
app.include_router(router(lilota, authorize=allow_all), prefix="/tasks")
app.mount("/lilota", dashboard(lilota, authorize=allow_all))
