"""The error tree. Each type answers one question: what becomes of the record?

PipelineError
  RetryableError      later: the same record may succeed at another time
    BlobMissing         an input named by the record is not in the object store (yet, or any more)
    BlobCorrupt         an input's bytes are not those that the record describes
  InvalidRecord       dead letter: this record can never succeed, its bytes are kept as evidence
    OutOfMemory         the device has not enough memory for this record alone
  Rejected            the request is refused: its outcome is `rejected`, no dead letter
  SickHost            hold: this host is ill; keep the record, count nothing
    StoreAway           the object store or the registry is, for every worker
  FatalError          crash: a bug of ours, or a state nobody may continue from; the process ends
SettingsError       wrong use of the program, told in one line; exit code 2
"""

from __future__ import annotations

from collections.abc import Mapping


class PipelineError(Exception):
    """An error whose type decides the fate of the record that met it.

    `reason_code` is a stable snake_case word for subscribers, metrics and dead letters; the
    message is for people and never holds prompt text.
    """

    reason_code = "internal_error"

    def __init__(self, message: str, *, reason_code: str | None = None) -> None:
        super().__init__(message)
        if reason_code is not None:
            self.reason_code = reason_code


class RetryableError(PipelineError):
    """Later: the record's work failed in a way that another time may not."""

    reason_code = "retryable"


class InvalidRecord(PipelineError):
    """Dead letter: the record can never succeed."""

    reason_code = "invalid_record"


class BlobMissing(RetryableError):
    """Later: a blob that the record names is not there; once it stays lost, its run has failed."""

    reason_code = "input_lost"


class BlobCorrupt(RetryableError):
    """Later: a blob's size or sha256 differ from what the record says."""

    reason_code = "input_corrupt"


class OutOfMemory(InvalidRecord):
    """Dead letter, if the record met it alone; in a batch it says that the batch is too large.

    `evidence`: names and figures, such as shape, rows, free and total bytes.
    """

    reason_code = "out_of_memory"

    def __init__(self, message: str, evidence: Mapping[str, str]) -> None:
        super().__init__(message)
        self.evidence = dict(evidence)


class Rejected(PipelineError):
    """The request is refused; its outcome says `rejected` with this reason.

    `retry_at_s`: when the same wish, under a new job id, may be taken, in epoch seconds.
    """

    reason_code = "rejected"

    def __init__(
        self, message: str, *, reason_code: str | None = None, retry_at_s: float | None = None
    ) -> None:
        super().__init__(message, reason_code=reason_code)
        self.retry_at_s = retry_at_s


class SickHost(PipelineError):
    """Hold: not the record's fault; keep it, try again in place, count nothing.

    `is_local`: another host may be well, so a worker that stays sick leaves its work to those.
    """

    reason_code = "sick_host"
    is_local = True


class StoreAway(SickHost):
    """Hold: something that every worker needs does not answer; leaving would help nobody."""

    reason_code = "store_away"
    is_local = False


class FatalError(PipelineError):
    """Crash: the process must end; whoever started it starts it again."""

    reason_code = "fatal"


class SettingsError(Exception):
    """Wrong use of the program; the message is one line that says what to do."""
