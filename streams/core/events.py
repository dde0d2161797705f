"""What a stage's state is told (events) and what it asks for (commands). Plain data, no behaviour.

The payload of a `Work` and the bytes of an `Output` are opaque here: decoding, encoding and every
kind of I/O happen at the edges.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Literal, NamedTuple

from streams.core.fair_queue import NOBODY, Charge
from streams.core.offset_map import NO_CRASHES, Crashes, OffsetMap
from streams.core.shares import Follow, JobSeen, LedgerRead, Over, Share

Headers = tuple[tuple[str, bytes | None], ...]


class TopicPartition(NamedTuple):
    """A partition of a topic."""

    topic: str
    partition: int


class Ticket(NamedTuple):
    """One delivery of one record under one assignment: what results are addressed to."""

    partition: TopicPartition
    offset: int
    assignment_epoch: int


class CommitPoint(NamedTuple):
    """What is committed for a partition: the next offset to read, and the offset map's text."""

    offset: int
    metadata: str = ""


class Fate(Enum):
    """What becomes of a record whose work failed (DESIGN 4.6).

    The two other fates are no record's: `hold` is sat out (`HostSick`), `crash` ends the process.
    """

    LATER = "later"
    DEAD_LETTER = "dead_letter"


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a record could not be worked. `ends_job` False: the job of that id is not its own.

    `evidence` is what a person needs to judge it: names and figures, never prompt text.
    """

    fate: Fate
    reason_code: str
    message: str
    ends_job: bool = True
    evidence: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ends other than by completing.

    `retry_at_s`: of a rejected one, when the same wish may be taken, in epoch seconds.
    """

    status: Literal["failed", "rejected", "cancelled", "expired"]
    reason_code: str
    reason: str
    retry_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """A delivered record as the core sees it. `job_id` None: the record could not be decoded.

    Run, try and crashes are three counters (DESIGN 4): a redrive's, a retry's, and that of
    processes which died with the record inside the engine. `due_s`: not to be worked before, but
    `delay_s` after its delivery in any case: clocks of who wrote it and who reads it may be apart.
    `identity`: copies of one job stand for each other only if theirs are equal; another request
    under the same job id is none of its copies. `charge`: who pays for it at this stage, the tenant
    whose job it is. `share`: what it asks of a quota; None where there is none to be asked.
    `degradations`: what of it is let go of so that it meets its deadline. `num_diverted`: how often
    it stepped aside, because it held up what came after it: no failure.
    """

    job_id: str | None
    run: int
    batch_key: Hashable
    deadline_s: float | None
    payload: object
    try_number: int = 1
    crashes: Crashes = NO_CRASHES
    due_s: float | None = None
    delay_s: float | None = None
    identity: Hashable = None
    charge: Charge = NOBODY
    share: Share | None = None
    degradations: tuple[str, ...] = ()
    num_diverted: int = 0


@dataclass(frozen=True, slots=True)
class Output:
    """A record to be produced, encoded. Its partition is the job's own.

    `timestamp_ms` None: the time at which it is appended.
    """

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int | None = None


@dataclass(frozen=True, slots=True)
class StartOffset:
    """Where reading of an assigned partition begins; whether the group had committed that.

    `is_map_ignored`: there was an offset map, of a version that we do not know.
    """

    known: OffsetMap
    is_committed: bool
    is_map_ignored: bool = False


# ---- events: partitions


@dataclass(frozen=True, slots=True)
class Assigned:
    """These partitions are ours from now on (under KIP-848 an increment, possibly empty)."""

    partitions: Mapping[TopicPartition, StartOffset]


@dataclass(frozen=True, slots=True)
class Revoked:
    """These partitions are about to be another's; what is committed now still counts."""

    partitions: tuple[TopicPartition, ...]


@dataclass(frozen=True, slots=True)
class Lost:
    """These partitions are another's already; a commit would come too late."""

    partitions: tuple[TopicPartition, ...]


# ---- events: records


@dataclass(frozen=True, slots=True)
class Delivered:
    """A record was read. A verdict settles it at once: dead letter, or the end of its run."""

    partition: TopicPartition
    offset: int
    work: Work
    verdict: Fault | Ending | None = None


@dataclass(frozen=True, slots=True)
class Emitted:
    """The engine has worked a record; these records say so to the next stage."""

    ticket: Ticket
    outputs: tuple[Output, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    """The engine could not work a record."""

    ticket: Ticket
    fault: Fault


@dataclass(frozen=True, slots=True)
class Ended:
    """The run has its outcome; these records tell it (none: there was nobody to tell)."""

    ticket: Ticket
    outputs: tuple[Output, ...]


@dataclass(frozen=True, slots=True)
class NotEnded:
    """The run could not be given its outcome. Not `Failed`: an answer to `Start` may come late."""

    ticket: Ticket
    fault: Fault


@dataclass(frozen=True, slots=True)
class Announced:
    """A hint for onlookers, produced at most once and never waited for."""

    output: Output


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """Everything that the last `Produce` or `DeadLetter` of this ticket asked for is on the log."""

    ticket: Ticket


@dataclass(frozen=True, slots=True)
class NotAcknowledged:
    """It is not, or may not be. `is_permanent`: it never will (too large)."""

    ticket: Ticket
    reason: str
    is_permanent: bool


@dataclass(frozen=True, slots=True)
class Offloaded:
    """The original of a dead letter lies in the object store; these headers say where."""

    ticket: Ticket
    blob: Headers


@dataclass(frozen=True, slots=True)
class Committed:
    """The asynchronous commit under way was answered."""

    is_ok: bool


# ---- events: the host


@dataclass(frozen=True, slots=True)
class HostSick:
    """The engine cannot work, whatever the record: it holds, and tries by itself until it can.

    `is_local`: another host may be well (device, disk), unlike with a store that is away for all.
    """

    reason_code: str
    message: str
    is_local: bool


@dataclass(frozen=True, slots=True)
class HostWell:
    """The engine works again."""


@dataclass(frozen=True, slots=True)
class Places:
    """What the engine holds to advantage: more would wait inside, where nothing is fair."""

    num: int


@dataclass(frozen=True, slots=True)
class Probed:
    """The built-in good job was worked, or was not; `is_local` as in `HostSick`."""

    is_ok: bool
    is_local: bool = True


# ---- events: controls and time


@dataclass(frozen=True, slots=True)
class StagePaused:
    """An operator paused the stage, or let it run again."""

    is_paused: bool


@dataclass(frozen=True, slots=True)
class JobCancelled:
    """One run of a job is no longer wanted.

    `tenant_id` None: the record is older than that field, and means whosever job of that id it is.
    """

    job_id: str
    run: int
    issued_s: float
    tenant_id: str | None = None


@dataclass(frozen=True, slots=True)
class JobDeadline:
    """One run of a job has a new deadline; `tenant_id` as in `JobCancelled`."""

    job_id: str
    run: int
    deadline_s: float
    issued_s: float
    tenant_id: str | None = None


@dataclass(frozen=True, slots=True)
class Drain:
    """SIGTERM: take no more, finish what runs within the budget, commit, stop."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    Assigned | Revoked | Lost | Delivered | Emitted | Failed | Ended | NotEnded | Announced
    | Acknowledged | NotAcknowledged | Offloaded | Committed | HostSick | HostWell | Probed
    | Places | StagePaused | JobCancelled | JobDeadline | JobSeen | LedgerRead | Drain | Tick
)  # fmt: skip

# ---- commands


@dataclass(frozen=True, slots=True)
class Start:
    """Engine: work these records as one batch."""

    batch: tuple[tuple[Ticket, Work], ...]


@dataclass(frozen=True, slots=True)
class End:
    """Engine: give the run this outcome, then answer `Ended` or `NotEnded`."""

    ticket: Ticket
    work: Work
    ending: Ending


@dataclass(frozen=True, slots=True)
class Drop:
    """Engine: nobody waits for these any more; stop as soon as it is cheap."""

    tickets: tuple[Ticket, ...]


@dataclass(frozen=True, slots=True)
class Produce:
    """Producer: put these on the log, then answer `Acknowledged` once."""

    ticket: Ticket
    outputs: tuple[Output, ...]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Producer: put the original and its fault on the dead-letter topic, then acknowledge.

    `blob`: where the original lies, because it does not fit.
    """

    ticket: Ticket
    work: Work
    fault: Fault
    blob: Headers = ()


@dataclass(frozen=True, slots=True)
class Offload:
    """Engine: put the original into the object store, then answer `Offloaded`."""

    ticket: Ticket
    work: Work


@dataclass(frozen=True, slots=True)
class Retry:
    """Producer: put the original on the retry topic of that delay, then acknowledge.

    `work` says which try the copy is, and how often it has crashed.
    """

    ticket: Ticket
    work: Work
    delay_s: int
    fault: Fault


@dataclass(frozen=True, slots=True)
class Park:
    """Producer: put the original on `requests.deferred`, over that quota, then acknowledge."""

    ticket: Ticket
    work: Work
    over: Over


@dataclass(frozen=True, slots=True)
class Probe:
    """Engine: work the built-in good job, then answer `Probed`."""


@dataclass(frozen=True, slots=True)
class Announce:
    """Producer: put this on the log if you can; nobody waits."""

    output: Output


@dataclass(frozen=True, slots=True)
class Commit:
    """Consumer: commit. `must_finish`: before returning, because the partition goes away.

    Otherwise answer `Committed`, one for each.
    """

    points: Mapping[TopicPartition, CommitPoint]
    must_finish: bool


@dataclass(frozen=True, slots=True)
class Pause:
    """Consumer: deliver no more records of these, until `Resume`."""

    partitions: tuple[TopicPartition, ...]


@dataclass(frozen=True, slots=True)
class Resume:
    """Consumer: deliver records of these again."""

    partitions: tuple[TopicPartition, ...]


Command = (
    Start | End | Drop | Probe | Offload | Produce | DeadLetter | Retry | Park | Announce | Commit
    | Pause | Resume | Follow
)  # fmt: skip
