"""How long calls may wait for their turn in a process."""

from __future__ import annotations

from lilota_async.execution.turns import LONGEST_WAIT_SECONDS, SentCalls


def test_calls_wait_too_long_when_one_of_a_frame_has_not_begun() -> None:
    """However many others have ended since it was sent."""
    sent = SentCalls()
    sent.add(10, 0.0)
    sent.add(20, LONGEST_WAIT_SECONDS)
    assert not sent.wait_too_long(range(5, 21), 4, LONGEST_WAIT_SECONDS)
    assert sent.wait_too_long(range(9, 21), 9, LONGEST_WAIT_SECONDS + 0.1)
    assert not sent.wait_too_long(range(10, 21), 10, LONGEST_WAIT_SECONDS + 0.1)
    assert not sent.wait_too_long(range(11, 21), None, 2 * LONGEST_WAIT_SECONDS)
    assert sent.wait_too_long(range(11, 21), None, 2 * LONGEST_WAIT_SECONDS + 0.1)


def test_nothing_is_kept_of_calls_that_have_ended() -> None:
    """There is a frame for every moment in which tasks begin."""
    sent = SentCalls()
    for serial in range(1000):
        sent.add(serial, 0.0)
    assert not sent.wait_too_long((), None, 10 * LONGEST_WAIT_SECONDS)
    assert not sent._frames
