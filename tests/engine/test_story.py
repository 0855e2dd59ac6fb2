"""What a reader is still to be told, decided without a node."""

from __future__ import annotations

from msgspec.structs import replace

from lilota_async.engine.story import Story
from lilota_async.models.values import TaskEvent, TaskId, TaskStatus

RUNNING = TaskEvent(
    kind="status",
    task_id=TaskId(),
    status=TaskStatus.RUNNING,
    progress_percentage=0,
    attempt=1,
)
FULL_LOG = "abcdefgh"


def log(text: str, end: int, attempt: int = 1) -> TaskEvent:
    """An event of text that ends after `end` characters."""
    return replace(RUNNING, kind="log", log=text, log_end=end, attempt=attempt)


def test_log_that_was_read_with_the_beginning_is_not_told_twice() -> None:
    """Pieces that are queued while the log is read are left out, or cut where they overlap."""
    story = Story("")
    told = list(story.catch_up(replace(RUNNING, log_end=5), lambda start: FULL_LOG[start:5]))
    told += [e for piece in (log("bc", 3), log("def", 6), log("gh", 8)) for e in story.tell(piece)]
    assert "".join(event.log or "" for event in told) == FULL_LOG


def test_log_after_a_gap_is_left_to_the_row() -> None:
    """What went by before it is not left out, and of an attempt to come nothing is known yet."""
    done = replace(RUNNING, status=TaskStatus.COMPLETED, progress_percentage=100, attempt=0)
    story = Story("1-running-0-2")
    assert not story.misses(log("c", 3))
    told = [*story.tell(log("c", 3)), *story.tell(log("e", 5)), *story.tell(log("f", 6))]
    assert [event.log for event in told] == ["c"]
    assert story.misses(log("gh", 8))
    assert not story.knows_log
    assert [event.log for event in story.tell_row(done, FULL_LOG)] == ["defgh", None]
    assert not story.misses(log("ab", 2, attempt=2))
    assert [event.log for event in story.tell(log("ab", 2, attempt=2))] == ["ab"]
    assert story.knows_log


def test_a_gap_is_filled_while_the_attempt_runs() -> None:
    """By reading its log so far; what is queued of that is not told twice."""
    story = Story("1-running-0-2")
    assert list(story.tell(log("e", 5))) == []
    now = replace(RUNNING, log_end=7)
    told = [*story.catch_up(now, lambda start: FULL_LOG[start:7]), *story.tell(log("f", 6))]
    told += story.tell(log("gh", 8))
    assert "".join(event.log or "" for event in told) == FULL_LOG[2:]
    assert story.knows_log


def test_every_position_goes_on_without_gap() -> None:
    """From each event that one reader has got, another gets exactly the rest."""
    events = [log(letter, end) for end, letter in enumerate(FULL_LOG, start=1)]
    done = replace(RUNNING, status=TaskStatus.COMPLETED, progress_percentage=100, attempt=0)
    story = Story("")
    first = [*story.catch_up(RUNNING, lambda _: "")]
    first += [told for event in [*events, done] for told in story.tell(event)]
    whole = [(event.kind, event.log, event.status) for event in first]
    for number, seen in enumerate(first[:-1], start=1):
        later = Story(seen.position)
        rest = [told for event in [RUNNING, *events, done] for told in later.tell(event)]
        assert whole[number:] == [(event.kind, event.log, event.status) for event in rest]


def test_another_attempt_has_a_log_of_its_own() -> None:
    """Characters are counted from its beginning again."""
    story = Story("1-running-50-100")
    told = list(story.tell(log("ab", 2, attempt=2)))
    assert [event.log for event in told] == ["ab"]


def test_the_log_of_another_node_comes_from_the_row() -> None:
    """Only as far as it was not seen; a log that was cut comes as a whole."""
    done = replace(RUNNING, status=TaskStatus.FAILED)
    assert [e.log for e in Story("1-running-0-3").tell_row(done, FULL_LOG)] == ["defgh", None]
    assert [e.log for e in Story("1-running-0-99").tell_row(done, FULL_LOG)] == [FULL_LOG, None]
    assert list(Story("1-failed-0-8").tell_row(done, FULL_LOG)) == []
