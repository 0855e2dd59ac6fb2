"""A task whose module takes its time to import, in task processes only."""

from __future__ import annotations

import os
import time
from pathlib import Path

from lilota_async.execution.context import in_task_process

if in_task_process():
    Path(os.environ["SLOW_IMPORT"], "importing").write_text(str(os.getpid()))
    while not Path(os.environ["SLOW_IMPORT"], "go").exists():
        time.sleep(0.005)


def ready() -> str:
    Path(os.environ["SLOW_IMPORT"], "ran").touch()
    return "ready"
