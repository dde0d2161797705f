"""What may go from the object store, and its going: blobs that no live record names.

Never touched: the records themselves (`request`, `runs/*`, `outcome`, `result.*`, and who had them
redriven, `redrives/*`: they outlive every topic, DESIGN 2), what a VideoDone names, and every key
that is none of ours. Of the rest

    run with an outcome       goes once outcome and blob are older than the grace
    run without               stays where a `result.*` names it, however long a stage lags; what
                              none names (a loser's work, a dead checkpoint) goes when no worker can
                              be at the run any more: longest deadline, all retries, the grace
    dead letter, `dead-letters/...`   goes when the dead-letter topics have forgotten it
    probe, `reel-probe/...`           goes after the grace

Writers need not stop: whatever one of them may still name is too young to go.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from itertools import groupby

from schemas.codec import Codec, UndecodableRecord
from schemas.records import Record, VideoDone
from streams import topology
from streams.blobs.base import DEAD_LETTERS, PROBES, REDRIVES, BlobStore, Found, check_ref
from streams.blobs.named import blobs_of
from streams.errors import BlobCorrupt, InvalidRecord

_NAME = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}"
_NUMBER = r"[1-9][0-9]{0,8}"
_SHA256 = r"[0-9a-f]{64}"
_RUN = rf"{_NAME}/{_NAME}/{_NUMBER}"


class Kind(Enum):
    """What a key says that it holds."""

    RECORD = "record"
    STAGE_BLOB = "stage blob"
    DEAD_LETTER = "dead letter"
    PROBE = "probe"
    UNKNOWN = "unknown"


_KINDS = (
    (Kind.RECORD, re.compile(rf"{REDRIVES}/{_NAME}/(order|runs\.{_NUMBER}|ended|{_SHA256})")),
    (Kind.RECORD, re.compile(rf"{_NAME}/{_NAME}/(request|runs/{_NUMBER})")),
    (Kind.RECORD, re.compile(rf"{_RUN}/(outcome|{_NAME}/result\.{_NUMBER})")),
    (Kind.DEAD_LETTER, re.compile(rf"{DEAD_LETTERS}(/{_NAME})*/{_SHA256}")),
    (Kind.PROBE, re.compile(rf"{PROBES}(/{_NAME})*/{_SHA256}")),
    (Kind.STAGE_BLOB, re.compile(rf"{_RUN}/{_NAME}/{_SHA256}")),
)


def kind_of(key: str) -> Kind:
    """What lies at a key, by its name alone.

    >>> kind_of("acme/order-7/request").value, kind_of("acme/order-7/1/notes.txt").value
    ('record', 'unknown')
    """
    return next((kind for kind, form in _KINDS if form.fullmatch(key)), Kind.UNKNOWN)


def run_of(key: str) -> str | None:
    """The run that a key belongs to, as `<tenant>/<job>/<run>`; None where it is none's."""
    if kind_of(key) not in (Kind.RECORD, Kind.STAGE_BLOB):
        return None
    found = re.match(_RUN + "/", key)
    return None if found is None else found[0].removesuffix("/")


@dataclass(frozen=True, slots=True)
class Ages:
    """How old what may go must be: the operator's grace on top of what the pipeline needs."""

    grace: timedelta
    longest_run: timedelta  # deadline and all retries: Settings.longest_run_s
    retention: timedelta  # of the dead-letter topics


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What the fences of a run say. `ended_at` None: it has no outcome.

    `named` are the keys that its VideoDone names, or, without one, its results. None: a fence
    cannot be understood, so nothing is known.
    """

    ended_at: datetime | None
    named: frozenset[str] | None


def may_go(blob: Found, facts: RunFacts, now: datetime, ages: Ages) -> bool:
    """Whether a stage's blob may be removed."""
    if facts.named is None or blob.key in facts.named:
        return False
    if facts.ended_at is not None:
        return now - max(blob.modified_at, facts.ended_at) > ages.grace
    return now - blob.modified_at > ages.longest_run + ages.grace


def may_go_by_age(found: Found, kind: Kind, now: datetime, ages: Ages) -> bool:
    """Whether what belongs to no run may be removed."""
    age = now - found.modified_at
    match kind:
        case Kind.DEAD_LETTER:
            return age > ages.retention + ages.grace
        case Kind.PROBE:
            return age > ages.grace
    return False


@dataclass(slots=True)
class Count:
    """Objects of one sort: all of them, and those that may go or went."""

    objects: int = 0
    size_bytes: int = 0
    removed: int = 0
    removed_bytes: int = 0


class Sweep:
    """One pass over a store. `counts` grow as it goes, by sort, in the order of a report."""

    def __init__(self, store: BlobStore, codec: Codec, now: datetime, ages: Ages) -> None:
        """`now` is UTC, as good as the clock of the store."""
        self._store, self._codec, self._now, self._ages = store, codec, now, ages
        self.counts: dict[str, Count] = {
            sort: Count()
            for sort in (
                "records",
                "blobs of ended runs",
                "blobs of open runs",
                "blobs of runs not understood",
                "blobs of dead letters",
                "blobs of probes",
                "unknown",
            )
        }

    def run(self, *, is_applied: bool) -> None:
        """Count everything; remove what may go if `is_applied`. May be repeated, or cut short.

        Raises:
            SickHost: the store does not answer.
        """
        for run, found in groupby(self._store.walk(""), lambda each: run_of(each.key)):
            for key in self._doomed(run, found):
                if is_applied:
                    self._store.remove(key)

    def _doomed(self, run: str | None, found: Iterator[Found]) -> Iterator[str]:
        return self._of_none(found) if run is None else self._of_run(run, list(found))

    def _of_none(self, found: Iterable[Found]) -> Iterator[str]:
        sorts = {
            Kind.RECORD: "records",
            Kind.DEAD_LETTER: "blobs of dead letters",
            Kind.PROBE: "blobs of probes",
            Kind.UNKNOWN: "unknown",
        }
        for each in found:
            kind = kind_of(each.key)
            if self._goes(sorts[kind], each, may_go_by_age(each, kind, self._now, self._ages)):
                yield each.key

    def _of_run(self, run: str, found: list[Found]) -> Iterator[str]:
        blobs, records = [], []
        for each in found:
            if kind_of(each.key) is Kind.RECORD:
                self._goes("records", each, False)
                records.append(each)
            else:
                blobs.append(each)
        if not blobs:
            return
        facts = self._facts(run, records)
        state = "runs not understood" if facts.named is None else "open runs"
        state = "ended runs" if facts.ended_at is not None and facts.named is not None else state
        for each in blobs:
            if self._goes(f"blobs of {state}", each, may_go(each, facts, self._now, self._ages)):
                yield each.key

    def _goes(self, sort: str, found: Found, goes: bool) -> bool:
        count = self.counts[sort]
        count.objects += 1
        count.size_bytes += found.size_bytes
        if goes:
            count.removed += 1
            count.removed_bytes += found.size_bytes
        return goes

    def _facts(self, run: str, records: list[Found]) -> RunFacts:
        """Of the fences that the walk found. One written since names only what is too young."""
        times = {each.key: each.modified_at for each in records}
        outcome = f"{run}/outcome"
        ended_at = times.get(outcome)
        named: set[str] = set()
        for key in [outcome] if ended_at is not None else times:
            record = self._record(key, VideoDone if ended_at is not None else _record_type(key))
            if record is None:
                return RunFacts(ended_at, None)
            for ref in blobs_of(record):
                try:
                    named.add(check_ref(self._store.root_uri, ref))
                except InvalidRecord:  # it lies elsewhere: is this the store as the workers see it?
                    return RunFacts(ended_at, None)
        return RunFacts(ended_at, frozenset(named))

    def _record(self, key: str, record_type: type[Record] | None) -> Record | None:
        if record_type is None:
            return None
        try:
            body = self._store.load(key)
            return None if body is None else self._codec.decode(body, record_type)
        except (BlobCorrupt, UndecodableRecord):
            return None


def _record_type(key: str) -> type[Record] | None:
    """What a `<run>/<stage>/result.<edition>` holds; None where the stage is unknown."""
    try:
        return topology.stage(key.split("/")[3]).writes_record
    except KeyError:
        return None
