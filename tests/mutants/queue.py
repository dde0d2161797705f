"""Bugs in who goes next: what the fair queue keeps, lanes, places and residents."""

from __future__ import annotations

from tests.mutants.planted import Mutant

_QUEUE = "streams/core/fair_queue.py"
_TESTS = ("tests/properties/test_fair_queue.py", "tests/properties/test_ranking.py")

_RANKING, _LANES = "streams/core/ranking.py", "streams/core/lanes.py"

MUTANTS = (
    Mutant(
        "a member that went before it came first is never ranked again",
        _RANKING,
        "                lane.popleft()\n                member.is_ranked = member.num > 0\n",
        "                lane.popleft()\n                member.is_ranked = True\n",
        _TESTS,
    ),
    Mutant(
        "whose place another takes is never ranked again",
        _RANKING,
        "heapq.heapreplace(heap, standing)[2].is_ranked = False",
        "heapq.heapreplace(heap, standing)",
        _TESTS,
    ),
    Mutant(
        "whoever comes back goes before those that were served less",
        _QUEUE,
        "            is_behind = tenant.rank <= tier.served\n            if is_behind:\n"
        "                tenant.rank = tier.served\n",
        "            is_behind = True\n            if tenant.rank <= tier.served:\n"
        "                tenant.rank = tier.served\n",
        _TESTS,
    ),
    Mutant(
        "what came before its key was asked for is not among its turns",
        _QUEUE,
        "                if each[_TENANT] is not None:\n                    self._rank(each)\n",
        "                pass\n",
        _TESTS,
    ),
    Mutant(
        "what comes after its key was asked for is not among its turns",
        _QUEUE,
        "        if own_key.lines is not None:\n            own_key.rank_record(turn)\n",
        "",
        _TESTS,
    ),
    Mutant(
        "a key's lines are kept for ever",
        _QUEUE,
        "        if self.num_ranked > 2 * self.num + 64:\n",
        "        if False:\n",
        _TESTS,
    ),
    Mutant(
        "what came before anything was measured keeps its old price",
        _QUEUE,
        "turn[_COST_S] if price is None else price()",
        "turn[_COST_S]",
        _TESTS,
    ),
    Mutant(
        "hands on all that was read ahead of one partition before the next",
        _LANES,
        "self._turns.append(key)",
        "self._turns.appendleft(key)",
        ("tests/properties/test_lanes.py",),
    ),
    Mutant(
        "hands on records of a partition that is held",
        _LANES,
        "return bool(lane.items) and not lane.is_held",
        "return bool(lane.items)",
        ("tests/properties/test_lanes.py",),
    ),
    Mutant(
        "a full lane is never read for again",
        _LANES,
        "            self._lanes[key].is_full = False\n",
        "",
        ("tests/properties/test_lanes.py",),
    ),
    Mutant(
        "lets a tenant into the engine beyond its share of the places",
        "streams/core/batches.py",
        "if has_share or num_heavier",
        "if num_heavier",
        ("tests/unit/test_batches.py",),
    ),
    Mutant(
        "a job waits behind all that another tenant has in the engine",
        "streams/core/step_batcher.py",
        "each.weight / self._num_of[each.payer]",
        "each.weight",
        ("tests/properties/test_step_batcher.py",),
    ),
    Mutant(
        "offers places for all who are in the engine and one more",
        "streams/core/step_batcher.py",
        "max(num_in.values(), default=0) + free",
        "len(self._residents) + free",
        ("tests/properties/test_step_batcher.py",),
    ),
    Mutant(
        "gives an engine as many jobs as it may ever hold",
        "streams/core/batches.py",
        "is_full = len(self._sizes) >= self._num_places",
        "is_full = len(self._sizes) >= self._max_batches",
        ("tests/unit/test_batches.py",),
    ),
)
