"""How many tasks a cell gets at once."""

from __future__ import annotations

import pytest

from lilota_async.engine.bursts import LARGEST_BURST, LARGEST_CLAIM, SAMPLES_BEFORE_TRUST, Bursts


def seen(**seconds: float) -> Bursts:
    """What is known after each of these tasks took so long, often enough to be believed."""
    bursts = Bursts()
    for name, each in seconds.items():
        for _ in range(SAMPLES_BEFORE_TRUST):
            bursts.observe(name, each)
    return bursts


def test_unknown_tasks_come_one_at_a_time() -> None:
    """Nobody knows how long a task takes that was hardly ever seen."""
    bursts = Bursts()
    for _ in range(SAMPLES_BEFORE_TRUST - 1):
        bursts.observe("add", 0.0)
    bursts.learn(["add"])
    assert bursts.depth == 1


def test_short_tasks_come_in_bursts() -> None:
    """The shorter, the more, up to limits: one for claims, which come all at once."""
    bursts = seen(add=0.00001, render=0.001)
    bursts.learn(["add", "add"])
    assert bursts.depth == LARGEST_CLAIM
    assert bursts.room("add") == LARGEST_BURST > LARGEST_CLAIM
    bursts.learn(["add", "render"])
    assert bursts.depth == 20


def test_the_next_of_moderate_tasks_waits_in_the_cell() -> None:
    """So that the cell does not stand still; no more of them than one."""
    bursts = seen(render=0.05, report=1.0)
    bursts.learn(["render"])
    assert bursts.depth == 2
    assert bursts.room("render") == 2
    assert bursts.room("report") == 1
    assert bursts.room("unknown") == 1


def test_a_cell_gets_no_more_than_it_does_in_a_moment() -> None:
    """What was claimed for it in the belief that everything is short goes back."""
    bursts = seen(add=0.00001, render=0.05)
    claimed = [("cell", "add", 0), *(("cell", "render", number) for number in range(1, 6))]
    run, back = bursts.arrange(claimed)
    assert [task for _, task in run] == [0, 1, 2]
    assert back == [3, 4, 5]


def test_one_long_task_ends_the_bursts() -> None:
    """After a claim that brought something long, each cell gets one task."""
    bursts = seen(add=0.00001, report=1.0)
    bursts.learn(["add", "report"])
    assert bursts.depth == 1
    bursts.learn([])  # nothing came: nothing was learned
    assert bursts.depth == 1


@pytest.mark.parametrize(("seconds", "short"), [(0.005, True), (0.5, False)])
def test_one_slow_attempt(seconds: float, short: bool) -> None:
    """A short task that waited for a processor once stays short; one that turns long does not."""
    bursts = seen(add=0.00001)
    bursts.observe("add", seconds)
    assert bursts.is_short("add") is short


def test_no_short_task_waits_behind_a_long_one() -> None:
    """A cell runs its short tasks first, then one long task; more long ones go back."""
    bursts = seen(add=0.00001, report=1.0)
    claimed = [
        ("cell 1", "report", 1),
        ("cell 2", "add", 2),
        ("cell 1", "add", 3),
        ("cell 2", "add", 4),
        ("cell 1", "report", 5),
    ]
    run, back = bursts.arrange(claimed)
    assert [task for cell, task in run if cell == "cell 1"] == [3, 1]
    assert [task for cell, task in run if cell == "cell 2"] == [2, 4]
    assert back == [5]
