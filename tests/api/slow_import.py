"""A task whose module takes its time to import, in task processes only."""

from __future__ import annotations

import os
import time
from pathlib import Path

from lilota_async.execution.context import in_task_process

if in_task_process():
    beside = Path(os.environ["SLOW_IMPORT"], "importing.new")
    beside.write_text(str(os.getpid()))
    beside.rename(beside.with_suffix(""))  # nobody reads it half written
    while not Path(os.environ["SLOW_IMPORT"], "go").exists():
        time.sleep(0.005)


def ready() -> str:
    Path(os.environ["SLOW_IMPORT"], "ran").touch()
    return "ready"
