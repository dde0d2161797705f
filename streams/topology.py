"""THE table: which stage reads which topic and writes which. Everything else is derived from it.

    requests -> prompts.cleaned -> latents.ready -> frames.decoded -> videos.done
         prompt          sampler          decoder         finisher        subscriber

A stage is a consumer group, `reel.<stage>`, on its own topic. From `prompts.cleaned` on a job keeps
its partition number. Topics, groups, dead-letter and retry topics, the CLI, metric labels and
compose services are derived from or checked against this file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from schemas.records import CleanedPrompt, FramesDecoded, GenerationRequest, LatentsReady, VideoDone

DAY_MS = 24 * 3600 * 1000
RECORD_MAX_BYTES = 64 * 1024  # what we ever write; claim checks carry the rest (DESIGN 2)
TOPIC_MAX_BYTES = 2 * RECORD_MAX_BYTES  # what a broker takes: a record and its headers


@dataclass(frozen=True, slots=True)
class Stage:
    """A consumer group on its own topic."""

    name: str
    reads: str
    reads_record: type
    writes: str | None
    writes_record: type | None
    does: str

    @property
    def group(self) -> str:
        """The Kafka consumer group."""
        return f"reel.{self.name}"

    @property
    def is_worker(self) -> bool:
        """Whether `python -m workers.main <name>` runs it; subscribers bring their own process."""
        return self.writes is not None

    @property
    def dead_letters(self) -> str:
        """The topic that takes what this stage can never work."""
        return dead_letter_topic(self.reads)

    def also_reads(self, delays_s: Sequence[int]) -> tuple[str, ...]:
        """What its group reads besides its topic: what was to be worked later."""
        parked = (REQUESTS_DEFERRED,) if self.reads == REQUESTS else ()
        return (*self.retries(delays_s), *parked)

    def retries(self, delays_s: Sequence[int]) -> tuple[str, ...]:
        """The delayed topics of this stage, in the order of the delays (REEL_RETRY_DELAYS_S).

        None for a subscriber: its retries are its own matter.
        """
        if not self.is_worker:
            return ()
        return tuple(retry_topic(self.reads, delay_s) for delay_s in delays_s)


STAGES = (
    Stage("prompt", "requests", GenerationRequest, "prompts.cleaned", CleanedPrompt,
          "checks, normalises and encodes the prompt"),
    Stage("sampler", "prompts.cleaned", CleanedPrompt, "latents.ready", LatentsReady,
          "denoises latents (GPU)"),
    Stage("decoder", "latents.ready", LatentsReady, "frames.decoded", FramesDecoded,
          "decodes latents to frames (VAE)"),
    Stage("finisher", "frames.decoded", FramesDecoded, "videos.done", VideoDone,
          "muxes MP4 and thumbnail, ends the job"),
    Stage("subscriber", "videos.done", VideoDone, None, None,
          "hears how every job ended"),
)  # fmt: skip

REQUESTS_DEFERRED = "requests.deferred"  # parked: over their tenants' quotas
REQUESTS, VIDEOS_DONE, JOB_EVENTS = "requests", "videos.done", "jobs.events"
JOB_CONTROL, STAGE_CONTROL = "jobs.control", "stages.control"


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as it must be on the broker. `num_partitions` None means the pipeline's N."""

    name: str
    kind: Literal["stage", "retry", "parked", "dead letter", "event", "control", "state"]
    num_partitions: int | None = None
    config: Mapping[str, str] = field(default_factory=dict)


def dead_letter_topic(topic: str) -> str:
    """Where a topic's hopeless records go."""
    return f"{topic}.dlt"


def retry_topic(topic: str, delay_s: int) -> str:
    """Where a topic's records wait for another try."""
    return f"{topic}.retry.{delay_s}s"


def stage(name: str) -> Stage:
    """The stage of that name.

    Raises:
        KeyError: there is none.
    """
    return {each.name: each for each in STAGES}[name]


def worker_stages() -> tuple[Stage, ...]:
    """The stages that `reel up` runs, in pipeline order."""
    return tuple(each for each in STAGES if each.is_worker)


def topics(retention_ms: int, retry_delays_s: Sequence[int]) -> tuple[Topic, ...]:
    """Every topic of the pipeline, in the order in which people look for them."""
    return tuple(_topics(retention_ms, retry_delays_s))


def _topics(retention_ms: int, retry_delays_s: Sequence[int]) -> Iterator[Topic]:
    # By time alone: a bound by size would break what retention promises (DESIGN 2).
    lasting = {"retention.ms": str(retention_ms), "retention.bytes": "-1"}
    kept = {"cleanup.policy": "delete", **lasting}
    small = {**kept, "max.message.bytes": str(TOPIC_MAX_BYTES)}
    # A dead letter is the original plus our headers: it gets 64 KiB more than its source.
    wide = {**kept, "max.message.bytes": str(TOPIC_MAX_BYTES + 64 * 1024)}
    # Due is append time + delay, by one clock: the broker's, not that of whoever had the copy.
    delayed = {**wide, "message.timestamp.type": "LogAppendTime"}
    folded = {"cleanup.policy": "compact", "max.message.bytes": str(TOPIC_MAX_BYTES)}
    for each in STAGES:
        yield Topic(each.reads, "stage", config=small)
        if each.is_worker:
            for name in each.retries(retry_delays_s):
                yield Topic(name, "retry", config=delayed)
            yield Topic(each.dead_letters, "dead letter", config=wide)
    yield Topic(REQUESTS_DEFERRED, "parked", config=wide)
    yield Topic(JOB_EVENTS, "event", config=small)
    yield Topic(
        JOB_CONTROL, "control", 1,
        {"cleanup.policy": "compact,delete", **lasting, "max.message.bytes": str(TOPIC_MAX_BYTES)},
    )  # fmt: skip
    yield Topic(STAGE_CONTROL, "control", 1, folded)
    yield Topic("jobs.state", "state", config=folded)
    yield Topic("models.cached", "state", 1, folded)
