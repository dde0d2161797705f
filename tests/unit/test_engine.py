"""MicroBatchEngine and the fences around its work, on a local store and without torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from schemas.codec import Codec
from schemas.records import JobEvent
from streams.core.events import (
    Emitted,
    Ended,
    Ending,
    Failed,
    Fate,
    Fault,
    NotEnded,
)
from streams.errors import (
    FatalError,
    InvalidRecord,
    Rejected,
    RetryableError,
    SettingsError,
    SickHost,
)
from tests.builders import a_job, a_latents_ready, a_request, a_task, a_ticket, a_video_done
from tests.registry import Registry
from tests.unit.engine_rig import (
    CODEC,
    Gate,
    Rig,
    done_of,
    latents_of,
    raising,
    tasks_of,
    wait_until,
)
from workers.stage_work import Report

CANCELLED = Ending("cancelled", "cancelled", "cancelled by request")
TENANT, STAGE = "acme", "sampler"


@pytest.fixture(params=[0.0, math.inf], ids=["I/O threads", "engine thread"])
def worth_a_thread_s(request: pytest.FixtureRequest) -> float:
    """Rows are fetched and stored on either kind of thread."""
    return float(request.param)


# ---- batches


def test_every_record_of_a_batch_is_answered_with_the_next_stages_record(rig: Rig) -> None:
    with rig:
        rig.start(*tasks_of("a", "b"))
        answers = rig.wait_for(2)
        assert [latents_of(each).job.job_id for each in answers] == ["a", "b"]
        assert rig.work.batches == [["a", "b"]]
        latents = latents_of(answers[0])
        assert rig.store.read(latents.latents, 100) == b"latents of a"
        timing = latents.timings[-1]
        assert (timing.stage, timing.batch_size, timing.worker) == ("sampler", 2, "worker-1")


def test_the_next_record_lies_in_the_jobs_partition_under_its_key(rig: Rig) -> None:
    with rig:
        rig.start(*tasks_of("a"))
        (answer,) = rig.wait_for(1)
        assert isinstance(answer, Emitted)
        output = answer.outputs[0]
        assert (output.topic, output.partition, output.key) == ("latents.ready", 13, b"a")
        assert dict(output.headers)["ce_id"] == b"a.1.sampler.done"


def test_onlookers_hear_of_start_and_progress(rig: Rig) -> None:
    with rig:
        rig.work.on_compute = lambda job_ids, report: report(2, 2)
        rig.start(*tasks_of("a"))
        rig.wait_for(1)
        events = [Codec().decode(each.value, JobEvent) for each in rig.announced]
        assert [(each.kind, each.step, each.num_steps) for each in events] == [
            ("started", None, None),
            ("progress", 2, 2),
        ]
        assert {each.topic for each in rig.announced} == {"jobs.events"}


def test_work_goes_on_where_nobody_can_be_told_of_it(tmp_path: Path) -> None:
    registry = Registry()
    codec = Codec(registry)
    codec.encode(a_latents_ready())  # the schema registry is away since then
    registry.is_away = True
    with Rig(tmp_path / "blobs", codec=codec) as rig:
        rig.start(*tasks_of("a"))
        (answer,) = rig.wait_for(1)
        assert (type(answer), rig.announced) == (Emitted, [])


def test_one_bad_row_is_found_by_halving_and_its_neighbours_complete(rig: Rig) -> None:
    def fail_on_b(job_ids: Sequence[str], report: Report) -> None:
        if "b" in job_ids:
            raise ValueError("no such shape")

    with rig:
        rig.work.on_compute = fail_on_b
        rig.start(*tasks_of("a", "b", "c", "d"))
        answers = rig.wait_for(4)
        assert [type(each) for each in answers] == [Emitted, Failed, Emitted, Emitted]
        assert answers[1] == Failed(a_ticket(1), Fault(Fate.LATER, "internal_error", "ValueError"))
        assert sorted(map(len, rig.work.batches)) == [1, 1, 2, 2, 4]


def test_a_row_may_fail_by_itself(rig: Rig) -> None:
    with rig:
        error = InvalidRecord("not finite", reason_code="not_finite")
        rig.work.on_row = lambda job_id: error if job_id == "a" else None
        rig.start(*tasks_of("a", "b"))
        failed, emitted = rig.wait_for(2)
        assert failed == Failed(a_ticket(0), Fault(Fate.DEAD_LETTER, "not_finite", "not finite"))
        assert latents_of(emitted).job.job_id == "b"
        assert len(rig.work.batches) == 1


def test_a_record_whose_inputs_are_bad_leaves_the_batch_to_the_others(rig: Rig) -> None:
    with rig:
        rig.work.on_fetch = raising(InvalidRecord("a gap", reason_code="bad_tensor"), "a")
        rig.start(*tasks_of("a", "b"))
        failed, emitted = rig.wait_for(2)
        assert failed == Failed(a_ticket(0), Fault(Fate.DEAD_LETTER, "bad_tensor", "a gap"))
        assert isinstance(emitted, Emitted)
        assert rig.work.batches == [["b"]]


def test_a_batch_of_which_nothing_is_left_is_not_computed(rig: Rig) -> None:
    with rig:
        rig.work.on_fetch = raising(RetryableError("not now"))
        rig.start(*tasks_of("a", "b"))
        assert {type(each) for each in rig.wait_for(2)} == {Failed}
        assert rig.work.batches == []


def test_a_result_that_cannot_be_stored_fails_its_record(rig: Rig) -> None:
    with rig:
        rig.work.on_store = raising(RetryableError("not now"), "a")
        rig.start(*tasks_of("a"))
        assert rig.wait_for(1) == [Failed(a_ticket(0), Fault(Fate.LATER, "retryable", "not now"))]


def test_the_message_of_a_foreign_error_is_kept_out_of_the_fault(rig: Rig) -> None:
    with rig:
        rig.work.on_fetch = raising(RuntimeError("a red circle moving right"))
        rig.start(*tasks_of("a"))
        (failed,) = rig.wait_for(1)
        assert isinstance(failed, Failed)
        assert "circle" not in failed.fault.message


# ---- drop, cancel


def test_dropped_records_answer_nothing_and_a_long_computation_stops(rig: Rig) -> None:
    with rig:
        gate = rig.work.on_compute = Gate()
        tickets = rig.start(*tasks_of("a", "b"))
        wait_until(gate.entered.is_set)
        rig.drop(*tickets)
        wait_until(gate.left.is_set)
        rig.work.on_compute = lambda job_ids, report: None
        rig.start(*tasks_of("x", "y", "c")[2:])
        assert [each.ticket for each in rig.wait_for(1)] == [a_ticket(2)]
        assert rig.fences.result(TENANT, "a", 1, STAGE) is None


def test_a_dropped_record_lets_its_neighbour_finish(rig: Rig) -> None:
    with rig:
        gate = rig.work.on_compute = Gate()
        tickets = rig.start(*tasks_of("a", "b"))
        wait_until(gate.entered.is_set)
        rig.drop(tickets[0])
        gate.opened.set()
        assert [each.ticket for each in rig.wait_for(1)] == [tickets[1]]


def test_records_dropped_before_their_batch_is_computed_are_not_computed(rig: Rig) -> None:
    with rig:
        gate = rig.work.on_compute = Gate()
        rig.start(*tasks_of("a"))
        wait_until(gate.entered.is_set)
        rig.drop(*rig.start(*tasks_of("x", "b")[1:]))
        gate.opened.set()
        rig.start(*tasks_of("x", "y", "c")[2:])
        rig.wait_for(2)
        assert rig.work.batches == [["a"], ["c"]]


def test_a_cancelled_record_ends_while_it_is_computed_and_the_computation_stops(rig: Rig) -> None:
    with rig:
        gate = rig.work.on_compute = Gate()
        (task,) = tasks_of("a")
        tickets = rig.start(task)
        wait_until(gate.entered.is_set)
        rig.drop(*tickets)
        rig.end(task, CANCELLED)
        (ended,) = rig.wait_for(1)
        assert isinstance(ended, Ended)
        assert done_of(ended).status == "cancelled"
        wait_until(gate.left.is_set)


def test_a_failure_that_comes_after_the_cancel_is_not_the_ends(rig: Rig) -> None:
    def fail_when_let_through(job_ids: Sequence[str], report: Report) -> None:
        gate.entered.set()
        gate.opened.wait(20)
        raise ValueError

    with rig:
        gate, rig.work.on_compute = Gate(), fail_when_let_through
        (task,) = tasks_of("a")
        tickets = rig.start(task)
        wait_until(gate.entered.is_set)
        rig.drop(*tickets)
        rig.end(task, CANCELLED)
        gate.opened.set()
        wait_until(lambda: rig.take() > 0 and isinstance(rig.answers[-1], Ended))
        assert not any(isinstance(each, NotEnded) for each in rig.answers)


# ---- the engine's own end


def test_a_model_that_does_not_load_surfaces_from_completions(rig_folder: Path) -> None:
    def no_model() -> None:
        raise SettingsError("no such model")

    with Rig(rig_folder, on_load=no_model) as rig:
        wait_until(rig.engine.loaded.is_set)
        with pytest.raises(SettingsError, match="no such model"):
            rig.engine.completions()


def test_a_bug_of_ours_on_either_thread_surfaces_as_fatal(rig_folder: Path) -> None:
    def crash(job_ids: Sequence[str], report: Report) -> None:
        raise KeyboardInterrupt

    with Rig(rig_folder) as rig:
        rig.work.on_compute = crash
        rig.start(*tasks_of("a"))
        with pytest.raises(FatalError, match="KeyboardInterrupt"):
            rig.wait_for(1)
    with Rig(rig_folder) as rig:
        rig.work.on_fetch = raising(FatalError("a fence holds nonsense"))
        rig.start(*tasks_of("a"))
        with pytest.raises(FatalError, match="nonsense"):
            rig.wait_for(1)


def test_work_that_does_not_answer_every_row_is_a_bug_of_ours(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rig:
        monkeypatch.setattr(rig.work, "compute", lambda batch, report: [])
        rig.start(*tasks_of("a"))
        with pytest.raises(FatalError, match="AssertionError"):
            rig.wait_for(1)


def test_stop_ends_a_long_computation_and_a_long_hold(rig: Rig) -> None:
    gate = rig.work.on_compute = Gate()
    rig.work.on_fetch = raising(SickHost("refused"), "sick")
    rig.start(*tasks_of("x", "sick")[1:])
    wait_until(lambda: bool(rig.held))  # first: the engine's own thread may be what fetches
    rig.start(*tasks_of("a"))
    wait_until(gate.entered.is_set)
    rig.engine.stop()
    assert gate.left.is_set()
    assert rig.threads() == set()
    rig.start(*tasks_of("b"))  # too late: nobody will work it, and nothing breaks
    assert rig.take() == 0


# ---- fences


def test_a_redelivered_record_with_a_result_re_emits_the_same_bytes_without_work(rig: Rig) -> None:
    with rig:
        task, again = tasks_of("a", "a")
        rig.start(task)
        rig.wait_for(1)
        rig.start(again)
        first, second = rig.wait_for(2)
        assert isinstance(first, Emitted)
        assert isinstance(second, Emitted)
        assert first.outputs == second.outputs
        assert rig.work.batches == [["a"]]


@pytest.mark.parametrize(("ended_by", "is_told"), [("finisher", False), ("expirer", True)])
def test_what_another_stage_has_ended_that_stage_tells(
    rig: Rig, ended_by: str, is_told: bool
) -> None:
    """The expirer has no record of its own that would come again."""
    with rig:
        rig.fences.end(TENANT, "a", 1, CODEC.encode(a_video_done(job_id="a", ended_by=ended_by)))
        rig.start(*tasks_of("a"))
        (answer,) = rig.wait_for(1)
    assert isinstance(answer, Emitted)
    assert len(answer.outputs) == int(is_told)
    assert rig.work.batches == []


def test_an_ended_run_re_emits_its_outcome_without_work(rig: Rig) -> None:
    with rig:
        task, again = tasks_of("a", "a")
        rig.end(task, CANCELLED)
        (ended,) = rig.wait_for(1)
        rig.start(again)
        _, emitted = rig.wait_for(2)
        assert done_of(emitted) == done_of(ended)
        assert rig.work.batches == []


def test_of_two_endings_the_first_stands(rig: Rig) -> None:
    with rig:
        task, again = tasks_of("a", "a")
        rig.end(task, CANCELLED)
        rig.wait_for(1)
        rig.end(again, Ending("failed", "bad", "it is bad"))
        assert {done_of(each).status for each in rig.wait_for(2)} == {"cancelled"}


@pytest.mark.parametrize("damage", ["lost", "corrupt"])
def test_a_result_whose_blob_is_damaged_is_made_again_as_the_next_edition(
    rig: Rig, damage: str
) -> None:
    with rig:
        task, again = tasks_of("a", "a")
        rig.start(task)
        blob = latents_of(rig.wait_for(1)[0]).latents
        path = Path(blob.uri.removeprefix("file://"))
        path.unlink()
        if damage == "corrupt":
            path.write_bytes(b"other bytes.")
        rig.start(again)
        emitted = rig.wait_for(2)[1]
        assert rig.store.verify(latents_of(emitted).latents)
        found = rig.fences.result(TENANT, "a", 1, STAGE)
        assert found is not None
        assert found[0] == 2
        assert rig.work.batches == [["a"], ["a"]]


def test_a_twin_that_was_faster_wins_and_the_loser_emits_its_result(rig: Rig) -> None:
    with rig:
        task, twin = tasks_of("a", "a")
        gate = rig.work.on_compute = Gate()
        rig.start(task)
        wait_until(gate.entered.is_set)
        with Rig(Path(rig.store.root_uri.removeprefix("file://"))) as other:
            other.start(twin)
            (winner,) = other.wait_for(1)
        gate.opened.set()
        (loser,) = rig.wait_for(1)
        assert isinstance(winner, Emitted)
        assert isinstance(loser, Emitted)
        assert loser.outputs == winner.outputs


def test_a_refused_request_is_claimed_and_its_outcome_says_rejected(rig_folder: Path) -> None:
    claimed: list[str] = []
    with Rig(rig_folder, "prompt") as rig:
        rig.work.on_begin = claimed.append
        rig.work.on_key = raising(Rejected("too many frames", reason_code="too_large"))
        rig.start(a_task(a_request()))
        (answer,) = rig.wait_for(1)
        done = done_of(answer)
        assert (done.status, done.reason_code, done.reason) == (
            "rejected",
            "too_large",
            "too many frames",
        )
        assert set(claimed) == {"job-1"}
        assert rig.fences.outcome(TENANT, "job-1", 1) is not None
        assert rig.work.batches == []


def test_a_conflicting_request_neither_fails_nor_ends_the_job_of_its_id(rig_folder: Path) -> None:
    conflict = InvalidRecord("another's", reason_code="idempotency_conflict")
    fault = Fault(Fate.DEAD_LETTER, "idempotency_conflict", "another's", ends_job=False)
    with Rig(rig_folder, "prompt") as rig:
        rig.work.on_begin = raising(conflict)
        rig.start(a_task(a_request()))
        assert rig.wait_for(1) == [Failed(a_ticket(0), fault)]
        rig.end(a_task(a_request(), offset=1), CANCELLED)
        assert rig.wait_for(2)[1] == NotEnded(a_ticket(1), fault)
        assert rig.fences.outcome(TENANT, "job-1", 1) is None


def test_a_misplaced_request_is_forwarded_untouched(rig_folder: Path) -> None:
    with Rig(rig_folder, "prompt", place=lambda request: 5) as rig:
        rig.work.on_begin = raising(AssertionError("it is not ours to claim"))
        task = a_task(a_request(), headers=(("odd", b"1"),))
        rig.start(task)
        (answer,) = rig.wait_for(1)
        assert isinstance(answer, Emitted)
        (output,) = answer.outputs
        assert (output.topic, output.partition) == ("requests", 5)
        assert (output.key, output.value, output.headers) == (task.key, task.value, task.headers)


def test_an_ending_names_the_job_the_reason_and_what_it_has_cost(rig: Rig) -> None:
    with rig:
        rig.end(tasks_of("a")[0], Ending("failed", "bad_tensor", "x" * 5000))
        done = done_of(rig.wait_for(1)[0])
        assert (done.job_id, done.run, done.partition) == ("a", 1, a_job().partition)
        assert (done.reason_code, done.ended_by, len(done.reason or "")) == (
            "bad_tensor",
            "sampler",
            1000,
        )
        assert done.cost_gpu_s == 2.0
