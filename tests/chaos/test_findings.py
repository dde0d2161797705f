"""What an outsider makes of the records that it reads, and of the workers' ledger."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from streams.blobs.base import open_store
from streams.blobs.fences import Fences
from streams.letters import DLT_PREFIX
from streams.topology import REQUESTS
from tests.chaos.findings import Heard, Stored, look_around
from tests.chaos.ledger import Entry, Failpoint, Ledger, Reading, arm, in_hand, is_armed
from tests.chaos.oracle import RunOfJob
from tests.chaos.submitter import tenant_of

SUFFIX = ".F1-7"
JOB = f"good-1{SUFFIX}"


class Record:
    """As much of a message as is read."""

    def __init__(self, topic: str, key: str, headers: Sequence[tuple[str, bytes]] = ()) -> None:
        self._topic, self._key, self._headers = topic, key, headers

    def topic(self) -> str:
        return self._topic

    def key(self) -> bytes:
        return self._key.encode()

    def value(self) -> bytes:
        return b""

    def headers(self) -> Sequence[tuple[str, bytes]]:
        return self._headers


def heard(*records: Record) -> Heard:
    found = Heard(SUFFIX)
    for each in records:
        found.take(each, 1.0)  # type: ignore[arg-type]
    return found


def test_what_a_stage_says_twice_of_a_run_is_a_duplicate_on_whatever_topic() -> None:
    letter = [
        (f"{DLT_PREFIX}{name}", value) for name, value in (("stage", b"decoder"), ("run", b"1"))
    ]
    second_run = [("ce_id", f"{JOB}.2.sampler.1".encode())]
    found = heard(
        Record(REQUESTS, JOB),
        Record(REQUESTS, JOB),  # its producer's
        Record("latents.ready", JOB),
        Record("latents.ready", JOB),
        Record("latents.ready", JOB, second_run),
        Record("latents.ready", "good-1.F2-7"),  # another row's
        Record("latents.ready.dlt", JOB, letter),
        Record("latents.ready.dlt", JOB, letter),
    )
    assert found.num_written.total() == 5
    assert found.num_written.total() - len(found.num_written) == 2
    assert found.dead == {"decoder": {RunOfJob(JOB)}}
    assert found.reached["latents.ready"] == {RunOfJob(JOB), RunOfJob(JOB, 2)}


def test_in_hand_is_what_that_process_computes_and_has_not_stored() -> None:
    def entry(pid: int, what: str, *jobs: str) -> Entry:
        return Entry(1.0, pid, "sampler", what, jobs)

    entries = [
        entry(7, "fetched", "a", "b", "c"),
        entry(7, "worked", "a", "b"),
        entry(8, "worked", "d"),
        entry(8, "stored", "a"),
        entry(7, "stored", "b"),
    ]
    assert in_hand(entries, 7) == {"a"}
    assert in_hand(entries, 9) == set()


def test_a_listing_shows_the_jobs_of_its_row_their_runs_and_which_of_these_have_ended(
    tmp_path: Path,
) -> None:
    store = open_store(tmp_path.as_uri())
    fences = Fences(store)
    begun, ended, redriven = (f"{name}{SUFFIX}" for name in ("begun", "ended", "redriven"))
    for job_id in (begun, ended, redriven, f"ended{SUFFIX}7"):
        fences.claim_request(tenant_of(job_id), job_id, b"request")
    fences.end(tenant_of(ended), ended, 1, b"done")
    fences.end(tenant_of(redriven), redriven, 1, b"failed")
    fences.claim_run(tenant_of(redriven), redriven, 2, b"again")
    fences.publish_result(tenant_of(redriven), redriven, 2, "prompt", 1, b"result")
    fences.end(tenant_of(redriven), redriven, 2, b"done")
    fences.end(tenant_of(f"ended{SUFFIX}7"), f"ended{SUFFIX}7", 1, b"another row's")
    assert look_around(store, SUFFIX) == Stored(
        frozenset({begun, ended, redriven}),
        {redriven: 2},
        frozenset({RunOfJob(ended), RunOfJob(redriven), RunOfJob(redriven, 2)}),
    )


def test_a_ledger_is_read_on_from_where_it_was_and_half_a_line_is_left_for_later(
    tmp_path: Path,
) -> None:
    reading, ledger = Reading(tmp_path), Ledger(tmp_path, "sampler")
    assert list(reading.entries()) == []
    ledger.write("fetched", ["a", "b"])
    ledger.write("worked", ["a"])
    assert [each.what for each in reading.entries()] == ["fetched", "worked"]
    with (tmp_path / "work.log").open("a") as file:
        file.write("1.5 7 sampler sto")
        file.flush()
        assert len(reading.entries()) == 2
        file.write("red a\n")
    assert reading.entries()[2] == Entry(1.5, 7, "sampler", "stored", ("a",))
    assert len(reading.entries()) == 3


def test_a_failpoint_is_armed_until_its_line_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, seen = Ledger(tmp_path, "sampler"), list[bool]()
    armed: tuple[Path, str, Failpoint] = (tmp_path, "sampler", "after-work")
    arm(*armed)
    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", lambda *_: seen.append(is_armed(*armed)))
        patch.setattr(ledger, "write", lambda *_: seen.append(is_armed(*armed)))
        ledger.passes("after-work")
        ledger.passes("after-work")
    assert seen == [True, False], "written first, then killed; and once"
