"""A task whose module takes no time to import, for races against the start of its code."""

from __future__ import annotations

import time


def nap(seconds: float) -> None:
    time.sleep(seconds)
