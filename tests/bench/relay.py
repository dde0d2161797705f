"""`make bench-relay`: what a record costs each stage, against a bare confluent-kafka loop.

Both sides run on one Apache Kafka, one after the other, in processes of their own, on the same
records: our workers with work of no effort (tests/echo.py), and a loop that decodes and encodes
the same Avro and headers and makes the same produces, acknowledgements and commits, as large as
ours. With fences on, it makes the same calls on the same store, too. CPU time a record is compared;
the wall clock's figures are of whatever else the machine had to do.

`python -m tests.bench.relay [REPEATS] [PERCENT]` runs fewer repeats of fewer records.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from confluent_kafka import Producer

from schemas.codec import Codec
from schemas.records import GenerationRequest
from streams.core.tiers import DEFAULT_TIERS, partition_of_job
from streams.kafka.admin import apply_topics
from streams.local.apache import ApacheKafka
from streams.local.object_store import S3Server
from streams.local.worker_process import python_environment
from streams.settings import Settings, read_settings
from streams.topology import JOB_EVENTS, REQUESTS, STAGES, Stage, Topic, worker_stages
from tests.bench.goals import Goals, print_table
from tests.bench.relay_side import BARE, Figures, Plan

REPEATS = 3
#: A stage whose work is no effort has no reason to take few records at once. What the default, made
#: for work that fills a device, costs instead is a table of its own.
BATCH_MAX = 32
MAX_RATIO, MIN_RATE_RATIO = 2, 0.5
LIMIT_S = 600.0


@dataclass(frozen=True, slots=True)
class Case:
    """What both sides do beside relaying. Of `total` records the inner part is measured."""

    name: str
    text: str
    stages: tuple[Stage, ...]
    total: int
    batch_max: int = BATCH_MAX
    has_events: bool = False
    stores: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # settings, by side


@dataclass(frozen=True, slots=True)
class Medians:
    """Of one stage in one case, over the repeats."""

    bare_us: float
    ours_us: float
    bare_per_s: float
    ours_per_s: float
    batch: float  # records a commit of ours

    @property
    def ratio(self) -> float:
        """Of CPU time: ours to the bare loop's."""
        return self.ours_us / self.bare_us

    @property
    def rate_ratio(self) -> float:
        """Of records a second: ours to the bare loop's."""
        return self.ours_per_s / self.bare_per_s


class Bench:
    """A broker with its topics, and the processes that relay on it."""

    def __init__(self, folder: Path, bootstrap: str, repeats: int) -> None:
        self._folder, self._repeats = folder, repeats
        self._settings = Settings(home=folder / "home", bootstrap=bootstrap)
        names = [each.writes for each in worker_stages() if each.writes] + [JOB_EVENTS]
        apply_topics(self._settings)
        apply_topics(self._settings, [Topic(BARE + name, "stage") for name in names])

    def run(self, case: Case) -> dict[str, Medians]:
        """All repeats, the two sides taking turns in going first; medians by stage."""
        found: dict[str, dict[str, list[Figures]]] = {
            each.name: {"ours": [], "bare": []} for each in case.stages
        }
        for repeat in range(self._repeats):
            self._fill(case.total)
            for stage in case.stages:
                sides = found[stage.name]
                for side in ("ours", "bare") if repeat % 2 == 0 else ("bare", "ours"):
                    batch = round(_batch(sides["ours"]))
                    sides[side].append(self._relay(case, side, stage, batch))
        return {name: _medians(sides) for name, sides in found.items()}

    def _relay(self, case: Case, side: str, stage: Stage, batch: int) -> Figures:
        # What is prefetched before the first and not needed after the last is left out as well.
        plan = Plan(
            side, stage.name, case.total, case.total // 6, case.total * 5 // 6, batch,
            bool(case.stores), case.has_events,
        )  # fmt: skip
        environment = python_environment(
            {
                "bootstrap": self._settings.bootstrap,
                "home": self._folder / "home",
                "batch_max": case.batch_max,
                **case.stores.get(side, {}),
            }
        )
        log_path = self._folder / f"{case.name}-{stage.name}-{side}.log"
        with log_path.open("ab") as log:
            run = subprocess.run(
                [sys.executable, "-m", "tests.bench.relay_side", json.dumps(asdict(plan))],
                env=environment, stdout=subprocess.PIPE, stderr=log, timeout=LIMIT_S, check=False,
            )  # fmt: skip
        if run.returncode:
            raise RuntimeError(f"{side} {stage.name} ended:\n{log_path.read_text()[-2000:]}")
        return Figures(**json.loads(run.stdout))

    def _fill(self, count: int) -> None:
        """Requests of 60 tenants in three tiers, each in its own partition."""
        codec, producer = Codec(), Producer({"bootstrap.servers": self._settings.bootstrap})
        now = datetime.now(UTC)
        for number in range(count):
            job_id, tier, tenant = uuid.uuid4().hex, DEFAULT_TIERS[number % 3], f"t{number % 60}"
            partition = partition_of_job(tier, tenant, job_id, self._settings.partitions)
            request = GenerationRequest(
                job_id, tenant, "a red circle moving right", now, tier=tier,
                deadline=now + timedelta(hours=1),
            )  # fmt: skip
            producer.produce(REQUESTS, codec.encode(request), job_id, partition)
            producer.poll(0)
        assert producer.flush(LIMIT_S) == 0, "the broker took everything"


def _batch(ours: list[Figures]) -> float:
    """Records between two commits of ours, so far."""
    if not ours:
        return 1.0
    return statistics.median([each.num_records / max(1, each.commits) for each in ours])


def _medians(sides: Mapping[str, list[Figures]]) -> Medians:
    def median(side: str, name: str) -> float:
        return float(statistics.median(getattr(each, name) for each in sides[side]))

    return Medians(
        median("bare", "cpu_us"), median("ours", "cpu_us"),
        1e6 / median("bare", "wall_us"), 1e6 / median("ours", "wall_us"),
        _batch(sides["ours"]),
    )  # fmt: skip


def main(arguments: list[str]) -> int:
    """Measure, print, and hold against the goals."""
    repeats = int(arguments[0]) if arguments else REPEATS
    percent = int(arguments[1]) if len(arguments) > 1 else 100
    goals = Goals()
    with tempfile.TemporaryDirectory(prefix="reel-relay-") as name:
        folder = Path(name)
        with ApacheKafka(folder / "kafka", home=read_settings().home) as broker:
            bench = Bench(folder, broker.bootstrap, repeats)
            _fences_off(bench, goals, percent)
            off = bench.run(Case("few", "", worker_stages(), 600 * percent // 100))
            _fences_on(bench, goals, percent, folder, off)
    return goals.report()


def _fences_off(bench: Bench, goals: Goals, percent: int) -> None:
    total = 6000 * percent // 100
    plain = Case("plain", "fences off, no job events", STAGES, total)
    _report(plain, bench.run(plain), goals)
    told = Case(
        "events", "fences off, job events on both sides", worker_stages(), total, has_events=True
    )
    _report(told, bench.run(told), goals)
    small = Settings().batch_max
    few = Case("small", f"as plain, batches of {small}", worker_stages(), total, small)
    _report(few, bench.run(few), None)


def _fences_on(
    bench: Bench, goals: Goals, percent: int, folder: Path, off: Mapping[str, Medians]
) -> None:
    stores = {side: {"blobs": (folder / "blobs" / side).as_uri()} for side in ("ours", "bare")}
    local = Case(
        "folder", "fences in a folder", worker_stages(), 600 * percent // 100, stores=stores
    )
    _report(local, bench.run(local), goals, off)
    with S3Server(folder / "s3") as server:
        keys = {
            "s3_endpoint": server.endpoint,
            "s3_access_key": server.access_key,
            "s3_secret_key": server.secret_key,
        }
        stores = {s: keys | {"blobs": f"s3://{server.bucket}/{s}"} for s in ("ours", "bare")}
        s3 = Case("s3", "fences in S3", worker_stages(), 240 * percent // 100, stores=stores)
        _report(s3, bench.run(s3), goals, off)


def _report(
    case: Case,
    found: Mapping[str, Medians],
    goals: Goals | None,
    off: Mapping[str, Medians] | None = None,
) -> None:
    """A table of the stages; the median stage is held against the goals, where there are any."""
    print(f"\n{case.text}: {case.total} records a repeat, medians", flush=True)
    head = ["stage", "bare us", "ours us", "ratio", "bare/s", "ours/s", "rate ratio", "batch"]
    rows = []
    for name, each in found.items():
        rows.append(
            [
                name, f"{each.bare_us:.0f}", f"{each.ours_us:.0f}", f"{each.ratio:.2f}",
                f"{each.bare_per_s:.0f}", f"{each.ours_per_s:.0f}", f"{each.rate_ratio:.2f}",
                f"{each.batch:.1f}",
            ]
        )  # fmt: skip
        if off is not None:
            rows[-1].append(f"{each.bare_us - off[name].bare_us:.0f}")
    print_table([*head, "calls us"] if off is not None else head, rows)
    if goals is None:
        return
    ratio = statistics.median(each.ratio for each in found.values())
    rate_ratio = statistics.median(each.rate_ratio for each in found.values())
    goals.at_most(f"relay_cpu_ratio_{case.name}_median_stage", ratio, MAX_RATIO)
    goals.at_least(f"relay_rate_ratio_{case.name}_median_stage", rate_ratio, MIN_RATE_RATIO)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
