"""What a user asks for, parsed. Wrong use is a SettingsError here, one line, exit code 2."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from streams.errors import SettingsError

BrokerKind = Literal["embedded", "apache"]
"""A broker that the local stack can start."""

_SPAN = re.compile(r"([0-9]{1,9}) ?(s|min|h|d)")
_UNITS_S = {"s": 1, "min": 60, "h": 3600, "d": 86_400}
_RATE = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)(?:/s)?")
_DEGRADATIONS = {
    "fewer-steps": "fewer_steps",
    "distilled-model": "distilled_model",
    "smaller": "smaller",
}
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


def parse_degradations(words: Sequence[str] | None) -> tuple[str, ...]:
    """What may be let go of to meet a deadline.

    >>> parse_degradations(["fewer-steps", "smaller"])
    ('fewer_steps', 'smaller')
    """
    for word in words or ():
        if word not in _DEGRADATIONS:
            raise SettingsError(f"--allow {word}: want {', '.join(_DEGRADATIONS)}")
    return tuple(_DEGRADATIONS[word] for word in words or ())


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


def parse_since(text: str | None, now: datetime) -> datetime | None:
    """The moment that a time span before `now`, or a date and time, names; nothing for None.

    A date and time without a zone is of this machine's.

    >>> noon = datetime(2026, 1, 2, 12, tzinfo=UTC)
    >>> str(parse_since("90min", noon)), str(parse_since("2026-01-01T00:00Z", noon))
    ('2026-01-02 10:30:00+00:00', '2026-01-01 00:00:00+00:00')
    """
    if text is None:
        return None
    try:
        if match := _SPAN.fullmatch(text):
            return now - timedelta(seconds=int(match[1]) * _UNITS_S[match[2]])
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise SettingsError(
            f"--since {text!r}: want 30s, 90min, 2h, 7d, or a time such as 2026-01-31T12:00Z"
        ) from None


def parse_rate(text: str | None) -> float | None:
    """Jobs a second; nothing for None.

    >>> parse_rate("5/s"), parse_rate("0.5")
    (5.0, 0.5)
    """
    if text is None:
        return None
    match = _RATE.fullmatch(text)
    if match is None or not float(match[1]):
        raise SettingsError(f"--rate {text!r}: want jobs a second, such as 5/s or 0.5/s")
    return float(match[1])


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
