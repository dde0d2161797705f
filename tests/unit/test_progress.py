import io
from datetime import UTC, datetime

import pytest
from rich.console import Console
from rich.progress import Progress

from schemas.records import BlobRef, JobEvent, VideoDone
from streams.cli.progress import Bars, PlainLines, done_line
from streams.cli.terminal import print_table

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def an_event(stage: str, kind: str = "started", step: int | None = None) -> JobEvent:
    num_steps = None if step is None else 8
    return JobEvent("job", 1, "acme", stage, kind, NOON, "w", step=step, num_steps=num_steps)


def a_done(status: str, **rest: object) -> VideoDone:
    return VideoDone("job", 1, "acme", status, 0, NOON, NOON, **rest)  # type: ignore[arg-type]


@pytest.fixture
def progress() -> Progress:
    return Progress(console=Console(file=io.StringIO(), force_terminal=True))


def shares(progress: Progress) -> list[float]:
    return [task.percentage for task in progress.tasks]


def test_a_bar_fills_with_its_steps_and_whole_when_a_later_stage_begins(
    progress: Progress,
) -> None:
    bars = Bars(progress)
    assert shares(progress) == [0, 0, 0, 0]
    bars.show(an_event("sampler", "progress", step=2))
    assert shares(progress) == [100, 25, 0, 0]
    bars.show(an_event("decoder"))
    assert shares(progress) == [100, 100, 0, 0]
    assert progress.tasks[1].fields["detail"] == "2/8"


def test_all_bars_are_full_at_the_end_of_a_completed_job_only(progress: Progress) -> None:
    bars = Bars(progress)
    bars.end(a_done("failed"))
    assert shares(progress) == [0, 0, 0, 0]
    bars.end(a_done("completed"))
    assert shares(progress) == [100, 100, 100, 100]


def test_an_event_of_a_stage_that_is_not_ours_is_passed_over(progress: Progress) -> None:
    Bars(progress).show(an_event("upscaler"))
    assert shares(progress) == [0, 0, 0, 0]


def test_plain_lines_leave_most_steps_out_and_keep_the_last(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = PlainLines()
    lines.show(an_event("sampler"))
    for step in range(1, 9):
        lines.show(an_event("sampler", "progress", step))
    told = [line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert told == ["sampler started", "sampler progress 1/8", "sampler progress 8/8"]


def test_an_ending_says_what_came_of_it_or_why_not() -> None:
    video = BlobRef("file:///v", "0" * 64, 1, "video/mp4")
    assert done_line(a_done("completed", video=video)) == "completed in 0.0 s: file:///v"
    failed = a_done("failed", reason_code="input_lost", reason="gone")
    assert done_line(failed) == "failed after 0.0 s: input_lost: gone"
    assert done_line(a_done("expired")) == "expired after 0.0 s"


def test_a_table_in_a_pipe_is_tab_separated(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("job", "age"), [("a", "[bold]1 s")])
    assert capsys.readouterr().out == "job\tage\na\t[bold]1 s\n"
