"""Heads that hang: their partitions' offset maps fill, they step aside, and the rest goes on."""

from __future__ import annotations

import re
import time
from functools import partial
from urllib.request import urlopen

from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

from streams.core.offset_map import BACK_PRESSURE_SPAN
from streams.local.processes import LOOPBACK
from streams.topology import Stage, worker_stages
from tests.chaos.crew import Member
from tests.chaos.findings import RAW
from tests.chaos.ledger import in_hand, set_held
from tests.chaos.log_faults import committed
from tests.chaos.scene import FIRES_WITHIN_S, Scene

WITHIN_S = 90.0
GAP = BACK_PRESSURE_SPAN + 500
_BATCH = 1_000  # offsets of a gap that are under way to brokers at a time
_PORT = re.compile(r'"metrics_port": (\d+)')
_DIVERTED = re.compile(r'^reel_retries_total\{.*reason_code="head_of_line".*\} ([0-9.]+)$', re.M)

#: A topic's partition.
Place = tuple[str, int]


def hang_at_the_head(scene: Scene) -> None:
    """In every stage a job hangs inside the engine while its partition's offset map fills.

    The offsets behind it are those of aborted transactions: readers of what is committed never see
    these, and one record beyond such a gap is as far away as it is beyond so many jobs, which would
    take an hour here. The head must go to the retry topic, and be metered, and its partition's
    offset pass it, while it hangs.
    """
    set_held(scene.folder, True)
    try:
        _hang(scene)
    finally:
        set_held(scene.folder, False)


def _hang(scene: Scene) -> None:
    heads: dict[Stage, str] = {}
    for stage in reversed(worker_stages()):  # the last first: who hangs lets nothing through
        job_id = heads[stage] = scene.submit(f"held.{stage.name}.0")
        has_begun = scene.until(partial(hangs, scene, stage, job_id), FIRES_WITHIN_S)
        assert has_begun, f"{job_id} was never begun"
    places = {
        stage: (stage.reads, scene.submitter.partition(job_id)) for stage, job_id in heads.items()
    }
    gaps: dict[Place, int] = {}
    scene.aside(lambda: leave_gaps(scene, list(places.values()), gaps))
    for stage, (topic, partition) in places.items():
        scene.submitter.put(topic, partition, f"{RAW}behind-{stage.name}{scene.suffix}", b"none")

    def left() -> list[str]:
        """Stages whose groups would begin again with what lies before the gap."""
        return [
            stage.name
            for stage, place in places.items()
            if dict(committed(scene, stage))[place] < gaps[place]
        ]

    has_gone_on = scene.until(lambda: not left(), WITHIN_S)
    assert has_gone_on, f"heads that hang hold up all behind them: {left()}"
    for stage in heads:
        num_diverted = sum(map(diverted, scene.crew.of(stage.name)))
        assert num_diverted >= 1, f"{stage.name}: no meter tells of a head that stepped aside"


def hangs(scene: Scene, stage: Stage, job_id: str) -> bool:
    """Whether a worker of that stage has begun that job."""
    entries = scene.ledger.entries()
    return any(job_id in in_hand(entries, each.pids[-1]) for each in scene.crew.of(stage.name))


def leave_gaps(scene: Scene, places: list[Place], gaps: dict[Place, int]) -> None:
    """On each of these partitions so many records that are never committed; `gaps`: the first.

    Jobs that come meanwhile lie between them.
    """

    def heard(error: KafkaError | None, message: Message) -> None:
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        if error is None and topic is not None and partition is not None and offset is not None:
            gaps.setdefault((topic, partition), offset)

    name = f"gap{scene.suffix}"
    producer = Producer({"bootstrap.servers": scene.cluster.bootstrap, "transactional.id": name})
    producer.init_transactions(WITHIN_S)
    producer.begin_transaction()
    for _ in range(GAP // _BATCH + 1):
        for topic, partition in places:
            for _ in range(_BATCH):
                producer.produce(topic, b"", name, partition, heard)
        producer.flush(WITHIN_S)  # what an abort finds in the queue is never sent
    producer.abort_transaction(WITHIN_S)
    await_markers(scene, places, gaps)


def await_markers(scene: Scene, places: list[Place], gaps: dict[Place, int]) -> None:
    """Return when readers of what is committed come beyond the gaps.

    A marker of an abort is written behind its producer's back, and one at a log's end would never
    be committed by who sees records alone: so what comes behind the gap waits for it.
    """
    give_up_s = time.monotonic() + WITHIN_S
    kinds = {"group.id": f"gap{scene.suffix}", "isolation.level": "read_committed"}
    reader = Consumer({"bootstrap.servers": scene.cluster.bootstrap, **kinds})
    try:
        for place in places:
            while reader.get_watermark_offsets(TopicPartition(*place), WITHIN_S)[1] <= gaps[place]:
                assert time.monotonic() < give_up_s, f"{place} waits for the end of a transaction"
                time.sleep(0.1)
    finally:
        reader.close()


def diverted(member: Member) -> float:
    """How many heads that worker says that it has sent aside, in this life."""
    port = _PORT.findall(member.log_path.read_text())[-1]
    with urlopen(f"http://{LOOPBACK}:{port}/metrics", timeout=10) as page:
        found = _DIVERTED.search(page.read().decode())
    return 0.0 if found is None else float(found[1])
