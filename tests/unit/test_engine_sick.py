"""MicroBatchEngine when the host, the store or the memory fails: holds, probes, halving."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import pytest

from schemas.records import BlobRef
from streams.core.events import (
    Emitted,
    Failed,
    Fate,
    HostSick,
    HostWell,
    Offloaded,
    Probed,
)
from streams.errors import FatalError, OutOfMemory, SickHost, StoreAway
from streams.letters import pack_original, texts
from tests.builders import a_ticket
from tests.unit.engine_rig import Rig, latents_of, raising, tasks_of, wait_until
from workers.stage_work import Report

REFUSED = "CUDA error: invalid configuration"


def device_failure() -> SickHost:
    """What a device says of itself, or of one row's shape."""
    return SickHost(REFUSED, reason_code="device_failed")


# ---- hold


@pytest.mark.parametrize("hook", ["on_fetch", "on_store"])
def test_a_sick_store_is_waited_for_and_the_hold_ends_by_itself(rig: Rig, hook: str) -> None:
    with rig:
        setattr(rig.work, hook, raising(SickHost("refused", reason_code="store_down"), times=2))
        rig.start(*tasks_of("a"))
        (answer,) = rig.wait_for(1)
        assert latents_of(answer).job.job_id == "a"
        assert rig.held == ["store_down", "store_down"]
        rig.wait_for_word(2)
        assert rig.words == [HostSick("store_down", "refused", is_local=True), HostWell()]


def test_a_sick_host_under_a_computation_is_waited_for_and_nobody_fails(rig: Rig) -> None:
    with rig:
        hold = raising(SickHost("no space"), times=2)
        rig.work.on_compute = lambda job_ids, report: hold(job_ids[0])
        rig.start(*tasks_of("a", "b"))
        assert {type(each) for each in rig.wait_for(2)} == {Emitted}
        assert rig.work.batches == 3 * [["a", "b"]]
        assert rig.held == 2 * ["sick_host"]


def test_a_device_that_fails_the_good_job_too_is_waited_for_and_nobody_fails(rig: Rig) -> None:
    with rig:
        hold, probe = (raising(device_failure(), times=2) for _ in range(2))
        rig.work.on_compute = lambda job_ids, report: hold(job_ids[0])
        rig.work.on_probe = lambda: probe("built in")
        rig.start(*tasks_of("a", "b"))
        assert {type(each) for each in rig.wait_for(2)} == {Emitted}
        assert rig.work.batches == 3 * [["a", "b"]]
        assert rig.held == 2 * ["device_failed"]
        rig.wait_for_word(2)
        assert rig.words == [HostSick("device_failed", REFUSED, is_local=True), HostWell()]


def test_a_row_that_a_device_which_is_well_refuses_is_found_and_counts_a_try(rig: Rig) -> None:
    with rig:
        refused = raising(device_failure(), "bad")

        def compute(job_ids: Sequence[str], report: Report) -> None:
            for job_id in job_ids:
                refused(job_id)

        rig.work.on_compute = compute
        rig.start(*tasks_of("a", "bad", "b"))
        answers = rig.wait_for(3)
        assert [type(each) for each in answers] == [Emitted, Failed, Emitted]
        fault = answers[1].fault  # type: ignore[union-attr]
        assert (fault.fate, fault.reason_code) == (Fate.LATER, "device_failed")
        assert (rig.held, rig.words) == ([], []), "nobody waited"


def test_a_good_job_that_finds_the_context_lost_ends_the_process(rig: Rig) -> None:
    """A record may have done that: with it inside, it counts as a crash."""
    with rig:
        hold, probe = raising(device_failure()), raising(FatalError("an assert in a kernel"))
        rig.work.on_compute = lambda job_ids, report: hold(job_ids[0])
        rig.work.on_probe = lambda: probe("built in")
        rig.start(*tasks_of("a"))
        with pytest.raises(FatalError, match="an assert"):
            rig.wait_for(1)
        assert rig.answers == []


@pytest.mark.parametrize("worth_a_thread_s", [math.inf])  # rows begin on the engine thread
def test_a_row_that_waits_leaves_the_engine_thread_to_others(rig: Rig) -> None:
    with rig:
        rig.work.on_fetch = raising(SickHost("refused"), "sick")
        rig.start(*tasks_of("sick"))
        rig.wait_for_word(1)
        rig.start(*tasks_of("x", "well")[1:])
        (answer,) = rig.wait_for(1)
        assert latents_of(answer).job.job_id == "well"


def test_a_store_that_is_away_is_away_for_every_host(rig: Rig) -> None:
    with rig:
        rig.work.on_fetch = raising(StoreAway("refused"), times=1)
        rig.start(*tasks_of("a"))
        rig.wait_for(1)
        rig.wait_for_word(2)
        assert rig.words == [HostSick("store_away", "refused", is_local=False), HostWell()]


def test_a_host_is_well_again_only_when_the_last_call_has_gone_through(rig: Rig) -> None:
    with rig:
        mended = threading.Event()

        def sick(job_id: str) -> None:
            if job_id == "a" and not mended.is_set():
                raise SickHost("refused")

        rig.work.on_fetch = sick
        rig.start(*tasks_of("a", "b"))
        rig.wait_for_word(1)
        assert rig.words == [HostSick("sick_host", "refused", is_local=True)]
        mended.set()
        rig.wait_for(2)
        rig.wait_for_word(2)
        assert rig.words[1:] == [HostWell()]


@pytest.mark.parametrize("hook", ["on_fetch", "on_compute"])
def test_a_hold_that_nobody_waits_for_ends(rig: Rig, hook: str) -> None:
    with rig:
        sick = raising(SickHost("refused"), "a")
        if hook == "on_fetch":
            rig.work.on_fetch = sick
        else:
            rig.work.on_compute = lambda job_ids, report: sick(job_ids[0])
        tickets = rig.start(*tasks_of("a"))
        wait_until(lambda: bool(rig.held))
        rig.drop(*tickets)
        rig.start(*tasks_of("x", "b")[1:])
        assert [each.ticket for each in rig.wait_for(1)] == [a_ticket(1)]


# ---- probe


def test_a_probe_that_works_says_so(rig: Rig) -> None:
    with rig:
        rig.engine.probe()
        rig.wait_for_word(1)
        assert rig.words == [Probed(is_ok=True)]
        assert list(rig.store.walk("reel-probe")) != [], "the store is probed too"


@pytest.mark.parametrize(
    ("error", "is_local"),
    [(ZeroDivisionError(), True), (SickHost("ill"), True), (StoreAway("gone"), False)],
)
def test_whatever_a_probe_meets_is_the_hosts_fault(
    rig: Rig, error: Exception, is_local: bool
) -> None:
    with rig:
        probe = raising(error)
        rig.work.on_probe = lambda: probe("built in")
        rig.engine.probe()
        rig.wait_for_word(1)
        assert rig.words == [Probed(is_ok=False, is_local=is_local)]


def test_a_probe_that_shows_a_bug_of_ours_ends_the_process(rig: Rig) -> None:
    with rig:
        probe = raising(FatalError("no model"))
        rig.work.on_probe = lambda: probe("built in")
        rig.engine.probe()
        with pytest.raises(FatalError, match="no model"):
            rig.wait_for_word(1)


# ---- originals that are too large


def test_an_original_that_fits_no_topic_lies_in_a_blob_that_the_headers_name(rig: Rig) -> None:
    with rig:
        (task,) = tasks_of("a")
        ticket = rig.offload(task)
        (answer,) = rig.wait_for(1)
        assert isinstance(answer, Offloaded)
        assert answer.ticket == ticket
        said = texts(answer.blob, "reel-dlt-blob-")
        ref = BlobRef(said["uri"], said["sha256"], int(said["size-bytes"]), said["media-type"])
        assert rig.store.read(ref, 1_000_000) == pack_original(task)


def test_an_offload_waits_for_the_store_and_ends_when_it_is_dropped(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rig:

        def away(*_: object) -> BlobRef:
            raise StoreAway("refused")

        with monkeypatch.context() as patched:
            patched.setattr(rig.store, "put", away)
            dropped = rig.offload(*tasks_of("a"))
            rig.wait_for_word(1)
            rig.drop(dropped)
            rig.wait_for_word(2)
            waiting = rig.offload(tasks_of("a", "b")[1])
            rig.wait_for_word(3)
        assert [each.ticket for each in rig.wait_for(1)] == [waiting]


# ---- memory


def test_rows_that_are_too_many_for_the_memory_are_halved(rig: Rig) -> None:
    with rig:

        def full(job_ids: Sequence[str], report: Report) -> None:
            if len(job_ids) > 2:
                raise OutOfMemory("no memory", {"rows": str(len(job_ids))})

        rig.work.on_compute = full
        rig.start(*tasks_of("a", "b", "c", "d"))
        assert {type(each) for each in rig.wait_for(4)} == {Emitted}
        assert [len(batch) for batch in rig.work.batches] == [4, 2, 2]


@pytest.mark.parametrize("error", [OutOfMemory("no memory", {"rows": "1"}), MemoryError()])
def test_a_row_that_is_too_large_alone_is_a_dead_letter_with_evidence(
    rig: Rig, error: Exception
) -> None:
    with rig:
        hook = raising(error, "c")

        def compute(job_ids: Sequence[str], report: Report) -> None:
            for job_id in job_ids:
                hook(job_id)

        rig.work.on_compute = compute
        rig.start(*tasks_of("a", "b", "c"))
        answers = rig.wait_for(3)
        assert [type(each) for each in answers] == [Emitted, Emitted, Failed]
        fault = answers[2].fault  # type: ignore[union-attr]
        assert (fault.fate, fault.reason_code) == (Fate.DEAD_LETTER, "out_of_memory")
        assert dict(fault.evidence)["rows"] == "1"
