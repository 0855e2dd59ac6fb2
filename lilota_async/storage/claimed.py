"""What a claim reads of a row."""

from __future__ import annotations

from typing import Any

from lilota_async.models.values import TaskId
from lilota_async.storage.edited import limit_seconds, utc
from lilota_async.storage.transitions import Attempt, Claim, ClaimedTask

CLAIMED_COLUMNS = (
    "id, name, attempts, input, max_attempts, timeout_seconds, tags, checkpoint, failures, "
    "nominal_time"
)


def claimed(row: Any, claim: Claim, attempts: int) -> ClaimedTask:
    """The task of a claimed row, which begins with CLAIMED_COLUMNS."""
    # By position: ten columns of each task are not looked up by name.
    task_id, name, _, data, most, timeout, tags, checkpoint, failures, nominal_time = row[:10]
    return ClaimedTask(
        attempt=Attempt(id=TaskId(task_id), number=attempts, node_id=claim.node_id),
        name=name,
        input=data,
        max_attempts=most,
        timeout_seconds=limit_seconds(timeout),
        tags=tags,
        checkpoint=checkpoint,
        failures=failures,
        nominal_time=utc(nominal_time),
    )
