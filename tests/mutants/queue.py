"""Bugs in how the fair queue keeps what it need not."""

from __future__ import annotations

from tests.mutants.planted import Mutant

_QUEUE = "streams/core/fair_queue.py"
_TESTS = ("tests/properties/test_fair_queue.py", "tests/properties/test_ranking.py")

_RANKING = "streams/core/ranking.py"

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
)
