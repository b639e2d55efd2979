"""The line of a run, by a clock of the test's own."""

from __future__ import annotations

import pytest

from mcd.run import progress as module
from mcd.run.progress import Expected, Part, RunLine, clock_text, progress


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def work(part: Part, clock: Clock, steps: int, seconds: float) -> None:
    for _ in range(steps):
        clock.now += seconds
        part.update()


def test_time_left_is_that_of_finished_steps_and_of_stages_to_come() -> None:
    clock = Clock()
    stages = [Expected("a", 10.0, finished=True), Expected("b", 100.0), Expected("c", 50.0), Expected("d", 20.0)]
    with RunLine(stages, clock) as line:
        line.begin("b")
        part = Part(200, "b", "step", clock=clock)
        assert line.left() == (100.0, 170.0, False)
        work(part, clock, 101, 1.0)
        # 99 steps of a second, though 100 seconds were expected and 101 are over.
        assert line.left() == (pytest.approx(99.0), pytest.approx(169.0), False)
        work(part, clock, 99, 1.0)
        line.end()
        # b took twice what was expected: so will the rest.
        line.begin("c")
        assert line.left() == (pytest.approx(100.0), pytest.approx(140.0), False)


def test_a_later_part_of_a_stage_is_in_what_was_expected_of_it() -> None:
    clock = Clock()
    with RunLine([Expected("a", 100.0)], clock) as line:
        line.begin("a")
        work(Part(10, "first part", "image", clock=clock), clock, 10, 1.0)
        assert line.left() == (pytest.approx(90.0), pytest.approx(90.0), False)


def test_stages_of_which_nothing_is_known_are_said_to_be_left_out() -> None:
    clock = Clock()
    with RunLine([Expected("a", None), Expected("b", None)], clock) as line:
        line.begin("a")
        assert line.left() == (None, None, True)
        part = Part(20, "a", "image", clock=clock)
        work(part, clock, 11, 0.5)
        assert line.left() == (pytest.approx(4.5), pytest.approx(4.5), True)
        assert line.text() == "stage 1/2 a | 11/20 images, 2 images/s | stage 4 s left, run over 4 s left, 6 s so far"


def test_parts_go_into_the_line_of_the_run_and_stand_alone_without_one(capsys: pytest.CaptureFixture[str]) -> None:
    with RunLine([Expected("scene", 60.0)]) as line:
        line.begin("scene")
        with progress(5, "scene train", "image") as part:
            part.set_postfix_str("loss 0.5")
            part.update(2)
    said = capsys.readouterr().err
    assert "stage 1/1 scene | scene train 2/5 images, loss 0.5 | stage 60 s left, run about 60 s left" in said
    assert not module._lines
    with progress(5, "alone", "image", 1) as part:
        part.update(4)
    said = capsys.readouterr().err
    assert "alone" in said
    assert "stage" not in said


def test_a_log_file_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with RunLine([Expected("a", 60.0)], clock) as line:
        line.begin("a")
        work(Part(100, "a", "image", clock=clock), clock, 100, 0.5)
    # 50 seconds, a line every 15.
    assert len(capsys.readouterr().err.strip().splitlines()) == 4


def test_times_are_said_as_people_say_them() -> None:
    assert [clock_text(s) for s in (0.4, 99, 100, 5400, 6000, 90_000)] == [
        "0 s", "99 s", "2 min", "90 min", "1 h 40 min", "25 h 00 min",
    ]  # fmt: skip
