"""`reel dlt` and `reel cancel` on a real broker and a real store."""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from schemas.records import CleanedPrompt, GenerationRequest, JobControl
from streams.blobs.base import open_store
from streams.blobs.fences import Fences
from streams.claims import claim_request
from streams.client import BrokerUnreachable, Client, Connection
from streams.client.dead_letters import DeadLetter, read_dead_letter, read_dead_letters
from streams.client.ids import issuer
from streams.kafka.admin import apply_topics
from streams.local.embedded import EmbeddedKafka
from streams.settings import Settings
from streams.topology import JOB_CONTROL, REQUESTS, VIDEOS_DONE, stage, worker_stages
from tests.builders import a_cleaned_prompt, a_job, a_request
from tests.command_line import Reel, command_line
from tests.contract.client_rig import CODEC, NUM_PARTITIONS, a_done, produce, records_of

pytestmark = pytest.mark.kafka

PLACE = 2


@pytest.fixture
def bootstrap(tmp_path: Path) -> Iterator[str]:
    with EmbeddedKafka(tmp_path / "broker") as broker:
        apply_topics(Settings(bootstrap=broker.bootstrap, partitions=NUM_PARTITIONS))
        yield broker.bootstrap


@pytest.fixture
def fences(tmp_path: Path) -> Fences:
    return Fences(open_store((tmp_path / "blobs").as_uri()))


@pytest.fixture
def reel(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    bootstrap: str,
) -> Reel:
    """Knows the broker and the store."""
    reel = command_line(monkeypatch, capsys, tmp_path / "home")
    monkeypatch.setenv("REEL_BOOTSTRAP", bootstrap)
    monkeypatch.setenv("REEL_BLOBS", (tmp_path / "blobs").as_uri())
    return reel


def ours(**findings: str) -> list[tuple[str, bytes]]:
    return [
        (f"reel-dlt-{name.replace('_', '-')}", text.encode()) for name, text in findings.items()
    ]


def bury(bootstrap: str, at: str, *letters: tuple[bytes | None, list[tuple[str, bytes]]]) -> None:
    """Put letters into partition PLACE of a stage's dead-letter topic."""

    async def produce_them() -> None:
        producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all")
        await producer.start()
        try:
            for value, headers in letters:
                await producer.send_and_wait(
                    stage(at).dead_letters, value, partition=PLACE, headers=headers
                )
        finally:
            await producer.stop()

    asyncio.run(produce_them())


def a_failed_prompt(
    fences: Fences, job_id: str, *, tenant: str = "acme", run: int = 1, status: str = "failed"
) -> bytes:
    """A CleanedPrompt of a job whose run has ended so."""
    request = a_request(job_id=job_id, tenant_id=tenant)
    claim_request(fences, request, CODEC.encode(request), PLACE)
    done = replace(a_done(job_id, status, run=run), tenant_id=tenant)
    fences.end(tenant, job_id, run, CODEC.encode(done))
    return CODEC.encode(a_cleaned_prompt(job=a_job(job_id=job_id, tenant_id=tenant, run=run)))


def rows_of(text: str) -> list[list[str]]:
    """The table without its heading and its times."""
    rows = [line.split("\t") for line in text.splitlines()[1:]]
    return [[each for number, each in enumerate(row) if number != 1] for row in rows]


def requests_of(bootstrap: str) -> list[GenerationRequest]:
    found = asyncio.run(records_of(bootstrap, REQUESTS, PLACE))
    return [CODEC.decode(record.value, GenerationRequest) for record in found]


def test_letters_are_listed_with_what_became_of_their_jobs(
    reel: Reel, bootstrap: str, fences: Fences
) -> None:
    redriven = a_failed_prompt(fences, "b")
    fences.claim_run("acme", "b", 2, b"record")
    bury(
        bootstrap,
        "sampler",
        (a_failed_prompt(fences, "a"), ours(reason_code="oom", **{"try": "3"})),
        (redriven, ours(reason_code="oom")),
        (a_failed_prompt(fences, "c", status="cancelled"), ours(reason_code="oom")),
        (b"no record", ours(reason_code="undecodable")),
    )
    run = reel("dlt", "list")
    assert (run.returncode, run.stderr) == (0, "")
    assert rows_of(run.stdout) == [
        ["sampler/2/0", "oom", "a", "acme", "1", "3", "open"],
        ["sampler/2/1", "oom", "b", "acme", "1", "-", "redriven as run 2"],
        ["sampler/2/2", "oom", "c", "acme", "1", "-", "cancelled"],
        ["sampler/2/3", "undecodable", "-", "-", "-", "-", "no job"],
    ]


def test_a_list_is_narrowed_and_keeps_the_newest(
    reel: Reel, bootstrap: str, fences: Fences
) -> None:
    for number in range(3):
        bury(bootstrap, "sampler", (a_failed_prompt(fences, f"a{number}"), ours(reason_code="oom")))
    bury(bootstrap, "sampler", (a_failed_prompt(fences, "b", tenant="umbrella"), ours()))
    bury(bootstrap, "prompt", (CODEC.encode(a_request(job_id="p")), ours(reason_code="oom")))

    def listed(*words: str) -> list[str]:
        return [row[2] for row in rows_of(reel("dlt", "list", *words).stdout)]

    assert listed("--stage", "prompt") == ["p"]
    assert listed("--tenant", "umbrella") == ["b"]
    assert listed("--stage", "sampler", "--reason", "oom") == ["a0", "a1", "a2"]
    assert len(listed("--since", "1h")) == 5
    assert listed("--since", "2100-01-01T00:00Z") == []
    run = reel("dlt", "list", "--stage", "sampler", "--limit", "2")
    assert [row[2] for row in rows_of(run.stdout)] == ["a2", "b"]
    assert run.stderr == "2 older ones are not shown: see --limit\n"


def test_a_letter_is_shown_without_the_prompt_unless_it_is_asked_for(
    reel: Reel, bootstrap: str, fences: Fences
) -> None:
    headers = [("ce_id", b"a.1.prompt.done"), *ours(reason_code="oom", evidence_rows="8")]
    bury(bootstrap, "sampler", (a_failed_prompt(fences, "a"), headers))
    run = reel("dlt", "show", "sampler/2/0")
    assert run.returncode == 0
    lines = run.stdout.splitlines()
    assert {"letter: sampler/2/0", "status: open", "reason-code: oom"} < set(lines)
    assert {"evidence-rows: 8", "header ce_id: a.1.prompt.done", "CleanedPrompt:"} < set(lines)
    shown = json.loads(run.stdout.partition("CleanedPrompt:\n")[2])
    assert shown["job"]["job_id"] == "a"
    secret = CODEC.decode(a_failed_prompt(fences, "a"), CleanedPrompt).prompt
    assert secret not in run.stdout
    assert secret in reel("dlt", "show", "sampler/2/0", "--prompt").stdout


def test_letters_of_spring_and_connect_are_shown(
    reel: Reel, bootstrap: str, fences: Fences
) -> None:
    springs = [
        ("kafka_dlt-original-topic", b"prompts.cleaned"),
        ("kafka_dlt-original-offset", struct.pack(">q", 17)),
        ("kafka_dlt-exception-fqcn", b"java.lang.IllegalStateException"),
    ]
    connects = [("__connect.errors.exception.class.name", b"DataException")]
    value = a_failed_prompt(fences, "a")
    bury(bootstrap, "sampler", (value, springs), (b"no record", connects))
    assert [row[1] for row in rows_of(reel("dlt", "list").stdout)] == [
        "java.lang.IllegalStateException",
        "DataException",
    ]
    assert "offset: 17\n" in reel("dlt", "show", "sampler/2/0").stdout
    assert "value: 9 bytes, not decoded" in reel("dlt", "show", "sampler/2/1").stdout


def test_a_letter_that_is_not_there_is_one_line(reel: Reel, bootstrap: str) -> None:
    for words in (["show"], ["redrive"]):
        for address in ("sampler/2/0", "sampler/99/0"):
            run = reel("dlt", *words, address)
            assert (run.returncode, run.stdout) == (1, "")
            assert run.stderr == f"reel: no dead letter {address}\n"


def test_one_letter_is_redriven_once_however_often_it_is_asked_for(
    reel: Reel, bootstrap: str, fences: Fences
) -> None:
    bury(bootstrap, "sampler", (a_failed_prompt(fences, "a"), ours(reason_code="oom")))
    dry = reel("dlt", "redrive", "sampler/2/0", "--dry-run")
    assert (dry.returncode, dry.stdout) == (0, "a\tacme\trun 2 would be begun\n")
    assert requests_of(bootstrap) == []
    assert fences.latest_run("acme", "a") == 1
    first = reel("dlt", "redrive", "sampler/2/0", REEL_DEADLINE_S="600")
    assert (first.returncode, first.stdout) == (0, "a\tacme\trun 2 begun\n")
    (request,) = requests_of(bootstrap)
    assert (request.job_id, request.run) == ("a", 2)
    assert request.deadline is not None
    assert (request.deadline - request.created_at).total_seconds() == 600.0
    fences.end("acme", "a", 2, CODEC.encode(a_done("a", "failed", run=2)))
    again = reel("dlt", "redrive", "sampler/2/0")
    assert (again.returncode, again.stdout) == (
        0,
        "a\tacme\tleft alone: run 2 was begun before and failed\n",
    )
    assert reel("dlt", "redrive", "a", "--tenant", "acme").stdout == "a\tacme\trun 3 begun\n"
    assert [each.run for each in requests_of(bootstrap)] == [2, 3]


def test_what_can_never_be_redriven_says_so_with_exit_code_1(
    reel: Reel, bootstrap: str, fences: Fences
) -> None:
    bury(
        bootstrap,
        "sampler",
        (b"no record", ours()),
        (a_failed_prompt(fences, "a", status="completed"), ours()),
    )
    nobody = reel("dlt", "redrive", "sampler/2/0")
    assert (nobody.returncode, nobody.stdout) == (
        1,
        "sampler/2/0\t-\tleft alone: no job of its own\n",
    )
    final = reel("dlt", "redrive", "sampler/2/1")
    assert (final.returncode, final.stdout) == (1, "a\tacme\tleft alone: completed is final\n")
    unknown = reel("dlt", "redrive", "who")
    assert (unknown.returncode, unknown.stderr) == (1, "reel: no job who\n")


def test_a_filter_redrives_what_it_means_and_each_job_once(
    reel: Reel, bootstrap: str, fences: Fences
) -> None:
    twice = a_failed_prompt(fences, "a")
    oom = ours(reason_code="oom")
    bury(
        bootstrap,
        "sampler",
        (twice, oom),
        (twice, oom),
        (a_failed_prompt(fences, "b"), ours(reason_code="input_lost")),
        (a_failed_prompt(fences, "c", status="completed"), oom),
        (b"no record", oom),
    )
    silent = reel("dlt", "redrive", "--reason", "oom")
    assert (silent.returncode, silent.stdout) == (2, "")
    assert silent.stderr == "reel: whoever redrives many must say for the record --why\n"
    assert requests_of(bootstrap) == []
    run = reel("dlt", "redrive", "--reason", "oom", "--rate", "50/s", "--why", "more memory")
    assert (run.returncode, run.stderr) == (0, "1 redriven\n")
    assert run.stdout.splitlines() == [
        "a\tacme\trun 2 begun",
        "c\tacme\tleft alone: completed is final",
        "sampler/2/4\t-\tleft alone: no job of its own",
    ]
    rest = reel("dlt", "redrive", "--all", "--why", "the rest")
    assert rest.stdout.splitlines()[:2] == ["a\tacme\trun 2 sent again", "b\tacme\trun 2 begun"]
    assert len({each.job_id for each in requests_of(bootstrap)}) == 2
    assert fences.latest_run("acme", "a") == fences.latest_run("acme", "b") == 2
    orders = [line.split("\t") for line in reel("dlt", "orders").stdout.splitlines()[1:]]
    assert [order[3:] for order in orders] == [
        ["rate=50/s reason=oom", "1", "1", "done", "more memory"],
        ["all=yes", "1", "2", "done", "the rest"],
    ]
    assert all(order[2] == issuer() for order in orders)
    one = reel("dlt", "orders", orders[0][0])
    assert one.stdout.splitlines()[2:] == [
        "a\tacme\trun 2 begun",
        "c\tacme\tleft alone: completed is final",
    ]
    assert f"order {orders[0][0]}: more memory\n" in reel("dlt", "show", "sampler/2/0").stdout
    nobody = reel("dlt", "orders", "who")
    assert (nobody.returncode, nobody.stderr) == (1, "reel: no order who\n")


def test_a_rate_keeps_runs_apart(reel: Reel, bootstrap: str, fences: Fences) -> None:
    for number in range(4):
        bury(bootstrap, "sampler", (a_failed_prompt(fences, f"a{number}"), ours(reason_code="oom")))
    begun_s = time.monotonic()
    run = reel("dlt", "redrive", "--all", "--rate", "5/s", "--why", "gently")
    took_s = time.monotonic() - begun_s
    assert run.stderr == "4 redriven\n"
    assert took_s >= 0.79  # no bound on how slow it may be: sleeps are never shorter than told


def test_a_dry_run_and_what_finds_nothing_leave_no_record(
    reel: Reel, bootstrap: str, fences: Fences
) -> None:
    bury(bootstrap, "sampler", (a_failed_prompt(fences, "a"), ours(reason_code="oom")))
    reel("dlt", "redrive", "--all", "--dry-run")
    reel("dlt", "redrive", "--reason", "none", "--why", "to see")
    assert reel("dlt", "orders").stdout.splitlines()[1:] == []


def test_an_order_that_was_interrupted_says_by_what(
    reel: Reel, bootstrap: str, fences: Fences, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: Any, **__: Any) -> None:
        raise BrokerUnreachable("no broker answers")

    bury(bootstrap, "sampler", (a_failed_prompt(fences, "a"), ours(reason_code="oom")))
    monkeypatch.setattr(Client, "redrive", refuse)
    assert reel("dlt", "redrive", "--all", "--why", "now").returncode == 1
    (order,) = reel("dlt", "orders").stdout.splitlines()[1:]
    assert order.split("\t")[3:] == ["all=yes", "0", "0", "no broker answers", "now"]


def test_letters_are_read_to_the_end_that_was_there(bootstrap: str) -> None:
    """And one by one; topics without any end at once."""
    connection = Connection(bootstrap)
    topics = [each.dead_letters for each in worker_stages()]
    bury(bootstrap, "decoder", *((b"%d" % number, []) for number in range(250)))

    async def read() -> list[DeadLetter]:
        found: list[DeadLetter] = []
        async for letter in read_dead_letters(connection, topics):
            if not found:
                await asyncio.to_thread(bury, bootstrap, "decoder", (b"late", []))
            found.append(letter)
        return found

    found = asyncio.run(read())
    assert [letter.value for letter in found] == [b"%d" % number for number in range(250)]
    one = asyncio.run(read_dead_letter(connection, stage("decoder").dead_letters, PLACE, 250))
    assert one is not None
    assert (one.value, one.address) == (b"late", "decoder/2/250")


def test_a_cancel_is_said_and_lies_on_its_topic(reel: Reel, bootstrap: str) -> None:
    def wishes() -> list[Any]:
        return asyncio.run(records_of(bootstrap, JOB_CONTROL, 0))

    unknown = reel("cancel", "a")
    assert (unknown.returncode, unknown.stderr) == (1, "reel: no job a\n")
    asyncio.run(produce(bootstrap, VIDEOS_DONE, a_done("a", "failed")))
    ended = reel("cancel", "a")
    assert (ended.returncode, ended.stderr) == (1, "reel: job a has ended already: failed\n")
    assert wishes() == []
    run = reel("cancel", "a", "--run", "2")
    assert (run.returncode, run.stderr) == (0, "a: cancel of run 2 is on its way\n")
    (wish,) = wishes()
    assert wish.key == b"a/2/cancel"
    assert CODEC.decode(wish.value, JobControl).tenant_id == "acme"
