"""A module that sets up logging when it is imported, as applications do."""

from __future__ import annotations

import logging

own = logging.getLogger("tests.set_up")
own.addHandler(logging.StreamHandler())
own.propagate = False


def speak_here() -> None:
    own.error("through the application's handler")
