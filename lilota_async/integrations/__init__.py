"""What ties lilota to other libraries: one module each, imported by who uses it.

`starlette.router`, `fastapi.router` and `dashboard.dashboard` come with the extra `web`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lilota_async.integrations.authorization import Action, Authorize, allow_all

__all__ = ["Action", "Authorize", "allow_all"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("lilota_async.integrations.authorization"), name)
