"""Lilotas for the web tests."""

from __future__ import annotations

from tests.api.conftest import directory, make_lilota, sqlite_url

__all__ = ["directory", "make_lilota", "sqlite_url"]
