"""The one table says a whole pipeline."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import pytest

from schemas.codec import SCHEMAS
from streams import topology
from streams.topology import STAGES, Topic, topics, worker_stages

DELAYS_S = (10, 60, 600)


def all_topics(retention_ms: int = 1_000_000) -> tuple[Topic, ...]:
    return topics(retention_ms, DELAYS_S)


def by_name() -> dict[str, Topic]:
    return {topic.name: topic for topic in all_topics()}


def test_what_a_stage_writes_is_what_the_next_one_reads() -> None:
    for each, following in pairwise(STAGES):
        assert (each.writes, each.writes_record) == (following.reads, following.reads_record)
    assert STAGES[-1].writes is None


def test_the_workers_are_the_four_stages_that_write() -> None:
    assert [stage.name for stage in worker_stages()] == ["prompt", "sampler", "decoder", "finisher"]
    assert [stage.group for stage in STAGES] == [f"reel.{stage.name}" for stage in STAGES]


def test_every_record_type_has_its_schema() -> None:
    for stage in STAGES:
        for record in (stage.reads_record, stage.writes_record):
            if record is not None:
                schema = json.loads((SCHEMAS / f"{record.__name__}.avsc").read_text())
                assert schema["name"] == record.__name__


def test_topic_names_are_unique_and_fit_kafka() -> None:
    names = [topic.name for topic in all_topics()]
    assert len(set(names)) == len(names)
    # Kafka's metric names fold "." into "_": two topics that differ only in that would clash.
    assert len({name.replace(".", "_") for name in names}) == len(names)
    assert all(re.fullmatch(r"[a-z0-9.]{1,200}", name) for name in names)


def test_each_worker_stage_has_a_retry_topic_a_delay_and_one_for_dead_letters() -> None:
    kinds = {topic.name: topic.kind for topic in all_topics()}
    for stage in worker_stages():
        assert kinds[stage.reads] == "stage"
        assert {kinds[name] for name in stage.retries(DELAYS_S)} == {"retry"}
        assert kinds[stage.dead_letters] == "dead letter"
    assert worker_stages()[1].retries((10, 60)) == (
        "prompts.cleaned.retry.10s",
        "prompts.cleaned.retry.60s",
    )
    assert topology.stage("subscriber").retries(DELAYS_S) == ()


def test_a_retry_is_due_by_the_brokers_clock() -> None:
    stamped = {topic.kind for topic in all_topics() if "message.timestamp.type" in topic.config}
    assert stamped == {"retry"}
    assert by_name()["requests.retry.60s"].config["message.timestamp.type"] == "LogAppendTime"
    assert worker_stages()[1].dead_letters == "prompts.cleaned.dlt"


def test_where_a_job_goes_there_are_as_many_partitions() -> None:
    for topic in all_topics():
        if topic.kind in ("stage", "retry", "dead letter", "event"):
            assert topic.num_partitions is None, topic.name


@pytest.mark.parametrize("name", ["jobs.control", "stages.control"])
def test_what_every_worker_reads_whole_is_one_compacted_partition(name: str) -> None:
    topic = by_name()[name]
    assert topic.num_partitions == 1
    assert "compact" in topic.config["cleanup.policy"]


def test_a_dead_letter_may_be_larger_than_its_source_by_64_kib() -> None:
    for stage in worker_stages():
        limits = [
            int(by_name()[name].config["max.message.bytes"])
            for name in (stage.reads, stage.dead_letters)
        ]
        assert limits[1] - limits[0] == 64 * 1024
        assert limits[0] > topology.RECORD_MAX_BYTES


def test_records_are_kept_as_long_as_asked_but_state_for_ever() -> None:
    kept = {topic.name: topic.config.get("retention.ms") for topic in all_topics(12_345)}
    assert set(kept.values()) == {"12345", None}
    assert {topic.config.get("retention.bytes") for topic in all_topics()} == {"-1", None}
    assert [name for name, ms in kept.items() if ms is None] == [
        "stages.control",
        "jobs.state",
        "models.cached",
    ]


def test_a_stage_is_found_by_its_name() -> None:
    assert topology.stage("decoder").reads == "latents.ready"
    with pytest.raises(KeyError):
        topology.stage("upscaler")
