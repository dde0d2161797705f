"""A client that shares none of our code: aiokafka, fastavro, the `.avsc` files, any partitioner."""

from __future__ import annotations

import asyncio
import hashlib
import io
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import av
import fastavro
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from fastavro.schema import fingerprint, load_schema, to_parsing_canonical_form

from tests.e2e.conftest import Pipeline

pytestmark = [pytest.mark.kafka, pytest.mark.torch]

SCHEMAS = Path(__file__).parents[2] / "schemas"
JOBS = 4


def _header(schema: Any) -> bytes:
    crc = fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO")
    return b"\xc3\x01" + bytes.fromhex(crc)


def _write(schema: Any, value: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    out.write(_header(schema))
    fastavro.schemaless_writer(out, schema, value)
    return out.getvalue()


async def _submit_and_hear(bootstrap: str, requests: dict[str, dict[str, Any]]) -> dict[str, Any]:
    request_schema = load_schema(str(SCHEMAS / "GenerationRequest.avsc"))
    done_schema = load_schema(str(SCHEMAS / "VideoDone.avsc"))
    consumer = AIOKafkaConsumer(
        "videos.done", bootstrap_servers=bootstrap, group_id=f"foreign-{uuid.uuid4()}",
        auto_offset_reset="earliest", isolation_level="read_committed",
    )  # fmt: skip
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all")
    heard: dict[str, Any] = {}
    await consumer.start()
    await producer.start()
    try:
        for job_id, request in requests.items():
            await producer.send_and_wait(
                "requests", _write(request_schema, request), key=job_id.encode()
            )
        async for record in consumer:
            assert record.value is not None
            body = io.BytesIO(record.value)
            assert body.read(10) == _header(done_schema)
            done: Any = fastavro.schemaless_reader(body, done_schema, None)
            if done["job_id"] in requests:
                assert done["job_id"] not in heard, "one VideoDone for each job"
                heard[done["job_id"]] = (done, record)
            if heard.keys() == requests.keys():
                return heard
    finally:
        await producer.stop()
        await consumer.stop()
    raise AssertionError("the log ended")


def test_plain_avro_and_kafka_are_enough_to_get_a_video(pipeline: Pipeline) -> None:
    now = datetime.now(UTC)
    requests = {
        job_id: {
            "job_id": job_id,
            "tenant_id": "foreign",
            "prompt": "a red circle moving right",
            "created_at": now,
            "num_frames": 9,
            "width_px": 64,
            "height_px": 48,
            "fps": 8,
            "num_inference_steps": 2,
            "guidance_scale": 3.0,
            "seed": 7,
        }
        for job_id in (uuid.uuid4().hex for _ in range(JOBS))
    }
    heard = asyncio.run(
        asyncio.wait_for(_submit_and_hear(pipeline.bootstrap, requests), timeout=120)
    )
    for job_id, (done, record) in heard.items():
        assert done["status"] == "completed"
        assert done["reason_code"] is None
        assert (done["tenant_id"], done["tier"], done["run"]) == ("foreign", "free", 1)
        assert (done["num_frames"], done["width_px"], done["height_px"]) == (9, 64, 48)
        assert (done["fps"], done["seed"]) == (8, 7)
        assert done["partition"] == record.partition
        assert done["partition"] % 3 == 2, "the free tier's stripe"
        assert done["created_at"] == now.replace(microsecond=now.microsecond)
        assert now < done["finished_at"] <= datetime.now(UTC)
        assert [each["stage"] for each in done["timings"]] == [
            "prompt", "sampler", "decoder", "finisher",
        ]  # fmt: skip
        assert done["cost_gpu_s"] > 0
        assert done["ended_by"] == "finisher"
        headers = {name: value.decode() for name, value in record.headers}
        assert headers["ce_id"] == f"{job_id}.1.finisher.completed"
        assert headers["ce_subject"] == job_id
        assert headers["traceparent"].startswith("00-")
        _check_video(done["video"], done)
        thumbnail = Path(unquote(urlsplit(done["thumbnail"]["uri"]).path)).read_bytes()
        assert done["thumbnail"]["media_type"] == "image/jpeg"
        assert thumbnail.startswith(b"\xff\xd8")


def _check_video(ref: dict[str, Any], done: dict[str, Any]) -> None:
    body = Path(unquote(urlsplit(ref["uri"]).path)).read_bytes()
    assert ref["media_type"] == "video/mp4"
    assert (hashlib.sha256(body).hexdigest(), len(body)) == (ref["sha256"], ref["size_bytes"])
    with av.open(io.BytesIO(body), "r") as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.average_rate == done["fps"]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(frames) == done["num_frames"]
    assert {frame.shape for frame in frames} == {(done["height_px"], done["width_px"], 3)}
