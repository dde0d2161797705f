"""No input crashes a worker: whatever lies on a topic is worked, refused, or a letter.

The loop's own code (intake, state, letters, watch) must not raise for it at all; a stage's work may
raise, but nothing that ends the process.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, example, given, settings

from schemas.codec import Codec, UnencodableRecord
from schemas.records import BlobRef, FrameChunk, FramesDecoded, GenerationRequest, Record
from streams import topology
from streams.blobs.local import LocalStore
from streams.core import events as ev
from streams.core.limits import StageLimits
from streams.core.offset_map import OffsetMap
from streams.core.stage import StageState
from streams.engine import Task
from streams.errors import FatalError, PipelineError
from streams.intake import Intake
from streams.letters import StageLetters
from tests.builders import (
    CREATED_AT,
    DEADLINE,
    a_cleaned_prompt,
    a_frames_decoded,
    a_job,
    a_latents_ready,
    a_request,
    a_timing,
)
from workers.engine import fault_of
from workers.fenced import FencedWork, Prepared
from workers.finisher.work import FinisherWork
from workers.models.card import ModelCard
from workers.prompt.admit import AdmissionRules, admit

CODEC = Codec()
CARD = ModelCard("tiny", "0" * 16)
RULES = AdmissionRules(("enterprise", "pro", "free"), "free", None, 86_400.0)
DELAYS_S = (1, 60)
RECORDS: dict[str, Record] = {
    "prompt": a_request(),
    "sampler": a_cleaned_prompt(),
    "decoder": a_latents_ready(),
    "finisher": a_frames_decoded(),
}
NAMES = st.sampled_from(
    ["ce_id", "traceparent", "reel-retry-try", "reel-retry-crashes", "reel-retry-crashes-alone",
     "reel-retry-origin-offset", "reel-retry-origin-timestamp-ms", "reel-retry-origin-topic",
     "reel-dlt-stage", "x", ""]
)  # fmt: skip
HEADERS = st.lists(st.tuples(NAMES, st.none() | st.binary(max_size=30)), max_size=6).map(tuple)


@st.composite
def broken(draw: st.DrawFn, value: bytes) -> bytes:
    """A record's bytes with a few changes: cut, overwritten, inserted."""
    data = bytearray(value)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(["cut", "overwrite", "insert"])):
            case "cut":
                del data[at:]
            case "overwrite":
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=9))
            case _:
                data[at:at] = draw(st.binary(max_size=20))
    return bytes(data)


INTS = st.integers(-(2**31), 2**31 - 1)
TEXTS = st.text(max_size=40) | st.just("x" * 3000) | st.sampled_from(["..", "a/b", "pro", "\0"])
TIMES = st.datetimes(timezones=st.just(UTC))
REQUESTS = st.builds(
    GenerationRequest,
    job_id=TEXTS | st.just("job-1"), tenant_id=TEXTS | st.just("acme"), prompt=TEXTS,
    created_at=TIMES, negative_prompt=TEXTS, tier=st.none() | TEXTS, model=st.none() | TEXTS,
    num_frames=st.none() | INTS, width_px=st.none() | INTS, height_px=st.none() | INTS,
    fps=st.none() | INTS, num_inference_steps=st.none() | INTS,
    guidance_scale=st.none() | st.floats(), seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    deadline=st.none() | TIMES, run=INTS,
)  # fmt: skip
BLOBS = st.builds(
    BlobRef,
    uri=TEXTS, sha256=TEXTS | st.just("0" * 64), size_bytes=st.integers(-1, 2**60),
    media_type=TEXTS,
)  # fmt: skip
CLIPS = st.builds(
    FramesDecoded,
    job=st.builds(
        functools.partial(a_job, created_at=CREATED_AT, deadline=DEADLINE),
        num_frames=INTS, width_px=INTS, height_px=INTS, fps=INTS, run=st.integers(1, 3),
    ),
    chunks=st.lists(st.builds(FrameChunk, BLOBS, INTS, INTS), max_size=3).map(tuple),
)  # fmt: skip


def key_of(task: Task) -> object:
    """What the stages' own `batch_key` does without a model."""
    if isinstance(task.record, GenerationRequest):
        return admit(task.record, task.partition, CARD, RULES)
    return FinisherWork(LocalStore(Path("/nonexistent"))).batch_key(task)


def deliver(stage: topology.Stage, task: Task) -> None:
    """The way of a record through everything that belongs to the loop."""
    intake = Intake(stage, CODEC, key_of if stage.name in ("prompt", "finisher") else str, DELAYS_S)
    letters = StageLetters(stage, "worker", "versions", lambda *_: ev.Output("e", 0, b"", b"", ()))
    state = StageState(StageLimits())
    partition = ev.TopicPartition(task.topic, task.partition)
    start = ev.StartOffset(OffsetMap(0), is_committed=True)
    now_s = CREATED_AT.timestamp()
    commands = state.handle(ev.Assigned({partition: start}), now_s)
    commands += state.handle(intake(task), now_s)
    commands += state.handle(ev.Tick(), now_s) + state.handle(ev.Committed(is_ok=True), now_s)
    for each in [command for command in commands if isinstance(command, ev.Start)]:
        for ticket, _ in each.batch:
            fault = fault_of(ZeroDivisionError())
            commands += state.handle(ev.Failed(ticket, fault), now_s)
    for command in commands:
        match command:
            case ev.DeadLetter():
                check_output(letters.dead(command))
            case ev.Retry():
                check_output(letters.retry(command))
                letters.retried(command)


def check_output(output: ev.Output) -> None:
    """A producer can take it."""
    assert output.value is None or isinstance(output.value, bytes)
    assert all(isinstance(name, str) for name, _ in output.headers)
    assert all(value is None or isinstance(value, bytes) for _, value in output.headers)
    assert output.timestamp_ms is None or 0 <= output.timestamp_ms < 2**63


@pytest.mark.parametrize("stage", topology.worker_stages(), ids=lambda stage: stage.name)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_bytes_crash_the_loop(stage: topology.Stage, data: st.DataObject) -> None:
    good = CODEC.encode(RECORDS[stage.name])
    value = data.draw(st.none() | st.binary(max_size=300) | st.just(good) | broken(good))
    topic = data.draw(st.sampled_from([stage.reads, *stage.retries(DELAYS_S)]))
    task = Task(
        None, 3, value, topic, data.draw(st.integers(0, 2**62)), data.draw(st.none() | st.binary()),
        data.draw(HEADERS), data.draw(st.integers(-1, 2**60)),
    )  # fmt: skip
    deliver(stage, task)


@settings(max_examples=300, deadline=None)
@given(request=REQUESTS, headers=HEADERS)
def test_no_request_crashes_the_loop(request: GenerationRequest, headers: ev.Headers) -> None:
    try:
        value = CODEC.encode(request)
    except UnencodableRecord:
        return
    deliver(topology.stage("prompt"), Task(None, 3, value, "requests", 0, b"k", headers, 0))


@pytest.fixture(scope="module")
def store() -> Iterator[LocalStore]:
    with tempfile.TemporaryDirectory() as folder:
        yield LocalStore(Path(folder))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(record=CLIPS)
@example(record=a_frames_decoded(job=a_job(num_frames=0, width_px=-1), chunks=()))
def test_no_record_makes_a_stages_work_end_the_process(
    store: LocalStore, record: FramesDecoded
) -> None:
    try:
        value = CODEC.encode(record)
    except UnencodableRecord:
        return
    stage = topology.stage("finisher")
    deliver(stage, Task(None, 3, value, stage.reads, 0, b"k", (), 0))
    work = FinisherWork(store)
    fenced = FencedWork(work, stage, store, CODEC, lambda: datetime.now(UTC))
    task = Task(record, 3, value, stage.reads, 0, b"k")
    try:
        prepared = fenced.prepare(task)
        if isinstance(prepared, Prepared):
            (film,) = work.compute([prepared.inputs], lambda *_: None)
            fenced.complete(prepared, film, a_timing(stage="finisher"))
    except FatalError:
        raise
    except PipelineError:
        pass  # told apart by type: anything else would be tried again in vain, and fails here
