"""Faults of what brokers keep: offsets, records, disks."""

from __future__ import annotations

import resource
from functools import partial

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from streams.errors import SettingsError
from streams.kafka.admin import outsider, partitions_of, reset_to_start
from streams.topology import Stage, stage, worker_stages
from tests.chaos.findings import records_behind
from tests.chaos.scene import Scene

WITHIN_S = 90.0
SAMPLER = stage("sampler")
NUM_WAITING = 24
_FULL_BYTES = 4096  # a file may be so large: no segment takes another record


def replay_everything(scene: Scene) -> None:
    """Every group's offsets go back to the start of the log; what has ended is not worked again."""
    scene.wait_s(8.0)
    ended = {each.job_id for each in scene.heard.told}
    scene.crew.stand_down()
    num_entries = len(scene.ledger.entries())
    for each in worker_stages():
        rewind(scene, each)
    scene.crew.heal()
    work_through_the_log(scene)
    again = {
        job_id
        for entry in scene.ledger.entries()[num_entries:]
        if entry.what == "worked"
        for job_id in entry.job_ids
    }
    assert not again & ended, f"worked again though ended: {sorted(again & ended)[:3]}"


def rewind(scene: Scene, of: Stage) -> None:
    """As `kafka-consumer-groups --reset-offsets --to-earliest` does, once the group is empty."""
    settings = scene.cluster.direct
    admin = AdminClient({"bootstrap.servers": settings.bootstrap})
    starts = log_starts(scene, of)

    def is_done() -> bool:
        asked = admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(of.group, starts)])
        try:
            (answer,) = (each.result() for each in asked.values())
        except KafkaException:  # killed members leave when their sessions time out
            scene.wait_s(1.0)
            return False
        return all(each.error is None for each in answer.topic_partitions)

    assert scene.until(is_done, WITHIN_S), f"group {of.group} does not let its offsets be set"


def log_starts(scene: Scene, of: Stage) -> list[TopicPartition]:
    """Of each partition that a stage reads, where its log begins."""
    settings = scene.cluster.direct
    reader = outsider(settings, of.group)
    try:
        return [
            TopicPartition(
                at.topic, at.partition, reader.get_watermark_offsets(at, timeout=20.0)[0]
            )
            for at in partitions_of(of, settings)
        ]
    finally:
        reader.close()


def work_through_the_log(scene: Scene) -> None:
    """Until the groups have read what was there; a little may be under way.

    All that earlier rows have left is on the log too: no limit but that it becomes less.
    """
    num_left = num_behind(scene)
    while num_left > NUM_WAITING:
        is_less = scene.until(partial(has_fewer_behind, scene, num_left), WITHIN_S)
        assert is_less, f"for {WITHIN_S:g} s the groups have not come closer to the log's end"
        num_left = num_behind(scene)


def has_fewer_behind(scene: Scene, than: int) -> bool:
    """Whether the groups have fewer records left to read; a second later."""
    scene.wait_s(1.0)
    return num_behind(scene) < than


def num_behind(scene: Scene) -> int:
    """Records that are on the log and not committed, of all groups."""
    return sum(records_behind(scene.cluster.direct).values())


def outlive_the_log(scene: Scene) -> None:
    """The sampler is away for longer than its topic keeps records: it says so, and skips nothing.

    Then as the README tells operators: the gap is accepted, and producers send again what has not
    ended.
    """
    scene.crew.stand_down(SAMPLER.name)
    heard = scene.heard.reached

    def waiting() -> set[str]:
        found = heard[SAMPLER.reads] - heard["latents.ready"]
        return {of.job_id for of in found}

    assert scene.until(lambda: len(waiting()) >= NUM_WAITING, WITHIN_S), "nothing waits"
    settings = scene.cluster.direct
    admin = AdminClient({"bootstrap.servers": settings.bootstrap})
    ends = topic_ends(scene, SAMPLER.reads)
    for deleted in admin.delete_records(ends).values():
        deleted.result()
    before = dict(committed(scene, SAMPLER))
    scene.crew.heal()
    logs = [each.log_path for each in scene.crew.of(SAMPLER.name)]

    def has_said_so() -> bool:
        return any("partition stands still" in path.read_text() for path in logs)

    assert scene.until(has_said_so, WITHIN_S), "no worker says that its partition stands still"
    scene.wait_s(3.0)
    gone = {(each.topic, each.partition) for each in ends if before[each.topic, each.partition]}
    after = dict(committed(scene, SAMPLER))
    skipped = [key for key in gone if after[key] > before[key]]
    assert not skipped, f"records were skipped in silence: {skipped}"
    scene.crew.stand_down(SAMPLER.name)
    assert scene.until(lambda: gap_is_accepted(scene), WITHIN_S), "the gap cannot be accepted"
    for job_id in sorted(waiting()):  # and some that are not lost: that harms nobody
        scene.submitter.send_again(job_id)
    scene.crew.heal()


def topic_ends(scene: Scene, topic: str) -> list[TopicPartition]:
    """Of each partition that a group has read a part of and not all, where its log ends."""
    reader = outsider(scene.cluster.direct, SAMPLER.group)
    try:
        ends = []
        for number in range(scene.cluster.settings.partitions):
            at = TopicPartition(topic, number)
            _, high = reader.get_watermark_offsets(at, timeout=20.0)
            found = dict(committed(scene, SAMPLER))[topic, number]
            if found < high:
                ends.append(TopicPartition(topic, number, high))
        return ends
    finally:
        reader.close()


def committed(scene: Scene, of: Stage) -> list[tuple[tuple[str, int], int]]:
    """Where the stage's group goes on, of each partition that it reads."""
    settings = scene.cluster.direct
    reader = outsider(settings, of.group)
    try:
        found = reader.committed(partitions_of(of, settings), timeout=20.0)
        return [((each.topic, each.partition), each.offset) for each in found]
    finally:
        reader.close()


def gap_is_accepted(scene: Scene) -> bool:
    """What `reel topics apply --from-start sampler` does, once the group is empty."""
    try:
        reset_to_start(scene.cluster.direct, SAMPLER)
    except SettingsError:  # killed members leave when their sessions time out
        scene.wait_s(1.0)
        return False
    return True


def fill_the_disk(scene: Scene) -> None:
    """A broker can write no more: it ends, the others go on, and it comes back to an empty disk."""
    node = scene.random.choice(scene.cluster.kafka.nodes)
    pid = node.process.pid
    assert pid is not None, "it runs"
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (_FULL_BYTES, hard))
    has_ended = scene.until(lambda: not node.process.is_running, WITHIN_S)
    assert has_ended, f"broker {node.node_id} goes on without a disk"
    scene.wait_s(6.0)
    scene.aside(node.start)
    scene.wait_s(3.0)
