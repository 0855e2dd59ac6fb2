"""TaskId and TaskProgress."""

from __future__ import annotations

import math
import pickle
import time
from datetime import timedelta
from typing import Any
from uuid import UUID

import msgspec
import pydantic
import pytest

from lilota_async.errors import ConfigurationError, RetryLater
from lilota_async.models import ModelProtocol, TaskId, TaskProgress, TaskStatus

TEXT = "01939e4a-7d1c-7000-8000-000000000000"


def test_task_id_is_a_uuid_of_version_7() -> None:
    """A new id is a UUID of version 7 whose first 48 bits are the milliseconds."""
    before = time.time_ns() // 1_000_000
    task_id: TaskId[Any] = TaskId()
    after = time.time_ns() // 1_000_000
    assert isinstance(task_id, UUID)
    assert (task_id.version, task_id.variant) == (7, "specified in RFC 4122")
    assert before <= task_id.int >> 80 <= after


def test_task_ids_are_unique_and_sort_by_time() -> None:
    """Ids made later sort later, within a millisecond too, and none is made twice."""
    ids: list[TaskId[Any]] = [TaskId() for _ in range(10_000)]
    assert len(set(ids)) == len(ids)
    parts = [i.int >> 64 for i in ids]
    assert parts == sorted(parts)
    assert len({i.int >> 80 for i in ids}) < len(set(parts))


@pytest.mark.parametrize("source", [TEXT, UUID(TEXT), TaskId(TEXT), TEXT.replace("-", "")])
def test_task_id_reads_text_and_uuids(source: Any) -> None:
    """Text, a UUID and a TaskId give the same id, equal to the UUID in all ways."""
    task_id: TaskId[int] = TaskId(source)
    assert type(task_id) is TaskId
    assert task_id == UUID(TEXT)
    assert hash(task_id) == hash(UUID(TEXT))
    assert str(task_id) == TEXT


def test_task_id_refuses_other_text() -> None:
    """Text that is no UUID is a ValueError."""
    with pytest.raises(ValueError, match="badly formed"):
        TaskId("7")


@pytest.mark.parametrize("value", [5, True, b"x", [TEXT], 1.5])
def test_task_id_refuses_what_is_no_text(value: Any) -> None:
    """The error says what it takes."""
    with pytest.raises(ConfigurationError, match="takes the text of a UUID"):
        TaskId(value)


@pytest.mark.parametrize("delay", ["soon", None, math.nan, -math.inf, 10**400, timedelta.max])
def test_delays_that_are_none(delay: Any) -> None:
    """RetryLater checks its delay, which the database could not add to a time."""
    with pytest.raises(ConfigurationError, match=r"RetryLater\(delay=...\) takes seconds"):
        RetryLater(delay)


def test_task_id_travels() -> None:
    """pickle, msgspec and pydantic keep the id, and pydantic its type."""
    task_id: TaskId[int] = TaskId(TEXT)
    assert pickle.loads(pickle.dumps(task_id)) == task_id
    assert msgspec.json.encode(task_id) == f'"{TEXT}"'.encode()

    class Answer(pydantic.BaseModel):
        task_id: TaskId[Any]

    answer = Answer.model_validate_json(Answer(task_id=task_id).model_dump_json())
    assert type(answer.task_id) is TaskId
    assert answer.task_id == task_id


@pytest.mark.parametrize(
    ("given", "expected"),
    [(0, 0), (50, 50), (99.9, 99), (-5, 0), (101, 100), (10**400, 100), (math.inf, 100)],
)
def test_progress_is_clamped(given: float, expected: int) -> None:
    """Progress is a whole number from 0 to 100, whatever is given."""
    published: list[int] = []
    progress = TaskProgress(published.append)
    assert progress.percentage is None
    progress.set(given)
    assert published == [expected]
    assert progress.percentage == expected


@pytest.mark.parametrize("given", ["x", None, object(), [1], 1j])
def test_progress_that_is_no_number_is_ignored(given: Any) -> None:
    """A mistake in reporting is not the task's failure, and keeps the last value."""
    published: list[int] = []
    progress = TaskProgress(published.append)
    progress.set(7)
    progress.set(given)
    assert published == [7]
    assert progress.percentage == 7


def test_progress_that_did_not_change_is_not_published_again() -> None:
    """Setting the same percentage many times is published once."""
    published: list[int] = []
    progress = TaskProgress(published.append)
    for number in range(1000):
        progress.set(number / 500)
    assert published == [0, 1]


def test_final_statuses() -> None:
    """Only pending and running are not final."""
    assert [status.value for status in TaskStatus if not status.is_final] == ["pending", "running"]


def test_model_protocol_is_known_by_as_dict() -> None:
    """A class with as_dict() is a model without deriving from anything."""

    class Model:
        def as_dict(self) -> dict[str, Any]:
            return {}

    assert isinstance(Model(), ModelProtocol)
    assert not isinstance(object(), ModelProtocol)
