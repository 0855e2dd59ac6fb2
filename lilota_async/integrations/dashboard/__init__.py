"""Pages to see how the tasks are: is it healthy, what fails, and why."""

from lilota_async.integrations.dashboard.app import dashboard

__all__ = ["dashboard"]
