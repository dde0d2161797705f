"""What an outsider makes of the records that it reads, and of the workers' ledger."""

from __future__ import annotations

from collections.abc import Sequence

from streams.letters import DLT_PREFIX
from streams.topology import REQUESTS
from tests.chaos.findings import Heard
from tests.chaos.ledger import Entry, in_hand
from tests.chaos.oracle import RunOfJob

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
