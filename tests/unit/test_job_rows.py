from datetime import UTC, datetime, timedelta
from itertools import permutations

from schemas.records import GenerationRequest, JobEvent, VideoDone
from streams.client.ids import new_job_id
from streams.client.job_rows import JobRow, fold_jobs

JobRecord = GenerationRequest | JobEvent | VideoDone
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def a_request(job_id: str = "job-1", *, minute: int = 0, run: int = 1) -> GenerationRequest:
    created_at = NOON + timedelta(minutes=minute)
    return GenerationRequest(job_id, "acme", "a ball", created_at, tier="pro", run=run)


def an_event(
    stage: str, kind: str = "started", *, minute: int = 1, run: int = 1, step: int | None = None
) -> JobEvent:
    at = NOON + timedelta(minutes=minute)
    num_steps = None if step is None else 10
    return JobEvent("job-1", run, "acme", stage, kind, at, "w", step=step, num_steps=num_steps)


def a_done(status: str = "completed", *, run: int = 1) -> VideoDone:
    return VideoDone("job-1", run, "acme", status, 3, NOON, NOON, ended_by="finisher")  # type: ignore[arg-type]


def row(*records: JobRecord) -> JobRow:
    return fold_jobs(records)["job-1"]


def test_a_job_that_nobody_has_touched_is_queued() -> None:
    assert row(a_request()) == JobRow("job-1", "acme", 1, "queued", NOON, tier="pro")


def test_a_job_is_running_in_the_stage_furthest_down_with_its_steps() -> None:
    found = row(
        a_request(),
        an_event("sampler", "progress", minute=2, step=3),
        an_event("prompt", minute=5),  # a slow clock must not send the job back
    )
    assert (found.status, found.stage, found.step, found.num_steps) == ("running", "sampler", 3, 10)


def test_another_kind_of_event_keeps_the_step() -> None:
    found = row(an_event("sampler", "progress", step=3), an_event("sampler", "preview", minute=2))
    assert (found.step, found.num_steps) == (3, 10)


def test_the_next_stage_begins_without_a_step() -> None:
    found = row(an_event("sampler", "progress", step=10), an_event("decoder", minute=2))
    assert (found.stage, found.step) == ("decoder", None)


def test_the_order_among_topics_and_duplicates_change_nothing() -> None:
    records: list[JobRecord] = [
        a_request(),
        an_event("prompt"),
        an_event("sampler", minute=2),
        a_done(),
    ]
    rows = [row(*order, *order) for order in permutations(records)]
    assert {each.status for each in rows} == {"completed"}
    assert {each.stage for each in rows} == {"finisher"}
    assert {each.tier for each in rows} == {"pro"}


def test_a_later_run_is_what_counts() -> None:
    records: list[JobRecord] = [a_request(), a_done("failed"), an_event("sampler", run=2)]
    for order in permutations(records):
        found = row(*order)
        assert (found.run, found.status, found.done) == (2, "running", None)


def test_jobs_come_oldest_first() -> None:
    rows = fold_jobs([a_request("b", minute=1), a_request("a", minute=2), a_request("c")])
    assert list(rows) == ["c", "b", "a"]


def test_job_ids_are_unique_and_sort_by_the_time_they_were_made() -> None:
    ids = [new_job_id(millisecond) for millisecond in range(1_700_000_000_000, 1_700_000_000_500)]
    assert sorted(ids) == ids
    assert len({new_job_id(1_700_000_000_000) for _ in range(500)}) == 500
