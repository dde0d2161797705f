"""Retry copies and dead letters: the original untouched, our findings beside it."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from streams import topology
from streams.core.events import DeadLetter, Fate, Fault, Headers, Output, Retry
from streams.core.offset_map import Crashes
from streams.engine import Task
from streams.letters import (
    DLT_PREFIX,
    RETRY_PREFIX,
    Origin,
    StageLetters,
    dead_letter,
    origin_of,
    pack_original,
    retry_letter,
    texts,
)
from streams.runner import StageRunner
from tests.builders import a_fault, a_task, a_ticket, a_work, an_output

SAMPLER = topology.stage("sampler")
THEIRS: Headers = (("ce_id", b"1"), ("odd", None), ("ce_id", b"2"))


def dead(task: Task, fault: Fault | None = None, blob: Headers = (), **work: Any) -> Output:
    fault = fault or a_fault()
    command = DeadLetter(a_ticket(task.offset), a_work(payload=task, **work), fault, blob)
    return dead_letter(SAMPLER, task, command, "worker-1", "torch 9.9")


def retried(task: Task, **work: Any) -> Output:
    fault = Fault(Fate.LATER, "flaky", "try again")
    command = Retry(a_ticket(task.offset), a_work(payload=task, **work), 60, fault)
    return retry_letter(SAMPLER, task, command)


def as_delivered(output: Output, offset: int, timestamp_ms: int) -> Task:
    """The copy as the consumer of its topic gets it."""
    return Task(
        None, output.partition, output.value, output.topic, offset, output.key, output.headers,
        timestamp_ms,
    )  # fmt: skip


# ---- retry copies


@pytest.mark.parametrize("hint", [an_output(), None])
def test_a_hint_that_cannot_be_written_now_holds_up_no_copy(hint: Output | None) -> None:
    sent: list[Output] = []
    sink: Any = SimpleNamespace(
        produce=lambda ticket, outputs: sent.extend(outputs), announce=sent.append
    )
    watch: Any = SimpleNamespace(command=lambda command: None)
    letters = StageLetters(SAMPLER, "worker-1", "", lambda task, event, word: hint)
    none: Any = None
    task = a_task()
    command = Retry(a_ticket(), a_work(payload=task), 60, Fault(Fate.LATER, "flaky", "try again"))
    StageRunner(none, none, sink, none, none, none, watch, letters).perform(command)
    assert sent == [letters.retry(command), *([hint] if hint else [])]


def test_a_retry_copy_is_the_original_in_the_same_partition_of_the_retry_topic() -> None:
    task = a_task(key=b"\x00key", headers=THEIRS)
    copy = retried(task)
    assert (copy.topic, copy.partition) == ("prompts.cleaned.retry.60s", task.partition)
    assert (copy.key, copy.value) == (task.key, task.value)
    assert copy.headers[: len(THEIRS)] == THEIRS
    assert copy.timestamp_ms is None  # it is due so long after it was appended


def test_a_retry_copy_says_which_try_it_is_and_where_it_came_from() -> None:
    task = a_task(offset=41, timestamp_ms=1_700_000_000_000)
    copy = retried(task, try_number=2, crashes=Crashes(3, 1), num_diverted=1)
    origin = Origin("prompts.cleaned", 13, 41, 1_700_000_000_000, 2, Crashes(3, 1), 1)
    assert origin_of(as_delivered(copy, 7, 5)) == origin
    elsewhere = replace(as_delivered(copy, 7, 5), partition=2)  # forwarded, being misplaced
    assert origin_of(elsewhere) == origin
    assert texts(dead(elsewhere).headers, DLT_PREFIX)["partition"] == "13"
    assert texts(copy.headers, RETRY_PREFIX)["reason"] == "flaky"


def test_a_copy_of_a_copy_has_its_headers_once() -> None:
    first = retried(a_task(offset=41, headers=THEIRS), try_number=2)
    second = retried(as_delivered(first, 7, 5), try_number=3)
    names = [name for name, _ in second.headers]
    assert names.count("reel-retry-try") == 1
    assert origin_of(as_delivered(second, 8, 6)).try_number == 3
    assert origin_of(as_delivered(second, 8, 6)).offset == 41


def test_a_record_that_was_never_retried_is_its_own_origin() -> None:
    task = a_task(offset=3, headers=THEIRS)
    assert origin_of(task) == Origin(task.topic, task.partition, 3, task.timestamp_ms)


def test_headers_that_are_no_numbers_count_as_none() -> None:
    odd: Headers = (
        ("reel-retry-try", b"many"), ("reel-retry-crashes", b"-1"),
        ("reel-retry-crashes-alone", b"9" * 30), ("reel-retry-origin-offset", b"\xff"),
        ("reel-retry-origin-timestamp-ms", None), ("reel-retry-origin-partition", b"9" * 12),
    )  # fmt: skip
    task = a_task(offset=3, headers=odd, topic="prompts.cleaned.retry.60s")
    assert origin_of(task) == Origin(task.topic, task.partition, 3, task.timestamp_ms)


def test_a_stranger_cannot_say_that_a_record_was_retried() -> None:
    headers: Headers = (("reel-retry-try", b"4"), ("reel-retry-crashes-alone", b"3"))
    task = a_task(offset=3, headers=headers)
    assert origin_of(task) == Origin(task.topic, task.partition, 3, task.timestamp_ms)
    assert dead(task).headers[:2] == headers, "they are the original's, and stay"


# ---- dead letters


def test_a_dead_letter_is_the_original_in_the_same_partition_with_its_timestamp() -> None:
    task = a_task(key=b"\x00key", value=b"\xff not ours", headers=THEIRS)
    letter = dead(task)
    assert (letter.topic, letter.partition) == ("prompts.cleaned.dlt", task.partition)
    assert (letter.key, letter.value) == (b"\x00key", b"\xff not ours")
    assert letter.headers[: len(THEIRS)] == THEIRS
    assert letter.timestamp_ms == task.timestamp_ms


def test_headers_say_where_it_came_from_and_why_it_is_here() -> None:
    fault = a_fault(reason_code="out_of_memory", evidence=(("rows", "8"),))
    task = a_task(offset=41, timestamp_ms=1_700_000_000_000)
    letter = dead(task, fault, run=2, try_number=3, crashes=Crashes(2, 1))
    assert texts(letter.headers, DLT_PREFIX) == {
        "stage": "sampler",
        "topic": "prompts.cleaned",
        "partition": "13",
        "offset": "41",
        "timestamp-ms": "1700000000000",
        "run": "2",
        "try": "3",
        "crashes": "2",
        "crashes-alone": "1",
        "fault-class": "dead_letter",
        "reason-code": "out_of_memory",
        "message": "it is bad",
        "worker": "worker-1",
        "versions": "torch 9.9",
        "evidence-rows": "8",
    }


def test_the_dead_letter_of_a_retry_copy_is_that_of_the_original() -> None:
    task = a_task(offset=41, timestamp_ms=1_700_000_000_000, headers=THEIRS)
    copy = as_delivered(retried(task, try_number=4), 7, 1_800_000_000_000)
    letter = dead(copy, try_number=4)
    found = texts(letter.headers, DLT_PREFIX)
    assert (found["topic"], found["offset"], found["try"]) == ("prompts.cleaned", "41", "4")
    assert letter.timestamp_ms == 1_700_000_000_000
    assert texts(letter.headers, RETRY_PREFIX) == {}
    assert letter.headers[: len(THEIRS)] == THEIRS


def test_tools_that_know_springs_headers_find_them() -> None:
    headers = dict(dead(a_task(offset=41, timestamp_ms=1_700_000_000_000)).headers)
    assert headers["kafka_dlt-original-topic"] == b"prompts.cleaned"
    assert headers["kafka_dlt-original-partition"] == b"\x00\x00\x00\x0d"
    assert headers["kafka_dlt-original-offset"] == bytes(7) + b"\x29"
    timestamp = headers["kafka_dlt-original-timestamp"]
    assert timestamp is not None
    assert int.from_bytes(timestamp, "big") == 1_700_000_000_000


def test_a_long_message_is_cut_so_that_the_letter_fits_its_topic() -> None:
    letter = dead(a_task(), a_fault(message="é" * 5000))
    assert texts(letter.headers, DLT_PREFIX)["message"] == "é" * 1000


def test_a_record_without_key_bytes_and_time_can_be_a_dead_letter() -> None:
    letter = dead(a_task(key=None, value=None, timestamp_ms=-1))
    assert (letter.key, letter.value, letter.timestamp_ms) == (None, None, 0)


def test_an_original_that_lies_in_a_blob_is_not_in_its_dead_letter() -> None:
    blob: Headers = (("reel-dlt-blob-uri", b"file:///blob"),)
    letter = dead(a_task(headers=THEIRS), blob=blob)
    assert letter.value is None
    assert letter.headers[-1:] == blob
    assert "ce_id" not in dict(letter.headers)


@pytest.mark.parametrize(("size", "is_kept"), [(64 * 1024, True), (64 * 1024 + 1, False)])
def test_beside_a_blob_a_key_stays_unless_it_may_be_what_is_too_large(
    size: int, is_kept: bool
) -> None:
    task = a_task(key=b"k" * size, headers=THEIRS)
    assert dead(task).key == task.key
    letter = dead(task, blob=(("reel-dlt-blob-uri", b"file:///blob"),))
    assert letter.key == (task.key if is_kept else None)


def test_a_packed_original_holds_all_of_it() -> None:
    task = a_task(offset=41, key=None, value=b"\xff", headers=THEIRS)
    assert json.loads(pack_original(task)) == {
        "topic": "prompts.cleaned",
        "partition": 13,
        "offset": 41,
        "timestamp_ms": task.timestamp_ms,
        "key": None,
        "value": base64.b64encode(b"\xff").decode(),
        "headers": [["ce_id", "MQ=="], ["odd", None], ["ce_id", "Mg=="]],
    }
