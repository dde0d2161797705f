"""What a user asks for, parsed. Wrong use is a SettingsError here, one line, exit code 2."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from streams.errors import SettingsError

BrokerKind = Literal["embedded", "apache"]
"""A broker that the local stack can start."""

_SIZE = re.compile(r"([1-9][0-9]{0,4})[xX]([1-9][0-9]{0,4})")


@dataclass(frozen=True, slots=True)
class VideoWish:
    """The part of a request that says what the video is to be; the names are `Client.submit`'s."""

    prompt: str
    negative_prompt: str = ""
    num_frames: int | None = None
    width_px: int | None = None
    height_px: int | None = None
    fps: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    seed: int | None = None


def parse_size(text: str | None) -> tuple[int, int] | tuple[None, None]:
    """Width and height in pixels; nothing for None.

    >>> parse_size("64x48")
    (64, 48)
    """
    if text is None:
        return None, None
    match = _SIZE.fullmatch(text)
    if match is None:
        raise SettingsError(f"--size {text!r}: want WIDTHxHEIGHT in pixels, such as --size 64x64")
    return int(match[1]), int(match[2])


def parse_counts(text: str) -> dict[str, int]:
    """Workers by stage.

    >>> parse_counts("prompt=1, sampler=2")
    {'prompt': 1, 'sampler': 2}
    """
    counts: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        stage, sign, number = part.partition("=")
        if not sign or not number.strip().isdecimal():
            raise SettingsError(f"--workers {text!r}: want STAGE=N,..., such as sampler=2")
        counts[stage.strip()] = int(number)
    return counts
