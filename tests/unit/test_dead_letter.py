"""Dead letters: the original untouched, our findings beside it."""

from __future__ import annotations

from streams import topology
from streams.core.events import Headers
from streams.dead_letter import PREFIX, dead_letter
from tests.builders import a_fault, a_task

SAMPLER = topology.stage("sampler")


def findings(headers: Headers) -> dict[str, bytes | None]:
    return {name.removeprefix(PREFIX): value for name, value in headers if name.startswith(PREFIX)}


def test_the_original_lies_untouched_in_the_same_partition() -> None:
    headers: Headers = (("ce_id", b"1"), ("odd", None), ("ce_id", b"2"))
    task = a_task(key=b"\x00key", value=b"\xff not ours", headers=headers)
    letter = dead_letter(SAMPLER, task, a_fault(), "worker-1")
    assert (letter.topic, letter.partition) == ("prompts.cleaned.dlt", task.partition)
    assert (letter.key, letter.value) == (b"\x00key", b"\xff not ours")
    assert letter.headers[: len(headers)] == headers


def test_headers_say_where_it_came_from_and_why_it_is_here() -> None:
    task = a_task(offset=41, timestamp_ms=1_700_000_000_000)
    letter = dead_letter(SAMPLER, task, a_fault(reason_code="bad_tensor"), "worker-1")
    assert findings(letter.headers) == {
        "stage": b"sampler",
        "topic": b"prompts.cleaned",
        "partition": b"13",
        "offset": b"41",
        "timestamp-ms": b"1700000000000",
        "reason-code": b"bad_tensor",
        "message": b"it is bad",
        "worker": b"worker-1",
    }


def test_a_long_message_is_cut_so_that_the_letter_fits_its_topic() -> None:
    letter = dead_letter(SAMPLER, a_task(), a_fault(message="é" * 5000), "worker-1")
    assert findings(letter.headers)["message"] == ("é" * 1000).encode()


def test_a_record_without_key_and_bytes_can_be_a_dead_letter() -> None:
    letter = dead_letter(SAMPLER, a_task(key=None, value=b""), a_fault(), "worker-1")
    assert (letter.key, letter.value) == (None, b"")
