"""Which jobs take part in the next denoising step: continuous batching by response ratio.

Jobs join and leave between any two steps (as requests do in Orca's iteration-level scheduling, Yu
et al., OSDI 2022). There may be more of them than one forward takes, and of several kinds that
cannot share one: each forward is led by one job, and filled up with others of its batch key. So no
kind waits behind another, and a newcomer starts at the next boundary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)
Key = TypeVar("Key", bound=Hashable)

_FORGET = 0.8  # of what a row took, at each step
_REMEMBER = 63 / 64  # of what tenants used, at each job's end: about the last 64 jobs
_LEAST_SHARE = 0.05  # so a weight never counts for more than twenty times another's like it


@dataclass(slots=True)
class _Resident(Generic[Key]):
    key: Key
    width: int
    num_steps: int  # that it needs, from when it came
    weight: float
    payer: Hashable
    order: int
    came_s: float  # on the device's clock, which runs while it computes
    has_begun: bool = False


class StepBatcher(Generic[T, Key]):
    """The jobs that are being denoised, and whose turn it is.

    Who has waited longest for what it asks goes first: highest response ratio (Brinch Hansen,
    1971), the time since it came over the device time of all its steps, times its weight. So a
    short job does not wait for a long one's end, nobody starves, and no time goes into having many
    jobs half done. Who has taken no step yet goes before all, once: somebody looks at nothing yet.
    Where that passes others they lead the step after, however many come.

    The weight is a tenant's, by its tier, and its jobs that are here share it: so nobody waits
    behind all of a flood that was here before, of whatever tier. It counts for less, down to a
    twentieth, the more of the device its tenant had of late, for its weight, beside all others: who
    comes seldom is done nearly as soon as if it were alone (as in decay usage scheduling, Epema,
    ACM TOCS 16(4), 1998), and who floods has the rest.

    >>> batcher = StepBatcher()
    >>> for name, steps in (("a", 50), ("b", 4)): batcher.join(name, "64x64", 2, steps)
    >>> batcher.pick(lambda key: 2)
    ('a',)
    >>> batcher.ran(("a",), cost_s=1.0); batcher.pick(lambda key: 2)
    ('b',)
    >>> batcher.ran(("b",), cost_s=1.0); batcher.pick(lambda key: 2)
    ('b',)
    """

    def __init__(self) -> None:
        self._residents: dict[T, _Resident[Key]] = {}
        self._num_joined = 0
        self._num_of: Counter[Hashable] = Counter()  # residents, by payer
        self._device_s = 0.0  # of all steps so far
        self._used: dict[Hashable, float] = {}  # device time by weight, by payer, of late
        self._all_used = 0.0
        self._row_s: dict[Key, float] = {}  # a row of a step, of late
        self._were_passed = False  # jobs that have begun, by a newcomer that led the last step

    def __len__(self) -> int:
        return len(self._residents)

    def __contains__(self, item: T) -> bool:
        return item in self._residents

    def join(
        self,
        item: T,
        key: Key,
        width: int,
        num_steps: int,
        weight: float = 1.0,
        payer: Hashable = None,
    ) -> None:
        """A job comes that needs so many steps.

        `width`: rows of a forward that it takes (two with guidance). `weight`: its tier's, how much
        faster than those of weight 1 they come up in line. `payer`: its tenant.
        """
        assert item not in self._residents, f"{item!r} is here already"
        self._num_joined += 1
        self._residents[item] = _Resident(
            key, width, num_steps, weight, payer, self._num_joined, self._device_s
        )
        self._num_of[payer] += 1

    def leave(self, item: T) -> None:
        """A job goes: finished, failed, or nobody waits for it."""
        gone = self._residents.pop(item)
        self._num_of[gone.payer] -= 1
        if not self._num_of[gone.payer]:
            del self._num_of[gone.payer]
        self._fade()
        self._forget(gone.key)

    def rekey(self, item: T, key: Key) -> None:
        """From now on it shares forwards with jobs of another key (another expert's, say)."""
        resident = self._residents[item]
        before, resident.key = resident.key, key
        if resident.has_begun:
            self._row_s.setdefault(key, self._row_s[before])  # until it is known better
        if key != before:
            self._forget(before)

    def num_of_use(self, cap: Callable[[Key], int]) -> int:
        """How many jobs the device has use for: what the fullest forward takes, and one more.

        A forward is of one key, at most `cap(key)` rows wide; all beyond wait for another one.
        """
        rows: Counter[Key] = Counter()
        num_in: Counter[Key] = Counter()
        free = 1
        for each in self._residents.values():
            if not rows[each.key] or rows[each.key] + each.width <= cap(each.key):
                num_in[each.key] += 1
            rows[each.key] += each.width
        for each in self._residents.values():
            free = max(free, (cap(each.key) - rows[each.key]) // each.width)
        return max(num_in.values(), default=0) + free

    def pick(self, cap: Callable[[Key], int]) -> tuple[T, ...]:
        """The jobs of the next step, of one key, together at most `cap(key)` rows wide.

        Who leads goes in any case, even where it alone is wider than that. None: no job.
        """
        line = sorted(self._residents.items(), key=self._turn, reverse=True)
        if not line:
            return ()
        begun = (pair for pair in line if pair[1].has_begun)
        leader, first = next(begun, line[0]) if self._were_passed else line[0]
        left = cap(first.key) - first.width
        picked = [leader]
        for item, each in line:
            if each is not first and each.key == first.key and each.width <= left:
                picked.append(item)
                left -= each.width
        return tuple(picked)

    def ran(self, items: tuple[T, ...], cost_s: float) -> None:
        """These, as picked, have taken part in a step that took the device so long."""
        residents = [self._residents[item] for item in items]
        waiting = (each for item, each in self._residents.items() if item not in items)
        is_led_by_newcomer = not residents[0].has_begun
        self._were_passed = is_led_by_newcomer and any(each.has_begun for each in waiting)
        self._device_s += cost_s
        key, row_s = residents[0].key, cost_s / sum(each.width for each in residents)
        before_s = self._row_s.get(key, row_s)
        self._row_s[key] = _FORGET * before_s + (1 - _FORGET) * row_s
        for each in residents:
            each.has_begun = True
            used = row_s * each.width / each.weight
            self._used[each.payer] = self._used.get(each.payer, 0.0) + used
            self._all_used += used

    def _forget(self, key: Key) -> None:
        """Shapes are many: only what is here is remembered."""
        if all(each.key != key for each in self._residents.values()):
            self._row_s.pop(key, None)

    def _fade(self) -> None:
        least = 1e-3 * self._all_used
        kept = ((payer, _REMEMBER * used) for payer, used in self._used.items())
        self._used = {payer: used for payer, used in kept if used > least}
        self._all_used = sum(self._used.values())

    def _turn(self, pair: tuple[T, _Resident[Key]]) -> tuple[bool, float, int]:
        each = pair[1]
        if not each.has_begun:
            return True, each.weight, -each.order
        work_s = max(each.num_steps * each.width * self._row_s[each.key], 1e-9)
        share = self._used.get(each.payer, 0.0) / max(self._all_used, 1e-9)
        weight = each.weight / self._num_of[each.payer] / (_LEAST_SHARE + share)
        return False, weight * (self._device_s - each.came_s) / work_s, -each.order
