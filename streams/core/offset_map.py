"""What a commit says beside its offset: which records beyond it are finished, and which crashed.

The text travels in the commit's metadata, so it is written with the offset or not at all, and an
offset that somebody sets by hand comes without one. Version 1 is

    "1" base64url( varint bits_bytes, bits, { varint distance, varint crashes, varint alone }* )

`bits` is little-endian, bit i standing for the offset i after the committed one; a distance counts
from the crash entry before, the first from the committed offset. Nothing to say is the empty text.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

MAX_CHARS: Final = 4095
"""Brokers take 4096 bytes by default, of which librdkafka's bindings spend one on a NUL."""

MAX_SPAN: Final = 23_000
"""Offsets further than this from the committed one are not told: they would be worked again.

Their bits take 3,834 characters; the rest is for crash counts.
"""

BACK_PRESSURE_SPAN: Final = 18_000
"""A partition whose map reaches this far takes no more records: 75 % of MAX_CHARS."""

_VERSION = "1"


class Crashes(NamedTuple):
    """How often a process died with a record inside its engine; of these, how often alone."""

    num: int = 0
    num_alone: int = 0


NO_CRASHES: Final = Crashes()


@dataclass(frozen=True, slots=True)
class OffsetMap:
    """What is known of the records from `offset` on: bit i of `finished_bits` is `offset + i`."""

    offset: int
    finished_bits: int = 0
    crashes: Mapping[int, Crashes] = field(default_factory=dict)

    def finished(self) -> list[int]:
        """The finished offsets, ascending."""
        bits = self.finished_bits
        return [self.offset + i for i in range(bits.bit_length()) if bits >> i & 1]


def encode_offset_map(known: OffsetMap) -> str:
    """The metadata text, at most MAX_CHARS; what does not fit is left out, the furthest first.

    >>> encode_offset_map(OffsetMap(10))
    ''
    >>> text = encode_offset_map(OffsetMap(10, 0b110, {13: Crashes(2, 1)}))
    >>> text, decode_offset_map(10, text).finished()
    ('1AQYDAgE', [11, 12])
    """
    bits = known.finished_bits
    if bits.bit_length() > MAX_SPAN:
        bits &= (1 << MAX_SPAN) - 1
    crashes = sorted(known.crashes.items())
    while True:
        text = _text(known.offset, bits, crashes)
        if len(text) <= MAX_CHARS:
            return text
        # A lost bit costs work, a lost count the innocence of its neighbours: bits go first.
        if bits:
            bits &= (1 << (bits.bit_length() // 2)) - 1
        else:
            crashes = crashes[: len(crashes) // 2]


def decode_offset_map(offset: int, text: str) -> OffsetMap:
    """The map that was committed with `offset`.

    Raises:
        ValueError: another version, or not a map: ignore it, work is then done again.
    """
    text = text.rstrip("\0")  # Java's tools keep the NUL that librdkafka's bindings send
    if not text:
        return OffsetMap(offset)
    if text[0] != _VERSION:
        raise ValueError(f"offset map of version {text[0]!r}")
    try:
        body = base64.b64decode(text[1:] + "=" * (-len(text[1:]) % 4), b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("offset map is no base64") from error
    numbers = _Varints(body)
    bits = int.from_bytes(numbers.take(numbers.next()), "little")
    crashes, at = {}, offset
    while not numbers.is_empty:
        at += numbers.next()
        crashes[at] = Crashes(numbers.next(), numbers.next())
    return OffsetMap(offset, bits, crashes)


def _text(offset: int, bits: int, crashes: list[tuple[int, Crashes]]) -> str:
    if not bits and not crashes:
        return ""
    packed = bits.to_bytes((bits.bit_length() + 7) // 8, "little")
    body = bytearray(_varint(len(packed))) + packed
    for at, count in crashes:
        for number in (at - offset, *count):
            body += _varint(number)
        offset = at
    return _VERSION + base64.urlsafe_b64encode(body).rstrip(b"=").decode()


def _varint(number: int) -> bytes:
    """LEB128, for numbers that are not negative."""
    return bytes(_sevens(number))


def _sevens(number: int) -> Iterator[int]:
    while number > 0x7F:
        yield number & 0x7F | 0x80
        number >>= 7
    yield number


class _Varints:
    """Reads a body from its start; ValueError past its end."""

    def __init__(self, body: bytes) -> None:
        self._body, self._at = body, 0

    @property
    def is_empty(self) -> bool:
        return self._at >= len(self._body)

    def take(self, num_bytes: int) -> bytes:
        taken = self._body[self._at : self._at + num_bytes]
        if len(taken) < num_bytes:
            raise ValueError("offset map ends too early")
        self._at += num_bytes
        return taken

    def next(self) -> int:
        number = shift = 0
        while True:
            if shift > 63:
                raise ValueError("offset map holds a number that is too large")
            byte = self.take(1)[0]
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
            shift += 7
