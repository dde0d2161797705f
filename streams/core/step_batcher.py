"""Which jobs take part in the next denoising step: continuous batching, fair by cost.

Jobs join and leave between any two steps (as requests do in Orca's iteration-level scheduling, Yu
et al., OSDI 2022). There may be more of them than one forward takes, and of several kinds that
cannot share one: each forward serves the job that is owed most, and fills up with others of its
batch key. So no kind waits behind another, and a newcomer starts at the next boundary.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


@dataclass(slots=True)
class _Resident:
    key: Hashable
    width: int
    order: int
    credit_s: float


class StepBatcher(Generic[T]):
    """The jobs that are being denoised, and what each is owed, in seconds of the device.

    A step's cost is owed to all residents alike and paid by those that took part. Credit never
    falls below minus one step, so who was served while there was room need not wait for it later;
    a newcomer has credit for one step, so it starts at once unless others have waited longer.

    >>> batcher = StepBatcher()
    >>> for name in "abc": batcher.join(name, key="64x64", width=2)
    >>> batcher.pick(lambda key: 4)
    ('a', 'b')
    >>> batcher.ran(("a", "b"), cost_s=1.0); batcher.pick(lambda key: 4)
    ('c', 'a')
    """

    def __init__(self) -> None:
        self._residents: dict[T, _Resident] = {}
        self._num_joined = 0
        self._longest_s = 0.0  # step, of late

    def __len__(self) -> int:
        return len(self._residents)

    def __contains__(self, item: T) -> bool:
        return item in self._residents

    def join(self, item: T, key: Hashable, width: int) -> None:
        """A job comes; `width` is how many rows of a forward it takes (two with guidance)."""
        assert item not in self._residents, f"{item!r} is here already"
        self._num_joined += 1
        self._residents[item] = _Resident(key, width, self._num_joined, self._longest_s)

    def leave(self, item: T) -> None:
        """A job goes: finished, failed, or nobody waits for it."""
        del self._residents[item]

    def rekey(self, item: T, key: Hashable) -> None:
        """From now on it shares forwards with jobs of another key (another expert's, say)."""
        self._residents[item].key = key

    def pick(self, cap: Callable[[Hashable], int]) -> tuple[T, ...]:
        """The jobs of the next step, of one key, together at most `cap(key)` rows wide.

        Who is owed most goes in any case, even where it alone is wider than that. None: no job.
        """
        if not self._residents:
            return ()
        first = max(self._residents.values(), key=_urgency)
        left = cap(first.key) - first.width
        picked = []
        for item, each in sorted(
            self._residents.items(), key=lambda pair: _urgency(pair[1]), reverse=True
        ):
            if each is first:
                picked.append(item)
            elif each.key == first.key and each.width <= left:
                picked.append(item)
                left -= each.width
        return tuple(picked)

    def ran(self, items: tuple[T, ...], cost_s: float) -> None:
        """These have taken part in a step that took the device so long."""
        self._longest_s = max(cost_s, 0.9 * self._longest_s)
        for each in self._residents.values():
            each.credit_s += cost_s / len(self._residents)
        for item in items:
            row = self._residents[item]
            row.credit_s = max(row.credit_s - cost_s / len(items), -self._longest_s)


def _urgency(resident: _Resident) -> tuple[float, int]:
    return resident.credit_s, -resident.order
