"""Which blobs a record names: they live as long as the record does."""

from __future__ import annotations

from schemas.records import (
    BlobRef,
    CleanedPrompt,
    FramesDecoded,
    JobEvent,
    LatentsReady,
    Record,
    VideoDone,
)


def blobs_of(record: Record) -> tuple[BlobRef, ...]:
    """The blobs that a record names, in its order."""
    match record:
        case CleanedPrompt():
            return (record.conditioning,)
        case LatentsReady():
            return (record.latents,)
        case FramesDecoded():
            return tuple(chunk.blob for chunk in record.chunks)
        case VideoDone():
            return tuple(blob for blob in (record.video, record.thumbnail) if blob is not None)
        case JobEvent():
            return () if record.preview is None else (record.preview,)
        case _:
            return ()
