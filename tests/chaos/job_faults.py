"""Faults that jobs and records bring with them: poison, no memory, cancels, deadlines, floods."""

from __future__ import annotations

from datetime import UTC, datetime

from schemas.codec import Codec
from schemas.records import JobControl
from streams.topology import JOB_CONTROL, REQUESTS_DEFERRED, worker_stages
from tests.builders import a_request
from tests.chaos.crew import EXPIRER
from tests.chaos.findings import RAW
from tests.chaos.ledger import fall_sick, recover, set_tight
from tests.chaos.scene import Scene
from tests.chaos.submitter import tenant_of, tenants

CODEC = Codec()
WITHIN_S = 300.0  # a tenant with a small quota, behind good jobs, on a machine that is slow
NUM_RACED = 60
MAX_RACED = 3 * 2 * NUM_RACED
RACE_ENDS = {"completed", "cancelled", "expired"}
NUM_FLOODING = 80

#: What a tenant may have in the pipeline in the row of quotas: little, so that most is parked.
FLOOD_QUOTA = {"tenant_jobs": 6}


def poison(scene: Scene) -> None:
    """Bad bytes on every topic; jobs that fail for ever, kill their worker, or take an age."""
    request = CODEC.encode(a_request())
    values = (None, b"", bytes(range(256)), request[:-7], b"{}", request + b"x")
    sent: dict[str, bytes | None] = {}
    for stage in worker_stages():
        for number, value in enumerate(values):
            key = f"{RAW}{stage.reads}-{number}{scene.suffix}"
            sent[key] = value
            partition = scene.random.randrange(scene.cluster.settings.partitions)
            scene.submitter.put(stage.reads, partition, key, value)
    bad = []
    for stage in worker_stages():
        for act, count in (("weird", 2), ("bad", 2), ("sigkill", 1)):
            names = (f"{act}.{stage.name}.{number}" for number in range(count))
            bad += [scene.submit(name, "failed") for name in names]
        bad.append(scene.submit(f"slow.{stage.name}.0"))
        scene.wait_s(2.0)  # among good jobs, or breakers would open
    assert scene.until(lambda: scene.has_ended(bad), WITHIN_S), "bad jobs have not ended"
    letters = scene.heard.letters
    assert scene.until(lambda: letters.keys() >= sent.keys(), WITHIN_S), "bad bytes lie somewhere"
    for key, value in sent.items():
        assert set(letters[key]) == {(value, "undecodable")}, f"{key} became {letters[key]}"


def run_out_of_memory(scene: Scene) -> None:
    """Jobs too large for any batch, then batches too large for a while, then devices are lost."""
    stages = [stage.name for stage in worker_stages()]
    full = [scene.submit(f"full.{each}.{number}", "failed") for each in stages for number in (1, 2)]
    scene.wait_s(3.0)
    set_tight(scene.folder, True)
    scene.wait_s(6.0)
    set_tight(scene.folder, False)
    for each in ("sampler", "decoder"):
        fall_sick(scene.folder, each)
    scene.wait_s(6.0)
    for each in ("sampler", "decoder"):
        recover(scene.folder, each)
    assert scene.until(lambda: scene.has_ended(full), WITHIN_S), "full jobs have not ended"


def race_to_the_end(scene: Scene) -> None:
    """Cancels and deadlines that come at any moment of a job's way; whatever wins, it is one."""
    raced: list[str] = []
    won: set[str] = set()
    patience = 1.0
    while won != RACE_ENDS:
        assert len(raced) < MAX_RACED, f"only {sorted(won)} ever won"
        _race(scene, raced, patience)
        assert scene.until(lambda: scene.has_ended(raced), WITHIN_S), "raced jobs have not ended"
        won = {each.status for each in scene.heard.told if each.job_id in raced}
        # On a fast machine only less lets a deadline win, on a slow one only more lets a job.
        patience *= 2.0 if "completed" not in won else 0.5 if "expired" not in won else 1.0


def expire_beside_a_dying_expirer(scene: Scene) -> None:
    """Samplers are away while deadlines pass: only the expirer can end these, and it is killed."""
    scene.crew.stand_down("sampler")
    hasty = []
    for number in range(NUM_RACED):
        leaves_s = scene.random.uniform(4.0, 12.0)
        hasty.append(scene.submit(f"hasty-{number}", "expired", deadline_s=leaves_s))
    for _ in range(4):
        scene.wait_s(scene.random.uniform(1.0, 4.0))
        scene.crew.members[EXPIRER].kill()
    assert scene.until(lambda: scene.has_ended(hasty), WITHIN_S), "expired jobs have not ended"
    for member in scene.crew.of("sampler"):
        member.is_wanted = True


def _race(scene: Scene, raced: list[str], patience: float) -> None:
    for number in range(len(raced) // 2, len(raced) // 2 + NUM_RACED):
        raced.append(scene.submit(f"cancelled-{number}", None))
        leaves_s = patience * scene.random.uniform(0.2, 2.5)
        raced.append(scene.submit(f"hasty-{number}", None, deadline_s=leaves_s))
        scene.wait_s(patience * scene.random.uniform(0, 0.4))
        cancel(scene, raced[-2])


def cancel(scene: Scene, job_id: str) -> None:
    """As the client does."""
    wish = JobControl(job_id, 1, "cancel", datetime.now(UTC), "chaos", tenant_id=tenant_of(job_id))
    scene.submitter.put(JOB_CONTROL, 0, f"{job_id}/1/cancel", CODEC.encode(wish))


def flood(scene: Scene) -> None:
    """One tenant hands in far more than its quota, and those who park its requests are killed."""
    one = tenants(scene.suffix)[0]
    names = (f"flood-{number}" for number in range(10_000))
    own = [each for each in names if tenant_of(f"{each}{scene.suffix}") == one][:NUM_FLOODING]
    flooding = [scene.submit(each, tier="free") for each in own]
    parked = scene.heard.reached[REQUESTS_DEFERRED]
    assert scene.until(lambda: len(parked) >= NUM_FLOODING // 4, WITHIN_S), "nothing was parked"
    for number in range(4):
        scene.crew.of("prompt")[number % 2].kill()
        scene.wait_s(4.0)
    assert scene.until(lambda: scene.has_ended(flooding), WITHIN_S), "parked jobs have not ended"
