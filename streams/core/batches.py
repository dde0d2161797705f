"""Which records enter the engine together, and how many batches are in it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Hashable
from typing import Generic, NamedTuple, TypeVar

from streams.core.accounts import Turn
from streams.core.fair_queue import ALIKE, Charge, Fairness, FairQueue, payer_of
from streams.core.micro_batch import MicroBatcher
from streams.core.tiers import OFF_PEAK_WEIGHT

T = TypeVar("T", bound=Hashable)


class Batch(NamedTuple, Generic[T]):
    """Items that enter the engine together. `is_alone`: nothing else may be in it meanwhile."""

    number: int
    items: tuple[T, ...]
    is_alone: bool


class Batches(Generic[T]):
    """Micro-batches, at most `max_batches` in the engine; a suspect enters an empty engine, alone.

    Suspects and batches take turns, so neither waits for ever. Where the engine can hold more than
    it works at a time, a tier need not wait for places that lighter ones have taken, nor a tenant
    that has less than its share of them for those of others; of its own weight and more there are
    never more than twice as many as places. Such an engine offers places, `max_batches` at most.

    >>> batches = Batches(max_size=2, max_age_s=1.0, max_batches=2)
    >>> batches.add("64x64", "a", Charge(), None, now_s=0.0); batches.add_suspect("s")
    >>> batches.take(now_s=0.0)
    Batch(number=1, items=('s',), is_alone=True)
    >>> batches.take(now_s=0.0); batches.leave(1)
    >>> batches.take(now_s=0.0)
    Batch(number=2, items=('a',), is_alone=False)
    """

    def __init__(
        self,
        max_size: int,
        max_age_s: float,
        max_batches: int,
        fairness: Fairness = ALIKE,
        has_room_for_heavier: bool = False,
    ) -> None:
        """`has_room_for_heavier`: to a tier only batches of its weight and more count.

        Then there are two places until the engine says how many it has use for.
        """
        self._has_room_for_heavier = has_room_for_heavier
        self._num_places = min(2, max_batches) if has_room_for_heavier else max_batches
        self._waiting: MicroBatcher[T] = MicroBatcher(max_size, max_age_s, fairness)
        self._suspects: deque[T] = deque()
        self._max_batches = max_batches
        self._sizes: dict[int, int] = {}  # items still in the engine, by batch
        self._payers: dict[int, tuple[float, Hashable]] = {}  # of who leads it, likewise
        self._num_of: Counter[Hashable] = Counter()  # batches, by payer
        self._last_number = 0
        self._is_alone = False
        self._is_suspects_turn = True

    def offer(self, num_places: int) -> None:
        """The engine has use for so many batches."""
        self._num_places = max(1, min(num_places, self._max_batches))

    @property
    def num_waiting(self) -> int:
        """Items that are not in the engine yet."""
        return len(self._waiting) + len(self._suspects)

    @property
    def queue(self) -> FairQueue[T]:
        """What waits, but for suspects; to be looked at."""
        return self._waiting.queue

    def next_due_s(self) -> float | None:
        """When the next batch closes by age; None if nothing waits."""
        return 0.0 if self._suspects else self._waiting.next_due_s()

    def add(
        self, key: Hashable, item: T, charge: Charge, deadline_s: float | None, now_s: float
    ) -> None:
        """Let an item wait for its turn, and for company of its key."""
        self._waiting.add(key, item, charge, deadline_s, now_s)

    def add_suspect(self, item: T) -> None:
        """Let an item wait for an engine of its own."""
        self._suspects.append(item)

    def take(self, now_s: float) -> Batch[T] | None:
        """The batch that enters the engine now; None if none may."""
        is_full = len(self._sizes) >= self._num_places
        if self._is_alone or (is_full and not self._has_room_for_heavier):
            return None
        if self._suspects and (self._is_suspects_turn or not len(self._waiting)):
            if self._sizes:
                return None  # let the engine run empty
            self._is_suspects_turn, self._is_alone = False, True
            return self._enter((self._suspects.popleft(),), (0.0, None), is_alone=True)
        turn = self._beyond() if is_full else self._waiting.choose(now_s, not self._sizes)
        if turn is None:
            return None
        self._is_suspects_turn = True
        payer = payer_of(turn)
        return self._enter(self._waiting.pop(turn), payer, is_alone=False)

    def _beyond(self) -> Turn | None:
        """Whose turn it is of those who need not wait, though there is no place left.

        Of tiers that have places, not counting those of lighter ones; else of tenants that have
        less than their share.
        """
        queue, num_of = self._waiting.queue, self._num_of
        heaviest = sorted((weight for weight, _ in self._payers.values()), reverse=True)
        turn = queue.lead_above(heaviest[self._num_places - 1])
        if turn is not None:
            return turn
        for each in queue.leads():  # who may not enter stands before nobody of another tier
            weight, payer = payer_of(each)
            num_payers = len(num_of) + (payer not in num_of)
            has_share = num_of[payer] * num_payers >= self._num_places
            num_heavier = sum(other >= weight for other in heaviest)
            if not has_share and num_heavier < 2 * self._num_places and weight > OFF_PEAK_WEIGHT:
                return each
        return None

    def leave(self, number: int) -> None:
        """One item of a batch has left the engine."""
        self._sizes[number] -= 1
        if not self._sizes[number]:
            del self._sizes[number]
            self._num_of[payer := self._payers.pop(number)[1]] -= 1
            if not self._num_of[payer]:
                del self._num_of[payer]
            self._is_alone = False

    def remove(self, items: Collection[T]) -> tuple[T, ...]:
        """Take these out, as many as wait, and return them."""
        suspects = tuple(item for item in self._suspects if item in items)
        self._suspects = deque(item for item in self._suspects if item not in items)
        return self._waiting.remove(items) + suspects

    def _enter(
        self, items: tuple[T, ...], payer: tuple[float, Hashable], is_alone: bool
    ) -> Batch[T]:
        self._last_number += 1
        self._sizes[self._last_number], self._payers[self._last_number] = len(items), payer
        self._num_of[payer[1]] += 1
        return Batch(self._last_number, items, is_alone)
