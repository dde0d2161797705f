"""Frames to an MP4 and a thumbnail, by PyAV: streaming, equal bytes for equal frames."""

from __future__ import annotations

import errno
import io
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy.typing as npt
from av.error import FFmpegError

from streams.errors import InvalidRecord, SickHost

CRF = "18"

_SICK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENOMEM}


def mux_mp4(
    frames: Iterable[npt.NDArray[Any]], width_px: int, height_px: int, fps: int
) -> BinaryIO:
    """An H.264 MP4 (yuv420p, index in front) as an open file that is nowhere on disk any more.

    Args:
        frames: each (height_px, width_px, 3) uint8 RGB; even sides.

    Raises:
        InvalidRecord: `unencodable`; the encoder does not take such frames.
        SickHost: the temporary file cannot be written.
    """
    if min(width_px, height_px, fps) < 1:
        text = f"no video is of {width_px}x{height_px} at {fps} fps"
        raise InvalidRecord(text, reason_code="unencodable")
    with tempfile.TemporaryDirectory(prefix="reel-mux-") as folder:
        path = Path(folder) / "video.mp4"
        try:
            # One thread and no time of creation: equal frames must give equal bytes.
            with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
                stream = container.add_stream("libx264", rate=fps)
                stream.width, stream.height, stream.pix_fmt = width_px, height_px, "yuv420p"
                stream.thread_count = 1
                stream.options = {"crf": CRF, "preset": "medium"}
                for frame in frames:
                    picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
                    container.mux(stream.encode(picture))
                container.mux(stream.encode(None))
            return path.open("rb")
        except (OSError, FFmpegError) as error:
            raise _fault(error) from error


def jpeg_of(frame: npt.NDArray[Any]) -> bytes:
    """A JPEG of one (height_px, width_px, 3) uint8 RGB frame."""
    out = io.BytesIO()
    height_px, width_px = frame.shape[:2]
    try:
        with av.open(out, "w", format="image2pipe") as container:
            stream = container.add_stream("mjpeg", rate=1)
            stream.width, stream.height, stream.pix_fmt = width_px, height_px, "yuvj420p"
            stream.options = {"qscale": "3"}
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))
    except (OSError, FFmpegError) as error:
        raise _fault(error) from error
    return out.getvalue()


def _fault(error: OSError | FFmpegError) -> InvalidRecord | SickHost:
    if error.errno in _SICK:
        return SickHost(f"the video cannot be written: {error.strerror}")
    return InvalidRecord(f"H.264 encoder: {error.strerror}", reason_code="unencodable")
